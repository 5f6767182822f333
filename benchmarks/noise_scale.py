"""What columns and eigenvalues of the gradient noise cost on nets of 4e2 to 1e5 parameters.

    python benchmarks/noise_scale.py                    # 5 minutes of one core
    python benchmarks/noise_scale.py --curvature        # spectra at 1e5 parameters

Images and labels are random. CPU time of one thread, the least of a few repetitions, in gradients
of the mean loss on all the data. ``columns`` is the time of K columns at once over K products one
by one, ``ten / all`` that of the ten largest eigenvalues over all that are not zero.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _page import markdown, write
from torch import nn

import particlevi as pvi

CE = nn.functional.cross_entropy
COLUMNS = (2, 5, 10, 40)


def dense(inputs: int, hidden: int) -> nn.Module:
    """One hidden layer of tanh units."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 10)
    )  # fmt: skip


def convolutional(first: int, second: int, hidden: int) -> nn.Module:
    """Two convolutions and two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(9 * second, hidden), nn.ReLU(), nn.Linear(hidden, 10),
    )  # fmt: skip


NETS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "dense 49-6-10": (7, lambda: dense(49, 6)),
    "dense 49-66-10": (7, lambda: dense(49, 66)),
    "convolutional, 4 and 8 channels": (14, lambda: convolutional(4, 8, 50)),
    "dense 196-484-10": (14, lambda: dense(196, 484)),
    "convolutional, 16 and 32 channels": (14, lambda: convolutional(16, 32, 320)),
}


def problem(name: str, count: int) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """The net, and random data."""
    torch.manual_seed(0)
    side, make = NETS[name]
    return make(), (torch.randn(count, 1, side, side), torch.randint(10, (count,)))


def seconds(*calls: Callable[[], Any], budget: float = 1.0) -> list[float]:
    """CPU time of each, the least of repetitions in turn, 100 or what the budget allows."""
    found: list[list[float]] = [[] for _ in calls]
    while len(found[0]) < 100 and sum(map(sum, found)) < budget:
        for times, call in zip(found, calls, strict=True):
            begun = time.process_time()
            call()
            times.append(time.process_time() - begun)
    return [min(times) for times in found]


def roads(name: str, count: int) -> list[str]:
    """A row of the table."""
    module, data = problem(name, count)
    noise = pvi.noise.measure(module, data, CE)
    vectors = torch.randn(noise.num_params, max(COLUMNS))
    unit, one, *many = seconds(
        lambda: noise.at(noise.position).gradient,
        lambda: noise.matvec(vectors[:, 0]),
        *(lambda k=k: noise.at(noise.position).matmat(vectors[:, :k]) for k in COLUMNS),
        budget=10.0,
    )
    ten, every = seconds(lambda: noise.spectrum(top=10), noise.spectrum, budget=5.0)
    return [
        name, f"{noise.num_params}", f"{count}", f"{one / unit:.1f}",
        *(f"{each / (k * one):.2f}" for each, k in zip(many, COLUMNS, strict=True)),
        f"{ten / unit:.0f}", f"{every / unit:.0f}", f"{ten / every:.2f}",
    ]  # fmt: skip


def curvature(name: str, count: int) -> list[str]:
    """Spectra of the noise and of the Hessian of one net."""
    module, data = problem(name, count)
    noise = pvi.noise.measure(module, data, CE)
    hessian = pvi.curvature.curvature_operator(module, data, CE)
    (unit,) = seconds(lambda: noise.at(noise.position).gradient)
    calls: list[Callable[[], Any]] = [
        lambda: noise.spectrum(top=10),
        lambda: noise.spectrum(top=10).vectors,
        noise.spectrum,
        lambda: hessian.top_eigenpairs(10, tolerance=1e-3),
        lambda: hessian.density(num_steps=30, num_probes=6),
    ]
    costs = [seconds(call, budget=0.1)[0] / unit for call in calls]
    return [name, f"{noise.num_params}", *(f"{cost:.0f}" for cost in costs)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--curvature", action="store_true")
    parser.add_argument("--write", type=Path, help="the page that gets the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.curvature:
        heads = ["net, N = 4000", "D", "ten of C", "with vectors", "all of C", "ten of the Hessian",
                 "its density, 180 products"]  # fmt: skip
        rows = [curvature(name, 4000) for name in list(NETS)[-2:]]
    else:
        heads = ["net", "D", "N", "C v", *(f"columns, K = {k}" for k in COLUMNS), "ten", "all",
                 "ten / all"]  # fmt: skip
        rows = []
        for name in NETS:
            for count in (100, 1000, 5000):
                rows.append(roads(name, count))
                print(*rows[-1], flush=True)
    table = markdown(heads, rows)
    print(table)
    if args.write:
        write(args.write, {"noise spectra" if args.curvature else "noise scale": table})


if __name__ == "__main__":
    main()
