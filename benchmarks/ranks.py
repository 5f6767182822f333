"""How much of several processes a run gets: efficiency, and a model of its cost.

    python -m benchmarks.ranks [--repetitions 5]

One thread per process, so that two processes have twice the machine of one. A run in one process is
timed against one over two with the same particles, in turn; efficiency is the ratio of times over
two. The cost of a step is then modelled as

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
from typing import Any

import torch
import torch.distributed as dist

import particlevi as pvi
from particlevi.distributed import Peers
from tests.processes import forked

CHAINS, CHAIN_STEPS = 16, 300
STEIN, PARAMS, STEIN_STEPS = 64, 1_000_000, 4


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


def chains(number: int) -> float:
    """Seconds of a run of chains."""
    potential, data = net(100, 2)
    run = {"num_particles": CHAINS, "num_draws": CHAIN_STEPS // 10, "thin": 10, "seed": 0}
    began = time.perf_counter()
    pvi.sample(pvi.sghmc(potential), data, batch_size=64, step_size=1e-4, progress=False, **run)
    return time.perf_counter() - began


def stein(number: int) -> float:
    """Seconds of steps of SVGD with a million parameters."""
    potential, data = net(966, 2)
    start = 0.01 * torch.randn(STEIN, potential.num_params)
    run = {"initial": start, "num_draws": 1, "thin": STEIN_STEPS, "seed": 0}
    keep = pvi.storage.InMemory(keep=torch.arange(10))
    began = time.perf_counter()
    pvi.sample(
        pvi.svgd(potential), data, batch_size=64, step_size=1e-4, progress=False, store=keep, **run
    )
    return time.perf_counter() - began


def warmed(number: int, job: Any) -> float:
    """A second run, after one that has imported and allocated."""
    job(number)
    if dist.get_world_size() > 1:
        dist.barrier()
    return float(job(number))


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


def main() -> None:
    """Time, and print tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=5)
    number = parser.parse_args().repetitions
    print("what                    1 process [s]   2 processes [s]   efficiency [range]")
    medians = {}
    for name, job in (("16 chains, D = 16 701", chains), ("SVGD (64, 1e6)", stein)):
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(number):
            for size in (1, 2):
                times[size].append(max(forked(size, partial(warmed, job=job)).values()))
        ratios = [a / (2 * b) for a, b in zip(times[1], times[2], strict=True)]
        middle = {size: statistics.median(found) for size, found in times.items()}
        medians[name] = middle
        print(
            f"{name:24}{middle[1]:10.2f}{middle[2]:17.2f}{statistics.median(ratios):15.2f}"
            f" [{min(ratios):.2f}, {max(ratios):.2f}]",
            flush=True,
        )
    latency, many = forked(2, messages)[0]
    bandwidth = 4 * 4_000_000 / (many - latency)
    print(f"\nmessages: {1e6 * latency:.0f} us each, {bandwidth / 1e9:.2f} GB/s")
    print("\npredicted efficiency of SVGD (64, 1e6) by columns")
    work = medians["SVGD (64, 1e6)"][1] / STEIN_STEPS
    for size in (2, 8, 64, 1024):
        sent = 4 * 3 * STEIN * PARAMS * (size - 1) / size**2
        step = work / size + sent / bandwidth + 5 * size * latency
        print(f"{size:6} processes: {work / (size * step):.2f}")


if __name__ == "__main__":
    main()
