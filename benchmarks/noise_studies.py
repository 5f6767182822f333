"""Studies of gradient noise on FashionMNIST: what is said of it, and what is found.

    python benchmarks/noise_studies.py gaussian --data ../shared/data/fashion_mnist.npz
    python benchmarks/noise_studies.py tails --data ../shared/data/fashion_mnist.npz
    python benchmarks/noise_studies.py balance --data ../shared/data/fashion_mnist.npz

Each trains one net and looks at it at the start, in the middle and at the end. Noise that is
replaced is in ``msgd_study.py``, memory in ``noise_memory.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import particlevi as pvi


def load(path: Path, num_train: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``[N, 784]`` in [0, 1] and labels, for training and the whole test file."""
    with np.load(path) as file:
        names = {key.lower(): key for key in file.files}
        arrays = [file[names[key]] for key in ("x_train", "y_train", "x_test", "y_test")]
    x, y, tx, ty = (torch.from_numpy(a) for a in arrays)
    flat = (x[:num_train].flatten(1).float() / 255, tx.flatten(1).float() / 255)
    return flat[0], y[:num_train].long(), flat[1], ty.long()


def net(width: int) -> nn.Module:
    """One hidden layer of ReLU units."""
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))


def snapshots(args: argparse.Namespace) -> Iterator[tuple[str, nn.Module, Tensor, Tensor]]:
    """One net at the start, in the middle and at the end of training."""
    x, y, _, _ = load(args.data, args.num_train)
    torch.manual_seed(0)
    module = net(args.width)
    optimiser = torch.optim.SGD(module.parameters(), lr=args.rate)
    for name, steps in (("start", 0), ("middle", args.steps // 2), ("end", args.steps // 2)):
        for _ in range(steps):
            chosen = torch.randint(len(x), (args.batch_size,))
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(x[chosen]), y[chosen]).backward()
            optimiser.step()
        yield name, module, x, y


def gaussian(args: argparse.Namespace) -> None:
    """At which batch sizes is the noise Gaussian?"""
    for name, module, x, y in snapshots(args):
        for batch_size in (8, 32, 128, 256, 1024):
            noise = pvi.noise.measure(
                module, (x, y), nn.functional.cross_entropy, batch_size=batch_size
            )
            found = noise.gaussianity(500, num_directions=20, num_bootstrap=99)
            print(f"{name}, batch size {batch_size}\n{found}", flush=True)


def tails(args: argparse.Namespace) -> None:
    """Is a tail index below 2 made of tails, or of scales?"""
    for name, module, x, y in snapshots(args):
        for batch_size in (8, 32, 128, 1024):
            noise = pvi.noise.measure(
                module, (x, y), nn.functional.cross_entropy, batch_size=batch_size
            )
            found = noise.tail_index(500, num_coordinates=1000, num_null=39)
            print(f"{name}, batch size {batch_size}\n{found}", flush=True)


def balance(args: argparse.Namespace) -> None:
    """How far from noise balance is the pair of layers?"""
    for name, module, x, y in snapshots(args):
        noise = pvi.noise.measure(module, (x, y), nn.functional.cross_entropy)
        print(f"{name}: {noise.balance()}", flush=True)


def main() -> None:
    """Run one study."""
    studies = {
        "gaussian": gaussian,
        "tails": tails,
        "balance": balance,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=sorted(studies))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--num-train", type=int, default=2000)
    args = parser.parse_args()
    studies[args.study](args)


if __name__ == "__main__":
    main()
