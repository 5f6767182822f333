"""Noise with the covariance of SGD: does it generalise as SGD does?

    python benchmarks/msgd_study.py --steps 1500 --seeds 6              # 20 minutes of one core
    python benchmarks/msgd_study.py --task CIFAR-10 --num-train 500 --steps 800 --rate 0.1 --seeds 5
    python benchmarks/msgd_study.py --read FILE.json

A net with two convolutions (11 330 weights on Fashion-MNIST), the noise of batches of 50, and equal
steps at one learning rate for SGD, the noise classes of ``pvi.msgd``, the diagonal Gaussian and
none; every seed starts all classes at the same point. One core; a class that weights all the data
pays N/b times the price of SGD. Test accuracy and its difference from SGD's, with 95 % intervals
over seeds; the training loss tells whether the nets are trained. Results are kept after every seed.

The diagonal Gaussian has the variances of the batch's gradient from the squared gradients of 100
random batches, computed anew every 10 steps, and no correlations.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _nets import conv_net, images
from _page import interval, markdown
from torch import Tensor, nn

import particlevi as pvi
from particlevi.streams import ParticleStreams

NOISES = ("sgd", "bernoulli", "fisher", "cov", "none", "diagonal")
Weights = Callable[[], Tensor]


def weights_of(
    module: nn.Module, noise: str, seed: int, num_data: int, args: argparse.Namespace
) -> Weights:
    """Draws the weights ``[N]`` of the losses of one step."""
    model = pvi.from_module(module, pvi.Categorical(), pvi.Flat(), num_data=num_data)
    masks = "none" if noise == "diagonal" else noise
    size = None if masks == "none" else args.batch_size
    estimator = pvi.msgd(model, masks, batch_size=size)
    streams = ParticleStreams(seed)
    state = estimator.init(model.init(1), streams)
    return lambda: estimator.weights(estimator.draw_noise(state, streams), num_data)[0]


def gradient(module: nn.Module, x: Tensor, y: Tensor, weights: Tensor) -> list[Tensor]:
    """Of ``(1/N) sum_k w_k f_k``; data of weight 0 cost nothing."""
    rows = weights.nonzero()[:, 0]
    losses = nn.functional.cross_entropy(module(x[rows]), y[rows], reduction="none")
    loss = (weights[rows] * losses).sum() / len(weights)
    return list(torch.autograd.grad(loss, list(module.parameters())))


class Diagonal:
    """Normal noise with the mean squares of the gradients of batches as variances."""

    def __init__(self, module: nn.Module, x: Tensor, y: Tensor, seed: int, size: int):
        self.module, self.x, self.y, self.size, self.count = module, x, y, size, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.squares: list[Tensor] = []

    def draw(self) -> list[Tensor]:
        if self.count % 10 == 0:
            found = []
            for _ in range(100):
                rows = torch.randint(len(self.x), (self.size,), generator=self.generator)
                ones = torch.ones(self.size)
                found.append(gradient(self.module, self.x[rows], self.y[rows], ones))
            columns = zip(*found, strict=True)
            self.squares = [torch.stack(own).square().mean(0) for own in columns]
        self.count += 1
        return [s.sqrt() * torch.randn(s.shape, generator=self.generator) for s in self.squares]


def look(module: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean loss and percent right."""
    loss, right = 0.0, 0
    with torch.no_grad():
        for inputs, labels in zip(x.split(1000), y.split(1000), strict=True):
            outputs = module(inputs)
            loss += float(nn.functional.cross_entropy(outputs, labels, reduction="sum"))
            right += int((outputs.argmax(1) == labels).sum())
    return loss / len(x), 100 * right / len(x)


def trained(
    noise: str, data: tuple[Tensor, ...], seed: int, args: argparse.Namespace
) -> dict[str, float]:
    """One net after all its steps."""
    x, y, x_test, y_test = data
    torch.manual_seed(seed)
    module = conv_net(args.task)
    draw = weights_of(module, noise, seed, len(x), args)
    diagonal = Diagonal(module, x, y, seed, args.batch_size)
    for _ in range(args.steps):
        slopes = gradient(module, x, y, draw())
        if noise == "diagonal":
            slopes = [g + xi for g, xi in zip(slopes, diagonal.draw(), strict=True)]
        with torch.no_grad():
            torch._foreach_sub_(list(module.parameters()), slopes, alpha=args.rate)
    loss, train = look(module, x, y)
    return {"loss": loss, "train": train, "test": look(module, x_test, y_test)[1]}


def study(args: argparse.Namespace) -> dict[str, Any]:
    data = images(args.task, args.data, args.num_train)
    keys = ("task", "num_train", "rate", "batch_size", "steps")
    result: dict[str, Any] = {key: getattr(args, key) for key in keys}
    result["found"] = {noise: [] for noise in args.noises}
    for seed in range(args.seeds):
        for noise in args.noises:
            begun = time.process_time()
            found = trained(noise, data, seed, args)
            result["found"][noise].append(found)
            spent = time.process_time() - begun
            print(seed, noise, *(f"{v:.4g}" for v in found.values()), f"{spent:.0f} s")
        if args.json:
            args.json.write_text(json.dumps(result))
    return result


def table(result: dict[str, Any]) -> str:
    found, rows = result["found"], []
    for noise, own in found.items():
        tests = [run["test"] for run in own]
        less = [run["test"] - sgd["test"] for run, sgd in zip(own, found["sgd"], strict=True)]
        loss = statistics.median(run["loss"] for run in own)
        train = statistics.mean(run["train"] for run in own)
        difference = "" if noise == "sgd" else interval(less)
        rows.append([noise, f"{loss:.2g}", f"{train:.1f}", interval(tests), difference])
    return markdown(["noise", "training loss", "train, %", "test, %", "less that of sgd"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", default="Fashion-MNIST", choices=["Fashion-MNIST", "CIFAR-10"])
    parser.add_argument("--num-train", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--noises", nargs="+", default=NOISES, choices=NOISES)
    parser.add_argument("--data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(args.read.read_text()) if args.read else study(args)
    print(table(result))


if __name__ == "__main__":
    main()
