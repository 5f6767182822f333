"""Convolutions of many particles, together or one after the other: times, and what the rule takes.

    python -m benchmarks.convolution_rule [--repetitions 5]

Energy and gradient of convolutional nets of several sizes, by ``vmap`` and by a loop over
particles, each particle with a batch of its own, beside the road that
``particlevi.potentials.convolutions.one_by_one`` takes. Medians of CPU time, interleaved, on one
thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from unittest import mock

import torch
from torch import nn

import particlevi as pvi
from examples._resnet import ResNet
from particlevi.gradients._evaluate import value_and_grad
from particlevi.potentials import module as roads
from particlevi.potentials.convolutions import one_by_one
from particlevi.typing import Batch


def lenet(inside: int, size: int, width: int) -> nn.Module:
    """Two convolutions of 5 x 5 with maxima between, and a linear head."""
    return nn.Sequential(
        nn.Conv2d(inside, width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (size // 4) ** 2, 10),
    )


NETS = {
    "LeNet, 4 channels": (lenet(1, 8, 4), 1, 8),
    "LeNet, 8 channels": (lenet(1, 16, 8), 1, 16),
    "LeNet, 6 channels": (lenet(1, 28, 6), 1, 28),
    "LeNet, 16 channels": (lenet(1, 28, 16), 1, 28),
    "LeNet, 32 channels": (lenet(3, 32, 32), 3, 32),
    "ResNet-8, 8 channels": (ResNet(depth=8, width=8), 3, 16),
    "ResNet-20, 16 channels": (ResNet(), 3, 32),
}
SIZES = [(8, 4), (32, 2), (32, 8), (32, 20), (128, 4)]


def main() -> None:
    """Time both roads for every net and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"{'net':24} {'batch':>5} {'P':>3} {'MiB':>7} {'vmap ms':>9} loop/vmap  taken")
    regrets = []
    for name, (net, channels, size) in NETS.items():
        for rows, particles in SIZES:
            potential = pvi.from_module(net, pvi.Categorical(), pvi.Normal(1.0), num_data=1000)
            data = torch.randn(particles, rows, channels, size, size)
            batch = Batch((data, torch.randint(10, (particles, rows))), per_particle=True)
            points = potential.init(particles)
            times: dict[bool, list[float]] = {False: [], True: []}
            for repetition in range(repetitions + 1):
                for road, measured in times.items():
                    with mock.patch.object(roads, "one_by_one", return_value=road) as rule:
                        began = time.process_time()
                        value_and_grad(potential, points, batch)
                        if repetition:
                            measured.append(time.process_time() - began)
            vmap, loop = (statistics.median(each) for each in times.values())
            num_bytes, device = rule.call_args.args
            taken = one_by_one(num_bytes, device)
            regrets.append((loop if taken else vmap) / min(loop, vmap))
            print(
                f"{name:24} {rows:5} {particles:3} {num_bytes / 2**20:7.2f} {1e3 * vmap:9.2f} "
                f"{loop / vmap:9.2f}  {'loop' if taken else 'vmap'}",
                flush=True,
            )
    print(
        f"Time of the road taken over the faster one: median {statistics.median(regrets):.2f}, "
        f"largest {max(regrets):.2f}"
    )


if __name__ == "__main__":
    main()
