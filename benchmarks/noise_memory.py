"""Memory and cost of every estimator of ``pvi.noise`` at D = 1e6 parameters and N = 1e4 data.

    python benchmarks/noise_memory.py                      # about an hour of one core
    python benchmarks/noise_memory.py --only balance trace
    python benchmarks/noise_memory.py --quick              # D = 1e4, N = 500

Each runs in a process of its own: the most memory above that of the net and the data (resident set,
Linux), how often it reads the data, and its CPU time over that of one gradient of the mean loss on
all the data, taken in the same process. One thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _page import markdown, write
from torch import Tensor, nn

import particlevi as pvi

BATCH = 100
cross_entropy = nn.functional.cross_entropy


class Case(NamedTuple):
    """A net and data."""

    module: nn.Module
    data: tuple[Tensor, Tensor]
    noise: Any

    @property
    def model(self) -> Any:
        return pvi.from_module(
            self.module, pvi.Categorical(), pvi.Flat(), num_data=len(self.data[0])
        )

    def directions(self, count: int) -> Tensor:
        return torch.linalg.qr(torch.randn(self.noise.num_params, count))[0]


def case(quick: bool) -> tuple[Case, float]:
    """It, and the gigabytes of the process with the net and the data alone."""
    torch.manual_seed(0)
    width, count = (12, 500) if quick else (1258, 10_000)
    module = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    data = torch.randn(count, 784), torch.randint(10, (count,))
    before = resident("VmRSS")
    noise = pvi.noise.measure(module, data, cross_entropy, batch_size=BATCH)
    return Case(module, data, noise), before


def bound(c: Case) -> Any:
    """Of 10 recorded steps, two scales."""

    def bounded(outputs: Tensor, targets: Tensor) -> Tensor:
        return 1 - outputs.softmax(-1).gather(-1, targets[..., None])[..., 0]

    x, y = c.data
    half = len(x) // 2
    sides = [
        pvi.noise.measure(c.module, (x[a:b], y[a:b]), bounded)
        for a, b in ((0, half), (half, len(x)))
    ]
    path = [c.noise.position]
    for _ in range(10):
        path.append(path[-1] - 0.1 * torch.randn_like(path[-1]) / 1000)
    run = pvi.noise.SGDRun.from_positions(torch.stack(path), 0.1)
    scales = torch.tensor([1e-4, 1e-3])
    return pvi.noise.generalization_bound([run], sides[:1], sides[1], scales=scales, subgaussian=1)


def replaced(c: Case) -> Any:
    """The gradient of ``msgd``, one particle."""
    estimator = pvi.msgd(c.model, "cov", batch_size=BATCH)
    streams = pvi.streams.ParticleStreams(0)
    theta = c.noise.position[None]
    state = estimator.init(theta, streams)
    drawn = estimator.draw_noise(state, streams)
    return estimator(state, theta, pvi.typing.Batch(c.data), drawn)


def variance(c: Case) -> Any:
    theta = c.noise.position[None]
    return pvi.noise.gradient_variance(c.model, theta, c.data, batch_size=BATCH)


ESTIMATORS: dict[str, Callable[[Case], Any]] = {
    "gradient": lambda c: c.noise.gradient,
    "matvec": lambda c: c.noise.matvec(torch.randn_like(c.noise.position)),
    "trace()": lambda c: c.noise.trace(),
    "trace(num_probes=10)": lambda c: c.noise.trace(num_probes=10),
    "diagonal": lambda c: c.noise.diagonal(),
    "matmat, 10 columns": lambda c: c.noise.matmat(c.directions(10)),
    "spectrum()": lambda c: c.noise.spectrum(),
    "spectrum(top=10)": lambda c: c.noise.spectrum(top=10),
    "spectrum(top=10), vectors": lambda c: c.noise.spectrum(top=10).vectors,
    "spectrum(top=10, max_bytes=5e8)": lambda c: c.noise.spectrum(top=10, max_bytes=5e8),
    "gaussianity()": lambda c: c.noise.gaussianity(),
    "tail_index()": lambda c: c.noise.tail_index(),
    "balance()": lambda c: c.noise.balance(),
    "noise_along, 1 point": lambda c: pvi.noise.noise_along(c.noise, c.noise.position[None]),
    "balance_along, 2 points": lambda c: pvi.noise.balance_along(
        c.noise, c.noise.position.repeat(2, 1)
    ),
    "average, 2 draws, 10 directions": lambda c: pvi.noise.average(
        c.noise, c.noise.position.repeat(2, 1), c.directions(10)
    ),
    "shuffling_regulariser": lambda c: pvi.noise.shuffling_regulariser(c.noise, 0.1),
    "shuffling_regulariser, random": lambda c: pvi.noise.shuffling_regulariser(
        c.noise, 0.1, partitions="random"
    ),
    "effective_loss": lambda c: pvi.noise.effective_loss(c.noise, 0.1),
    "generalization_bound, 10 steps, 2 scales": bound,
    "gradient_variance, 32 batches": variance,
    "msgd, one gradient": replaced,
}


def resident(which: str) -> float:
    """Gigabytes, ``VmRSS`` now or ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(which)) / 1e6


def child(name: str, quick: bool) -> dict[str, float]:
    torch.set_num_threads(1)
    c, before = case(quick)
    unit = []
    for _ in range(3):
        begun = time.process_time()
        _ = c.noise.at(c.noise.position).gradient
        unit.append(time.process_time() - begun)
    fresh = c._replace(noise=c.noise.at(c.noise.position))
    read = counted(type(fresh.noise.samples))
    Path("/proc/self/clear_refs").write_text("5")
    begun = time.process_time()
    ESTIMATORS[name](fresh)
    spent = time.process_time() - begun
    return {
        "gb": resident("VmHWM") - before,
        "passes": sum(read) / fresh.noise.num_data,
        "gradients": spent / min(unit),
        "seconds": spent,
    }


def counted(samples: Any) -> list[int]:
    """How many data are read from now on."""
    read: list[int] = []
    piece = samples.piece

    def counting(self: Any, start: int, stop: int) -> Any:
        read.append(min(stop, self.num_data) - start)
        return piece(self, start, stop)

    samples.piece = counting
    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help="the page that gets the table")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.quick)))
        return
    rows = []
    for name in args.only:
        command = [sys.executable, __file__, "--child", name, *["--quick"] * args.quick]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(name, done.stderr.strip().splitlines()[-1], flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(name, found, flush=True)
        gradients = f"{float(format(found['gradients'], '.3g')):g}"
        passes = f"{round(found['passes'])}" if found["passes"] else ""
        rows.append([name, f"{found['gb']:.2f}", passes, gradients])
    table = markdown(
        [
            "",
            "GB above net and data",
            "times the data are read",
            "CPU time in gradients on all data",
        ],
        rows,
    )
    print(table)
    if args.write:
        write(args.write, {"noise memory": table})


if __name__ == "__main__":
    main()
