"""How much of several processes a run gets: efficiency, and a model of its cost.

    python -m benchmarks.ranks [--repetitions 5] [--only chains|compiled|large|svgd]

One thread per process. A step is timed as the difference of a long and a short run, so that what a
run takes once does not count. For each kind of run there are three times in turn:

    alone       a run of all particles in one process, nothing beside it
    two         a run of the same particles over two processes
    beside      two runs like the first at the same time, which know nothing of each other

Efficiency is ``alone / (2 two)``. Two cores that share caches, memory or a physical core do less
than twice the work of one, whatever the program: their ceiling is ``alone / beside``. The last
column is efficiency by the ceiling, what is left of the two cores to a run over both. CPU is the
same efficiency in CPU seconds, summed over processes, which other programs disturb least.

The cost of a step is then modelled as

    t(R) = work / R + sent(R) / bandwidth + latency * messages

with work from the run in one process, bandwidth and latency from messages of two sizes between two
processes. For more processes this is a prediction: as many cores as processes, the same network
between any two, no waiting for slow ones.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

import particlevi as pvi
from particlevi.distributed import Peers
from tests.processes import forked

CHAINS, STEIN, PARAMS = 16, 64, 1_000_000
LENGTHS = {"chains": (100, 900), "compiled": (100, 2100), "large": (20, 120), "svgd": (1, 6)}
NAMES = {
    "chains": "16 chains, D = 16 701",
    "compiled": "the same, compiled",
    "large": "the same, on all data",
    "svgd": "SVGD (64, 1e6)",
}


class Times(NamedTuple):
    """Of a step in all processes: seconds of the slowest, and CPU seconds of all."""

    wall: float
    cpu: float


def net(width: int, depth: int) -> tuple[Any, Any]:
    """A potential and its data."""
    torch.manual_seed(0)
    sizes = [64, *[width] * depth, 1]
    layers: list[torch.nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers[:-1])
    x = torch.randn(512, 64)
    y = x[:, :1].sin() + 0.1 * torch.randn(512, 1)
    potential = pvi.from_module(module, pvi.Gaussian(0.1), pvi.Normal(fan_in=True), num_data=512)
    return potential, (x, y)


def chains(steps: int, processes: str, compile: bool = False, batch_size: int | None = 64) -> None:
    """A run of chains."""
    potential, data = net(100, 2)
    run = {"num_particles": CHAINS, "num_draws": steps // 10, "thin": 10, "seed": 0}
    run |= {"processes": processes, "compile": compile, "progress": False}
    pvi.sample(pvi.sghmc(potential), data, batch_size=batch_size, step_size=1e-4, **run)


def stein(steps: int, processes: str) -> None:
    """Steps of SVGD with a million parameters."""
    potential, data = net(966, 2)
    start = 0.01 * torch.randn(STEIN, potential.num_params)
    run = {"initial": start, "num_draws": 1, "thin": steps, "seed": 0, "processes": processes}
    keep = pvi.storage.InMemory(keep=torch.arange(10))
    run |= {"store": keep, "progress": False}
    pvi.sample(pvi.svgd(potential), data, batch_size=64, step_size=1e-4, **run)


JOBS = {
    "chains": chains,
    "compiled": partial(chains, compile=True),
    "large": partial(chains, batch_size=None),
    "svgd": stein,
}


def step_of(number: int, name: str, processes: str) -> Times:
    """Seconds of a step in this process, after a run that has imported and allocated."""
    found = []
    for steps in (LENGTHS[name][0], *LENGTHS[name]):
        if dist.get_world_size() > 1:
            dist.barrier()
        began, used = time.perf_counter(), time.process_time()
        JOBS[name](steps, processes)
        found.append((time.perf_counter() - began, time.process_time() - used))
    (wall, cpu), (more_wall, more_cpu) = found[1:]
    steps = LENGTHS[name][1] - LENGTHS[name][0]
    return Times((more_wall - wall) / steps, (more_cpu - cpu) / steps)


def measured(name: str, size: int, processes: str = "all") -> Times:
    """A step in so many processes."""
    found = forked(size, partial(step_of, name=name, processes=processes)).values()
    broken = [each for each in found if isinstance(each, str)]
    assert not broken, broken[0]
    return Times(max(each.wall for each in found), sum(each.cpu for each in found))


def messages(number: int) -> tuple[float, float]:
    """Seconds of an all-reduce of one number, and of four million."""
    peers = Peers()
    found = []
    for size in (1, 4_000_000):
        values = [torch.ones(size)]
        peers.sum(values)
        began = time.perf_counter()
        for _ in range(5):
            peers.sum(values)
        found.append((time.perf_counter() - began) / 5)
    return found[0], found[1]


def shown(values: list[float]) -> str:
    """A median and the range."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Time, and print tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=list(JOBS))
    args = parser.parse_args()
    print(
        f"{'ms of a step':24}{'alone':>10}{'two':>10}{'beside':>10}   {'efficiency':20}"
        f"{'ceiling':20}{'by the ceiling':20}CPU"
    )
    works = {}
    for name in JOBS if args.only is None else [args.only]:
        rows = [
            (measured(name, 1), measured(name, 2), measured(name, 2, "one"))
            for _ in range(args.repetitions)
        ]
        walls = [1e3 * statistics.median(row[k].wall for row in rows) for k in range(3)]
        works[name] = walls[0] / 1e3
        ratios = [
            [alone.wall / (2 * two.wall) for alone, two, _ in rows],
            [alone.wall / beside.wall for alone, _, beside in rows],
            [beside.wall / (2 * two.wall) for _, two, beside in rows],
            [alone.cpu / two.cpu for alone, two, _ in rows],
        ]
        print(
            f"{NAMES[name]:24}{''.join(f'{wall:10.2f}' for wall in walls)}   "
            f"{''.join(f'{shown(ratio):20}' for ratio in ratios)}",
            flush=True,
        )
    if "svgd" not in works:
        return
    latency, many = forked(2, messages)[0]
    bandwidth = 4 * 4_000_000 / (many - latency)
    print(f"\nmessages: {1e6 * latency:.0f} us each, {bandwidth / 1e9:.2f} GB/s")
    print("\npredicted efficiency of SVGD (64, 1e6) by columns")
    work = works["svgd"]
    for size in (2, 8, 64, 1024):
        sent = 4 * 3 * STEIN * PARAMS * (size - 1) / size**2
        step = work / size + sent / bandwidth + 5 * size * latency
        print(f"{size:6} processes: {work / (size * step):.2f}")


if __name__ == "__main__":
    main()
