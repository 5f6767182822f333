"""Time and memory of one Stein direction against P and D, beside Pyro, blackjax and numpyro.

    python benchmarks/stein.py --write docs/stein.md                           # the targets
    python benchmarks/stein.py --grid --write docs/stein.md --figures docs/figures

Every case runs in a process of its own. Time is the median of a few calls, in seconds, on a
standard normal target, so that the scores cost nothing. ``direction`` is the witness alone; a
``step`` is what peers are timed on, with the same target and their own SVGD. Compilation is not
counted, nor is the first call if there is time for another. Memory is the growth of the peak
resident set over that before the first call, as multiples of the particles' own size where that is
what the target is about.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _page import markdown, write

Case = tuple[str, int, int]
Found = dict[str, float]

PEERS = ("pyro", "blackjax", "numpyro")
TARGETS = [
    ("direction", 20_000, 10),
    ("direction, IMQ", 20_000, 10),
    ("direction", 100_000, 10),
    ("direction", 50, 1_000_000),
    *((name, num, dim) for num, dim in [(20, 300_000), (1000, 10)] for name in ("step", *PEERS)),
]
GRID = [
    *((name, num, 10) for name in ("step", *PEERS) for num in (100, 300, 1000, 3000)),
    *(("step", num, 10) for num in (10_000, 30_000, 100_000)),
    *((name, 20, dim) for name in ("step", *PEERS) for dim in (1000, 10_000, 100_000, 300_000)),
    *(("step", 20, dim) for dim in (1_000_000, 3_000_000)),
]
NAMES = {"step": "particlevi"}


def direction(num: int, dim: int, kernel: str = "rbf") -> Callable[[], object]:
    import torch

    import particlevi as pvi

    x = torch.randn(num, dim)
    scores, chosen = -x, getattr(pvi, kernel)()
    return lambda: chosen.direction(x, scores)


def step(num: int, dim: int) -> Callable[[], object]:
    import torch

    import particlevi as pvi
    from particlevi.streams import ParticleStreams

    normal = pvi.from_log_density(lambda t: -0.5 * t.square().sum(-1), dim, vectorized=True)
    sampler = pvi.svgd(normal)
    state = sampler.init(torch.randn(num, dim), ParticleStreams(0))
    controls = {"step_size": torch.tensor(0.1), "annealing": torch.tensor(1.0)}
    noise = sampler.draw_noise(state, ParticleStreams(0))

    def call() -> object:
        with torch.no_grad():
            return sampler.step(state, None, noise, controls)

    return call


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
    "direction": direction,
    "direction, IMQ": functools.partial(direction, kernel="imq"),
    "step": step,
    "pyro": pyro_step,
    "blackjax": blackjax_step,
    "numpyro": numpyro_step,
}


def peak() -> float:
    """Peak resident set, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, num: int, dim: int) -> Found:
    MAKERS[name](5, 3)()
    call = MAKERS[name](num, dim)
    before, times, began = peak(), [], time.perf_counter()
    while len(times) < 6 and time.perf_counter() - began < 30:
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
        del result
    times = times[1:] or times
    low, mid, high = min(times), statistics.median(times), max(times)
    return {"seconds": mid, "low": low, "high": high, "megabytes": peak() - before}


def run(name: str, num: int, dim: int, limit: float) -> Found | str:
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
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def table(results: dict[Case, Found | str]) -> str:
    rows = []
    for (name, num, dim), found in results.items():
        row = [NAMES.get(name, name), f"{num:,}", f"{dim:,}"]
        if isinstance(found, str):
            rows.append([*row, found, "", ""])
            continue
        times = found["megabytes"] / (num * dim * 4 / 2**20)
        span = f"{found['seconds']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"
        rows.append([*row, span, f"{found['megabytes']:.0f}", f"{times:.1f}"])
    return markdown(["", "P", "D", "seconds", "MB", "MB / particles"], rows)


def ratios(results: dict[Case, Found | str]) -> str:
    """How many times longer each peer takes."""
    rows = []
    for num, dim in sorted({case[1:] for case in results}):
        own = results.get(("step", num, dim))
        others = [results.get((name, num, dim)) for name in PEERS]
        if isinstance(own, dict) and any(isinstance(other, dict) for other in others):
            cells = [
                f"{other['seconds'] / own['seconds']:.1f}" if isinstance(other, dict) else "-"
                for other in others
            ]
            rows.append([f"{num:,}", f"{dim:,}", *cells])
    return markdown(["P", "D", *(f"{name} / particlevi" for name in PEERS)], rows)


def plot(results: dict[Case, Found | str], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.4), sharex="col")
    colors = dict(zip(("step", *PEERS), ("black", "#d1495b", "#2e86ab", "#edae49"), strict=True))
    for column, (fixed, value, label) in enumerate(
        [(2, 10, "P at D = 10"), (1, 20, "D at P = 20")]
    ):
        for name, color in colors.items():
            along = sorted(
                (case[3 - fixed], found["seconds"], found["megabytes"] or float("nan"))
                for case, found in results.items()
                if case[0] == name and case[fixed] == value and isinstance(found, dict)
            )
            for row, ys in enumerate(list(zip(*along, strict=True))[1:]):
                axes[row, column].loglog(
                    [x for x, _, _ in along], ys, "o-", color=color, label=NAMES.get(name, name)
                )
        axes[1, column].set_xlabel(label)
    axes[0, 0].set_ylabel("seconds per step")
    axes[1, 0].set_ylabel("MB above the particles")
    axes[0, 0].legend()
    figure.tight_layout()
    path.mkdir(parents=True, exist_ok=True)
    figure.savefig(path / "stein_scale.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--grid", action="store_true", help="time and memory against P and D")
    parser.add_argument("--largest", type=int, default=10**9, help="P x D beyond which to stop")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds per case")
    parser.add_argument("--write", type=Path, help="the page whose tables are replaced")
    parser.add_argument("--figures", type=Path, default=Path("out"), help="folder for the figure")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(*json.loads(options.case))))
        return
    results: dict[Case, Found | str] = {}
    for case in GRID if options.grid else TARGETS:
        if case[1] * case[2] > options.largest:
            continue
        results[case] = run(*case, options.limit)
        print(*case, results[case], flush=True)
    text = table(results) + "\n\n" + ratios(results)
    print(text)
    if options.grid:
        plot(results, options.figures)
        text += "\n\n![Time and memory against P and D](figures/stein_scale.png)"
    if options.write:
        write(options.write, {"grid" if options.grid else "targets": text})


if __name__ == "__main__":
    main()
