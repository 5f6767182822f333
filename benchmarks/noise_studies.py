"""Studies of gradient noise on FashionMNIST: what is said of it, and what is found.

    python benchmarks/noise_studies.py generalise --data ../shared/data/fashion_mnist.npz
    python benchmarks/noise_studies.py gaussian --data ../shared/data/fashion_mnist.npz
    python benchmarks/noise_studies.py tails --data ../shared/data/fashion_mnist.npz
    python benchmarks/noise_studies.py balance --data ../shared/data/fashion_mnist.npz
    python benchmarks/noise_studies.py cost

``generalise``: test accuracy after equal steps of SGD, of noise of the same covariance and of none,
1000 training images, mean and standard error over seeds. The others train one net and look at it at
the start, in the middle and at the end.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import particlevi as pvi

NOISES = ("sgd", "cov", "fisher", "bernoulli", "sparse_cov", "none")


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


def generalise(args: argparse.Namespace) -> None:
    """Noise of the same covariance: does it generalise as SGD does?"""
    x, y, tx, ty = load(args.data, 1000)
    torch.manual_seed(0)
    model = pvi.from_module(net(args.width), pvi.Categorical(), pvi.Flat(), num_data=1000)
    start = model.init(args.seeds)
    rows = {}
    for noise in NOISES:
        begun = time.perf_counter()
        draws = pvi.sample(
            pvi.sgd(pvi.msgd(model, noise, batch_size=args.batch_size)),
            (x, y),
            step_size=args.rate / 1000,
            initial=start,
            num_warmup=args.steps - 1,
            num_draws=1,
            progress=False,
        )
        theta = draws.particles[:, -1]
        right = []
        for inputs, labels in ((x, y), (tx, ty)):
            outputs = model.outputs(theta, pvi.typing.Batch((inputs,)))
            right.append((outputs.argmax(-1) == labels).double().mean(1))
        rows[noise] = right[1]
        gap = right[1] - rows["sgd"]
        print(
            f"{noise:>14}: train {float(right[0].mean()):.4f}, test {float(right[1].mean()):.4f} "
            f"+- {float(right[1].std()) / args.seeds**0.5:.4f}, less sgd {float(gap.mean()):+.4f} "
            f"+- {float(gap.std()) / args.seeds**0.5:.4f}  ({time.perf_counter() - begun:.0f} s)",
            flush=True,
        )


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


def cost(args: argparse.Namespace) -> None:
    """Time and memory of each estimator at D = 1e6, N = 1e4."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(784, 1258), nn.ReLU(), nn.Linear(1258, 10))
    x, y = torch.randn(10_000, 784), torch.randint(10, (10_000,))
    noise = pvi.noise.measure(module, (x, y), nn.functional.cross_entropy, batch_size=128)
    begun = time.perf_counter()
    for _ in noise.per_sample():
        pass
    one = time.perf_counter() - begun
    print(f"D = {noise.num_params}: a pass of per-sample gradients {one:.1f} s", flush=True)
    for name in args.only:
        begun = time.perf_counter()
        getattr(noise, name)()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        passes = (time.perf_counter() - begun) / one
        print(f"{name}: {passes:.1f} passes, peak of the process {peak:.2f} GB", flush=True)


def main() -> None:
    """Run one study."""
    studies = {
        "generalise": generalise,
        "gaussian": gaussian,
        "tails": tails,
        "balance": balance,
        "cost": cost,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=sorted(studies))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--num-train", type=int, default=2000)
    parser.add_argument("--only", nargs="+", default=["tail_index", "balance", "gaussianity"])
    args = parser.parse_args()
    studies[args.study](args)


if __name__ == "__main__":
    main()
