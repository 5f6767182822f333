"""Time and memory of one Stein direction against P and D, beside Pyro, blackjax and numpyro.

    python benchmarks/stein.py                 # the targets
    python benchmarks/stein.py --grid          # more sizes, and out/stein.png

Every case runs in a process of its own. Time is the best of a few calls, in seconds, on a standard
normal target, so that the scores cost nothing; peers are given the same target and do one step of
their own SVGD, ours being ``particlevi-step``; compilation is not counted.
Memory is the growth of the peak resident set over that before the first call, as multiples of the
particles' own size where that is what the target is about.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TARGETS = [
    ("particlevi", 20_000, 10),
    ("particlevi", 100_000, 10),
    ("particlevi", 50, 1_000_000),
    ("particlevi", 20, 300_000),
    ("particlevi-step", 20, 300_000),
    ("pyro", 20, 300_000),
    ("blackjax", 20, 300_000),
    ("numpyro", 20, 300_000),
    ("particlevi", 1000, 10),
    ("particlevi-step", 1000, 10),
    ("pyro", 1000, 10),
    ("blackjax", 1000, 10),
    ("numpyro", 1000, 10),
]
GRID = [
    (name, num, dim)
    for name in ("particlevi", "pyro", "blackjax", "numpyro")
    for num, dim in [(100, 10), (1000, 10), (5000, 10), (20, 10_000), (20, 100_000), (20, 300_000)]
]


def ours(num: int, dim: int) -> Callable[[], object]:
    import torch

    import particlevi as pvi

    x = torch.randn(num, dim)
    scores, kernel = -x, pvi.rbf()
    return lambda: kernel.direction(x, scores)


def our_step(num: int, dim: int) -> Callable[[], object]:
    import torch

    import particlevi as pvi

    normal = pvi.from_log_density(lambda t: -0.5 * t.square().sum(-1), dim, vectorized=True)
    sampler = pvi.svgd(normal)
    state = sampler.init(torch.randn(num, dim), torch.Generator())
    controls = {"step_size": torch.tensor(0.1), "annealing": torch.tensor(1.0)}
    noise = sampler.draw_noise(state, torch.Generator())

    def step() -> object:
        with torch.no_grad():
            return sampler.step(state, None, noise, controls)

    return step


def pyro_step(num: int, dim: int) -> Callable[[], object]:
    import pyro
    import torch
    from pyro.distributions import Normal
    from pyro.infer import SVGD, RBFSteinKernel
    from pyro.optim import SGD

    def model() -> None:
        pyro.sample("x", Normal(torch.zeros(dim), 1.0).to_event(1))

    pyro.clear_param_store()
    svgd = SVGD(model, RBFSteinKernel(), SGD({"lr": 0.1}), num, max_plate_nesting=0)
    return svgd.step


def blackjax_step(num: int, dim: int) -> Callable[[], object]:
    import blackjax
    import jax
    import jax.numpy as jnp
    import optax
    from blackjax.vi.svgd import rbf_kernel, update_median_heuristic

    svgd = blackjax.svgd(jax.grad(lambda x: -0.5 * jnp.sum(x**2)), optax.sgd(0.1), rbf_kernel)
    state = svgd.init(jax.random.normal(jax.random.key(0), (num, dim)))
    step = jax.jit(lambda state: update_median_heuristic(svgd.step(state)))
    return lambda: jax.block_until_ready(step(state).particles)


def numpyro_step(num: int, dim: int) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp
    from jax.random import key
    from numpyro import distributions, optim, sample
    from numpyro.contrib.einstein import SVGD, RBFKernel

    def model() -> None:
        sample("x", distributions.Normal(jnp.zeros(dim), 1.0).to_event(1))

    svgd = SVGD(model, optim.SGD(0.1), RBFKernel(), num_stein_particles=num)
    state = svgd.init(key(0))
    step = jax.jit(svgd.update)
    return lambda: jax.block_until_ready(step(state))


MAKERS = {
    "particlevi": ours,
    "particlevi-step": our_step,
    "pyro": pyro_step,
    "blackjax": blackjax_step,
    "numpyro": numpyro_step,
}


def peak() -> float:
    """Peak resident set, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, num: int, dim: int) -> dict[str, float]:
    MAKERS[name](5, 3)()
    call = MAKERS[name](num, dim)
    before, times, began = peak(), [], time.perf_counter()
    while len(times) < 5 and time.perf_counter() - began < 30:
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        del result
    return {"seconds": min(times), "megabytes": peak() - before}


def run(name: str, num: int, dim: int, limit: float) -> dict[str, float] | str:
    command = [sys.executable, __file__, "--case", json.dumps([name, num, dim])]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return f"more than {limit:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return lines[-1][:100]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def plot(results: dict[tuple[str, int, int], dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 7))
    for column, (fixed, label) in enumerate([(2, "P at D = 10"), (1, "D at P = 20")]):
        value = 10 if fixed == 2 else 20
        for name in MAKERS:
            cases = [case for case in results if case[0] == name and case[fixed] == value]
            along = sorted((case[3 - fixed], results[case]) for case in cases)
            for row, what in enumerate(["seconds", "megabytes"]):
                ys = [max(found[what], 1e-2 if row else 1e-6) for _, found in along]
                axes[row, column].loglog([x for x, _ in along], ys, "o-", label=name)
                axes[row, column].set(xlabel=label, ylabel=what)
    axes[0, 0].legend()
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--case")
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--limit", type=float, default=300.0)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*json.loads(options.case))))
        return
    results = {}
    print(f"{'':16} {'P':>8} {'D':>9} {'seconds':>10} {'MB':>8} {'x particles':>12}")
    for name, num, dim in GRID if options.grid else TARGETS:
        found = run(name, num, dim, options.limit)
        if isinstance(found, str):
            print(f"{name:16} {num:8} {dim:9} {found}", flush=True)
            continue
        results[name, num, dim] = found
        times = found["megabytes"] / (num * dim * 4 / 2**20)
        print(
            f"{name:16} {num:8} {dim:9} {found['seconds']:10.4f} {found['megabytes']:8.0f} "
            f"{times:12.1f}",
            flush=True,
        )
    for num, dim in sorted({case[1:] for case in results}):
        own = results.get(("particlevi-step", num, dim)) or results.get(("particlevi", num, dim))
        for name in ("pyro", "blackjax", "numpyro"):
            other = results.get((name, num, dim))
            if own and other and not math.isnan(other["seconds"]):
                ratio = other["seconds"] / own["seconds"]
                print(f"({num}, {dim}): {ratio:.1f} x faster than {name}")
    if options.grid:
        plot(results, Path("out") / "stein.png")


if __name__ == "__main__":
    main()
