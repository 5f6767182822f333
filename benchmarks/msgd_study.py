"""Noise with the covariance of SGD: does it generalise as SGD does?

    python benchmarks/msgd_study.py --device cuda --task Fashion-MNIST
    python benchmarks/msgd_study.py --device cuda --task CIFAR-10
    python benchmarks/msgd_study.py --read FILE.json

1000 training images, a net with two convolutions (11 330 weights on Fashion-MNIST), the noise of
batches of 50, and equal steps at one learning rate for SGD, the noise classes of ``pvi.msgd``, the
diagonal Gaussian and none; every seed starts all classes at the same point. The number of steps is
what fits into ``--seconds``. Test accuracy and its difference from SGD's, with 95 % intervals over
seeds.

The diagonal Gaussian has the variances of the batch's gradient, ``diag F / b``, from the squared
gradients of 100 random batches, computed anew every 10 steps, and no correlations.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _nets import conv_net, images, synchronize
from _page import markdown
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import particlevi as pvi
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

MASKS = ("sgd", "fisher", "cov", "bernoulli", "sparse_fisher", "sparse_cov", "none")
NOISES = (*MASKS, "diagonal")


@dataclass
class Descent:
    """Seeds of one class of noise, side by side ``[P, D]``."""

    noise: str
    model: Any
    theta: Tensor
    data: tuple[Tensor, Tensor]
    args: argparse.Namespace
    squares: Tensor | None = None
    count: int = 0
    streams: Any = field(init=False)
    estimator: Any = field(init=False)

    def __post_init__(self) -> None:
        noise = "none" if self.noise == "diagonal" else self.noise
        size = None if noise == "none" else self.args.batch_size
        self.estimator = pvi.msgd(self.model, noise, batch_size=size)
        self.streams = ParticleStreams(1, device=self.theta.device)
        self.generator = torch.Generator(self.theta.device).manual_seed(2)

    def step(self) -> None:
        state = self.estimator.init(self.theta, self.streams)
        drawn = self.estimator.draw_noise(state, self.streams)
        found = self.estimator(state, self.theta, Batch(self.data), drawn)
        slope = found.gradient / len(self.data[0])
        if self.noise == "diagonal":
            if self.count % 10 == 0:
                self.squares = self.batch_squares()
            assert self.squares is not None
            normal = torch.randn(slope.shape, generator=self.generator, device=slope.device)
            slope = slope + self.squares.sqrt() * normal
        self.theta = self.theta - self.args.rate * slope
        self.count += 1

    def batch_squares(self) -> Tensor:
        """The mean square of the gradients of batches, ``[P, D]``."""
        x, y = self.data

        def loss(theta: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
            own = self.model.layout.unravel(theta)
            outputs = functional_call(self.args.module, own, (inputs,))
            return nn.functional.cross_entropy(outputs, labels)

        slopes = vmap(vmap(grad(loss), in_dims=(None, 0, 0)), in_dims=(0, None, None))
        total, parts = torch.zeros_like(self.theta), 5
        for _ in range(parts):
            shape = (100 // parts, self.args.batch_size)
            rows = torch.randint(len(x), shape, generator=self.generator, device=x.device)
            total += slopes(self.theta, x[rows], y[rows]).square().mean(1)
        return total / parts


def accuracies(descent: Descent, x: Tensor, y: Tensor) -> list[float]:
    """Percent, of every seed."""
    right = torch.zeros(len(descent.theta), device=x.device)
    with torch.no_grad():
        for inputs, labels in zip(x.split(500), y.split(500), strict=True):
            found = descent.model.outputs(descent.theta, Batch((inputs,)))
            right += (found.argmax(-1) == labels).sum(1)
    return (100 * right / len(x)).tolist()


def study(args: argparse.Namespace) -> dict[str, Any]:
    device = args.device
    x, y, x_test, y_test = (part.to(device) for part in images(args.task, args.data, 1000))
    if args.quick:
        x, y, x_test, y_test = x[:100], y[:100], x_test[:500], y_test[:500]
    starts = []
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        module = conv_net(args.task).to(device)
        starts.append(nn.utils.parameters_to_vector(module.parameters()).detach())
    args.module = module
    model = pvi.from_module(module, pvi.Categorical(), pvi.Flat(), num_data=len(x))
    start = torch.stack(starts)

    def made(noise: str) -> Descent:
        return Descent(noise, model, start.clone(), (x, y), args)

    spent = 0.0
    for noise in args.noises:
        trial = made(noise)
        for k in range(12):
            if k == 2:
                synchronize(device)
                begun = time.perf_counter()
            trial.step()
        synchronize(device)
        spent += (time.perf_counter() - begun) / 10
    steps = min(args.steps, max(2, int(args.seconds / spent)))
    print(f"{args.task}: {steps} steps", flush=True)
    found = {}
    for noise in args.noises:
        descent = made(noise)
        for _ in range(steps):
            descent.step()
        pair = (accuracies(descent, x, y), accuracies(descent, x_test, y_test))
        found[noise] = {"train": pair[0], "test": pair[1]}
        print(noise, *(f"{statistics.mean(own):.2f}" for own in pair), flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    settings = {key: getattr(args, key) for key in ("task", "rate", "batch_size", "seeds")}
    return {"steps": steps, "device": name, **settings, "found": found}


def interval(values: list[float]) -> str:
    """Mean and half the width of Student's 95 % interval."""
    t = stats.t.ppf(0.975, len(values) - 1)
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def table(result: dict[str, Any]) -> str:
    found, rows = result["found"], []
    for noise, own in found.items():
        pairs = zip(own["test"], found["sgd"]["test"], strict=True)
        less = [a - b for a, b in pairs]
        rows.append(
            [
                noise,
                f"{statistics.mean(own['train']):.2f}",
                interval(own["test"]),
                "" if noise == "sgd" else interval(less),
            ]
        )
    return markdown(["noise", "train, %", "test, %", "test less that of sgd"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", default="Fashion-MNIST", choices=["Fashion-MNIST", "CIFAR-10"])
    parser.add_argument("--quick", action="store_true", help="100 images, to see that it runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--noises", nargs="+", default=NOISES, choices=NOISES)
    parser.add_argument("--data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path)
    args = parser.parse_args()
    if args.device == "cuda":
        torch.set_float32_matmul_precision("high")
    result = json.loads(args.read.read_text()) if args.read else study(args)
    if args.json:
        args.json.write_text(json.dumps(result))
    print(table(result))


if __name__ == "__main__":
    main()
