r"""Bayesian neural nets by SVGD on the UCI regression sets, over their standard splits.

    python benchmarks/svgd_uci.py DATA --record out/uci.jsonl
    python benchmarks/svgd_uci.py DATA --record out/uci.jsonl --form non-centred --steps 20000 \
        --write docs/stein.md

DATA is a folder of ``<set>.npz`` with ``x``, ``y``, ``train_idx`` and ``test_idx``. The recipe is
that of Liu and Wang, "Stein variational gradient descent: a general purpose Bayesian inference
algorithm", 2016: 20 particles of a net with one hidden layer of 50 ReLU units (100 for protein),
y ~ N(f, 1/gamma), weights ~ N(0, 1/lambda), gamma and lambda ~ Gamma(1, rate 0.1), RMSprop steps
of 1e-3 on minibatches of 100; a tenth of the training set, at most 500, is held out, on which each
particle's gamma is set to its own precision if that raises the likelihood. Residuals and gamma are
in standardised units throughout; scores are in the units of y.

The form ``non-centred`` has the same posterior in other coordinates, the particles being
``w sqrt(lambda)`` in place of ``w``: the density of the recipe's coordinates is highest near w = 0
and infinite precision, where many steps end on a small data set.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _page import markdown, write
from torch import Tensor

import particlevi as pvi


class Net:
    """One hidden layer, and the two log precisions, as one vector."""

    def __init__(self, dim: int, width: int, centred: bool):
        self.dim, self.width, self.centred = dim, width, centred
        self.sizes = [dim * width, width, width, 1, 1, 1]
        self.num_params = sum(self.sizes)

    def __call__(self, particles: Tensor, x: Tensor) -> Tensor:
        """Outputs ``[P, B]`` at inputs ``[B, dim]``."""
        if not self.centred:
            particles = particles * (-0.5 * particles[:, -1:]).exp()
        w1, b1, w2, b2, _, _ = particles.split(self.sizes, 1)
        hidden = torch.relu(x @ w1.view(-1, self.dim, self.width) + b1.unsqueeze(1))
        return (hidden @ w2.unsqueeze(2)).squeeze(2) + b2

    def log_prior(self, particles: Tensor) -> Tensor:
        weights, (log_gamma, log_lambda) = particles[:, :-2], particles[:, -2:].T
        gammas = log_gamma - 0.1 * log_gamma.exp() + log_lambda - 0.1 * log_lambda.exp()
        squares = weights.square().sum(1)
        if not self.centred:
            return gammas - 0.5 * squares
        return gammas + 0.5 * weights.shape[1] * log_lambda - 0.5 * log_lambda.exp() * squares

    def log_likelihood(self, particles: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        log_gamma = particles[:, -2:-1]
        return gaussian(y - self(particles, x), log_gamma)

    def init(self, num: int, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        def normal(size: int, fan_in: int) -> Tensor:
            return torch.randn(num, size, generator=generator) / math.sqrt(fan_in + 1)

        drawn = (10 * -torch.rand(num, 1, generator=generator).log()).log()
        log_lambda = drawn if self.centred else torch.full_like(drawn, math.log(self.dim + 1))
        w1, w2 = normal(self.sizes[0], self.dim), normal(self.width, self.width)
        zero = torch.zeros(num, 1)
        start = torch.cat([w1, zero.expand(-1, self.width), w2, zero, zero, log_lambda], 1)
        if not self.centred:
            start[:, :-2] *= (0.5 * log_lambda).exp()
        start[:, -2] = -(self(start, x[:1000]) - y[:1000]).square().mean(1).log()
        return start


def gaussian(residuals: Tensor, log_gamma: Tensor) -> Tensor:
    return 0.5 * (log_gamma - math.log(2 * math.pi) - log_gamma.exp() * residuals.square())


class Study:
    """One data set: its potential and sampler, compiled once for all splits."""

    def __init__(self, x: np.ndarray, y: np.ndarray, num_train: int, net: Net, steps: int):
        self.x, self.y, self.net, self.steps = x, y, net, steps
        self.held = min(500, num_train // 10)
        potential = pvi.from_log_likelihood(
            self.net.log_prior,
            self.net.log_likelihood,
            self.net.num_params,
            num_train - self.held,
            vectorized=True,
        )
        self.sampler = pvi.svgd(potential, optimizer="rmsprop")

    def split(self, train: np.ndarray, test: np.ndarray) -> tuple[float, float]:
        """Test RMSE and log-likelihood of one split."""
        mean, std = self.x[train].mean(0), self.x[train].std(0)
        shift, unit = self.y[train].mean(), self.y[train].std()
        scaled = (self.x - mean) / np.where(std > 0, std, 1)
        inputs = torch.tensor(scaled, dtype=torch.float32)
        targets = torch.tensor((self.y - shift) / unit, dtype=torch.float32)
        order = np.random.default_rng(0).permutation(train)
        dev, fit = order[: self.held], order[self.held :]
        net = self.net
        draws = pvi.sample(
            self.sampler,
            data=(inputs[fit], targets[fit]),
            step_size=1e-3,
            batch_size=min(100, len(fit)),
            initial=net.init(20, inputs[fit], targets[fit], torch.Generator().manual_seed(1)),
            num_warmup=self.steps - 1,
            num_draws=1,
            compile=True,
            progress=False,
        )
        particles = draws.particles[:, -1]
        residuals = targets[dev] - net(particles, inputs[dev])
        own = -residuals.square().mean(1, keepdim=True).log()
        better = gaussian(residuals, own).mean(1) > gaussian(residuals, particles[:, -2:-1]).mean(1)
        particles[better, -2] = own[better, 0]
        outputs = net(particles, inputs[test])
        rmse = float((outputs.mean(0) - targets[test]).square().mean().sqrt() * unit)
        density = gaussian(targets[test] - outputs, particles[:, -2:-1]).double()
        score = float((density.logsumexp(0) - math.log(20)).mean()) - math.log(unit)
        return rmse, score


def table(results: list[dict[str, Any]]) -> str:
    rows = []
    kinds = ("set", "form", "steps")
    for kind in sorted({tuple(row[k] for k in kinds) for row in results}):
        same = [row for row in results if tuple(row[k] for k in kinds) == kind]
        cells = []
        for key in ("rmse", "score"):
            values = [row[key] for row in same]
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            digits = max(2, 1 - math.floor(math.log10(error))) if error else 3
            mean = statistics.mean(values)
            cells.append(f"{mean:.{digits}f} ± {error:.{digits}f}" if error else f"{mean:.3f}")
        rows.append([*map(str, kind), str(len(same)), *cells])
    return markdown(["data", "form", "steps", "splits", "test RMSE", "test log-likelihood"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--form", choices=["centred", "non-centred"], default="centred")
    parser.add_argument("--record", type=Path, help="file of results, one line each, to go on with")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = options.record.read_text() if options.record and options.record.exists() else ""
    results = [json.loads(line) for line in kept.splitlines()]
    done = {(row["set"], row["form"], row["steps"], row["split"]) for row in results}
    for name in options.sets or sorted(path.stem for path in options.data.glob("*.npz")):
        raw = np.load(options.data / f"{name}.npz")
        width = 100 if name.startswith("protein") else 50
        net = Net(raw["x"].shape[1], width, options.form == "centred")
        study = Study(raw["x"], raw["y"], raw["train_idx"].shape[1], net, options.steps)
        splits = list(zip(raw["train_idx"], raw["test_idx"], strict=True))[: options.splits]
        for number, (train, test) in enumerate(splits):
            key = {"set": name, "form": options.form, "steps": options.steps, "split": number}
            if tuple(key.values()) in done:
                continue
            rmse, score = study.split(train, test)
            results.append(key | {"rmse": rmse, "score": score})
            print(json.dumps(results[-1]), flush=True)
            if options.record:
                options.record.parent.mkdir(exist_ok=True)
                with options.record.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
    print(table(results))
    if options.write:
        write(options.write, {"uci": table(results)})


if __name__ == "__main__":
    main()
