"""Steps per second beside the peers, and SVGD's time and memory beside theirs.

    python benchmarks/throughput.py            # everything, about 10 minutes on 2 cores
    python benchmarks/throughput.py --only sgld

Langevin: the same Bayesian neural net for all (13-50-1, ReLU, N = 455, batch 32, one minibatch per
chain), SGLD, at 1, 4, 20 and 100 chains: particlevi eager and compiled, posteriors vectorised by
``torch.vmap``, eager and compiled, blackjax in a jitted ``lax.scan``. A repetition is many steps
through the library's own loop, the drawing of minibatches included; compilation is not.
Repetitions are interleaved.

SVGD: one step on a standard normal, the median bandwidth included, at (P, D) = (50, 1e3),
(20, 3e5), (1000, 100), beside Pyro and blackjax. Memory is the highest resident set during the
steps above what the process held with the particles made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _peers import LIBRARIES, Method, Model

from particlevi.streams import ParticleStreams

N, F, H, B = 455, 13, 50, 32
Timed = Callable[[int], float]
"""A number of steps to the seconds that they took."""


def sgld(library: str, chains: int, compile: bool = True) -> Timed:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, F, generator=generator)
    y = x[:, :1].sin() + 0.1 * torch.randn(N, 1, generator=generator)
    model = Model(x, y, (F, H, 1), noise=0.5)
    run = LIBRARIES[library](model, Method("sgld", 1e-5), B, compile)
    start = 0.1 * torch.randn(chains, model.potential().num_params, generator=generator)
    return lambda steps: run(start, 1, steps, 0)[1]


def interleaved(runs: dict[str, Timed], steps: dict[str, int], repetitions: int) -> dict[str, list]:
    for name, run in runs.items():
        run(steps[name])
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            rates[name].append(steps[name] / run(steps[name]))
    return rates


def langevin(repetitions: int, work: float) -> None:
    print("SGLD, steps per second: median [lowest, highest] over interleaved repetitions\n")
    print(
        "| chains | particlevi compiled | particlevi eager | posteriors vmap "
        "| posteriors vmap, compiled | blackjax scan |"
    )
    print("|---|---|---|---|---|---|")
    ratios = []
    for chains in (1, 4, 20, 100):
        runs = {
            "compiled": sgld("particlevi", chains),
            "eager": sgld("particlevi", chains, compile=False),
            "posteriors": sgld("posteriors", chains, compile=False),
            "posteriors compiled": sgld("posteriors", chains),
            "blackjax": sgld("blackjax", chains),
        }
        per_run = {1: 4000, 4: 3000, 20: 1500, 100: 500}[chains]
        fast, slow = int(per_run * work), int(per_run * work / 4)
        steps = {name: slow for name in runs} | {"compiled": fast, "blackjax": fast}
        rates = interleaved(runs, steps, repetitions)
        middle = {name: statistics.median(values) for name, values in rates.items()}
        cells = [f"{middle[n]:.0f} [{min(v):.0f}, {max(v):.0f}]" for n, v in rates.items()]
        print(f"| {chains} | {' | '.join(cells)} |", flush=True)
        ratios.append(
            f"| {chains} | {middle['compiled'] / middle['blackjax']:.2f} "
            f"| {middle['compiled'] / middle['posteriors']:.2f} "
            f"| {middle['compiled'] / middle['posteriors compiled']:.2f} "
            f"| {middle['eager'] / middle['posteriors']:.2f} |"
        )
    print(
        "\n| chains | compiled / blackjax | compiled / posteriors "
        "| compiled / posteriors compiled | eager / posteriors |"
    )
    print("|---|---|---|---|---|")
    print("\n".join(ratios), "\n", flush=True)


def particlevi_svgd(P: int, D: int) -> Timed:
    import particlevi as pvi

    sampler = pvi.svgd(
        pvi.from_log_density(lambda x: -0.5 * x.square().sum(-1), D, vectorized=True)
    )
    generator = torch.Generator().manual_seed(0)
    streams = ParticleStreams(0)
    state = sampler.init(torch.randn(P, D, generator=generator), streams)
    noise = sampler.draw_noise(state, streams)
    controls = {name: torch.tensor(value(0)) for name, value in sampler.schedules.items()}
    controls["step_size"] = torch.tensor(0.1)

    def run(steps: int) -> float:
        now = state
        began = time.perf_counter()
        with torch.no_grad():
            for _ in range(steps):
                now, _ = sampler.step(now, None, noise, controls)
        return time.perf_counter() - began

    return run


def pyro_svgd(P: int, D: int) -> Timed:
    import pyro
    import pyro.distributions as dist
    from pyro.infer import SVGD

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(D), 1.0).to_event(1))

    pyro.clear_param_store()
    kernel = pyro.infer.RBFSteinKernel()
    svgd = SVGD(model, kernel, pyro.optim.SGD({"lr": 0.1}), P, 0)
    svgd.step()

    def run(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            svgd.step()
        return time.perf_counter() - began

    return run


def blackjax_svgd(P: int, D: int) -> Timed:
    import blackjax
    import jax
    import optax

    svgd = blackjax.svgd(jax.grad(lambda x: -0.5 * (x**2).sum()), optax.sgd(0.1))
    state = svgd.init(jax.random.normal(jax.random.key(0), (P, D)), {"length_scale": 1.0})
    step = jax.jit(svgd.step)

    def run(steps: int) -> float:
        now = state
        began = time.perf_counter()
        for _ in range(steps):
            now = step(now)
        jax.block_until_ready(now)
        return time.perf_counter() - began

    return run


SVGD: dict[str, Callable[[int, int], Timed]] = {
    "particlevi": particlevi_svgd,
    "pyro": pyro_svgd,
    "blackjax": blackjax_svgd,
}


def high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return 0


def svgd_worker(library: str, P: int, D: int) -> None:
    """One library in a process of its own: times and memory as JSON."""
    run = SVGD[library](P, D)
    run(1)
    Path("/proc/self/clear_refs").write_text("5")
    before = high_water_mark()
    for _ in sys.stdin:
        print(json.dumps({"seconds": run(1), "memory": high_water_mark() - before}), flush=True)


def stein(repetitions: int) -> None:
    print("SVGD, seconds per step: median [lowest, highest]; memory above the particles in MB\n")
    print("| (P, D) | particles MB | particlevi | pyro | blackjax | pyro / particlevi |")
    print("|---|---|---|---|---|---|")
    for P, D in ((50, 1_000), (20, 300_000), (1_000, 100)):
        command = [sys.executable, __file__, "--worker"]
        workers = {
            name: subprocess.Popen(
                [*command, name, str(P), str(D)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            for name in SVGD
        }
        found: dict[str, list[dict]] = {name: [] for name in SVGD}
        for _ in range(repetitions):
            for name, worker in workers.items():
                try:
                    worker.stdin.write("go\n")
                    worker.stdin.flush()
                    found[name].append(json.loads(worker.stdout.readline()))
                except (BrokenPipeError, json.JSONDecodeError):
                    continue
        for worker in workers.values():
            worker.kill()
        cells, middle = [], {}
        for name, results in found.items():
            if not results:
                cells.append("fails")
                continue
            times = [r["seconds"] for r in results]
            middle[name] = statistics.median(times)
            memory = max(r["memory"] for r in results) / 1e6
            cells.append(
                f"{middle[name]:.4f} [{min(times):.4f}, {max(times):.4f}], {memory:.0f} MB"
            )
        ratio = f"{middle['pyro'] / middle['particlevi']:.1f}" if "pyro" in middle else "-"
        print(f"| ({P}, {D}) | {P * D * 4 / 1e6:.1f} | {' | '.join(cells)} | {ratio} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["sgld", "svgd"])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--work", type=float, default=1.0, help="scales the steps per repetition")
    parser.add_argument("--threads", type=int, help="torch threads; all cores if absent")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.worker:
        svgd_worker(arguments.worker[0], int(arguments.worker[1]), int(arguments.worker[2]))
        sys.exit()
    if arguments.only in (None, "sgld"):
        langevin(arguments.repetitions, arguments.work)
    if arguments.only in (None, "svgd"):
        stein(arguments.repetitions)
