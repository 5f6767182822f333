"""Bayesian neural nets by SVGD on the UCI regression sets, over their standard splits.

    python benchmarks/svgd_uci.py DATA [--sets concrete ...] [--splits 20] [--steps 2000]

DATA is a folder of ``<set>.npz`` with ``x``, ``y``, ``train_idx`` and ``test_idx``. The recipe is
that of Liu and Wang, "Stein variational gradient descent: a general purpose Bayesian inference
algorithm", 2016: 20 particles of a net with one hidden layer of 50 ReLU units (100 for protein),
y ~ N(f, 1/gamma), weights ~ N(0, 1/lambda), gamma and lambda ~ Gamma(1, rate 0.1), RMSprop steps
of 1e-3 on minibatches of 100; a tenth of the training set, at most 500, is held out, on which each
particle's gamma is set to its own precision if that raises the likelihood. Residuals and gamma are
in standardised units throughout; scores are in the units of y.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import particlevi as pvi


class Net:
    """One hidden layer, and the two log precisions, as one vector."""

    def __init__(self, dim: int, width: int):
        self.dim, self.width = dim, width
        self.sizes = [dim * width, width, width, 1, 1, 1]
        self.num_params = sum(self.sizes)

    def __call__(self, particles: Tensor, x: Tensor) -> Tensor:
        """Outputs ``[P, B]`` at inputs ``[B, dim]``."""
        w1, b1, w2, b2, _, _ = particles.split(self.sizes, 1)
        hidden = torch.relu(x @ w1.view(-1, self.dim, self.width) + b1.unsqueeze(1))
        return (hidden @ w2.unsqueeze(2)).squeeze(2) + b2

    def log_prior(self, particles: Tensor) -> Tensor:
        weights, (log_gamma, log_lambda) = particles[:, :-2], particles[:, -2:].T
        normal = 0.5 * weights.shape[1] * log_lambda
        normal = normal - 0.5 * log_lambda.exp() * weights.square().sum(1)
        gammas = log_gamma - 0.1 * log_gamma.exp() + log_lambda - 0.1 * log_lambda.exp()
        return normal + gammas

    def log_likelihood(self, particles: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        log_gamma = particles[:, -2:-1]
        return gaussian(y - self(particles, x), log_gamma)

    def init(self, num: int, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        def normal(size: int, fan_in: int) -> Tensor:
            return torch.randn(num, size, generator=generator) / math.sqrt(fan_in + 1)

        log_lambda = (10 * -torch.rand(num, 1, generator=generator).log()).log()
        w1, w2 = normal(self.sizes[0], self.dim), normal(self.width, self.width)
        zero = torch.zeros(num, 1)
        start = torch.cat([w1, zero.expand(-1, self.width), w2, zero, zero, log_lambda], 1)
        start[:, -2] = -(self(start, x[:1000]) - y[:1000]).square().mean(1).log()
        return start


def gaussian(residuals: Tensor, log_gamma: Tensor) -> Tensor:
    return 0.5 * (log_gamma - math.log(2 * math.pi) - log_gamma.exp() * residuals.square())


def split(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, width: int, steps: int
) -> tuple[float, float]:
    """Test RMSE and log-likelihood of one split."""
    mean, std = x[train].mean(0), x[train].std(0)
    shift, unit = y[train].mean(), y[train].std()
    inputs = torch.tensor((x - mean) / np.where(std > 0, std, 1), dtype=torch.float32)
    targets = torch.tensor((y - shift) / unit, dtype=torch.float32)
    held = min(500, len(train) // 10)
    order = np.random.default_rng(0).permutation(train)
    dev, fit = order[:held], order[held:]
    net = Net(x.shape[1], width)
    potential = pvi.from_log_likelihood(
        net.log_prior, net.log_likelihood, net.num_params, len(fit), vectorized=True
    )
    draws = pvi.sample(
        pvi.svgd(potential, optimizer="rmsprop"),
        data=(inputs[fit], targets[fit]),
        step_size=1e-3,
        batch_size=min(100, len(fit)),
        initial=net.init(20, inputs[fit], targets[fit], torch.Generator().manual_seed(1)),
        num_warmup=steps - 1,
        num_draws=1,
        progress=False,
    )
    particles = draws.particles[:, -1]
    residuals = targets[dev] - net(particles, inputs[dev])
    own = -residuals.square().mean(1, keepdim=True).log()
    better = gaussian(residuals, own).mean(1) > gaussian(residuals, particles[:, -2:-1]).mean(1)
    particles[better, -2] = own[better, 0]
    outputs = net(particles, inputs[test])
    rmse = float((outputs.mean(0) - targets[test]).square().mean().sqrt()) * unit
    density = gaussian(targets[test] - outputs, particles[:, -2:-1]).double()
    score = float((density.logsumexp(0) - math.log(20)).mean()) - math.log(unit)
    return rmse, score


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    print(f"{'':28} {'RMSE':>20} {'log-likelihood':>20} {'s/split':>8}")
    for name in options.sets or sorted(path.stem for path in options.data.glob("*.npz")):
        loaded = np.load(options.data / f"{name}.npz")
        width = 100 if name.startswith("protein") else 50
        began, results = time.perf_counter(), []
        splits = list(zip(loaded["train_idx"], loaded["test_idx"], strict=True))
        for train, test in splits[: options.splits]:
            results.append(split(loaded["x"], loaded["y"], train, test, width, options.steps))
        seconds = (time.perf_counter() - began) / len(results)
        values = np.array(results)
        spread = values.std(0, ddof=1) if len(values) > 1 else np.full(2, np.nan)
        error = spread / math.sqrt(len(values))
        rmse, score = (f"{m:.3f} +- {e:.3f}" for m, e in zip(values.mean(0), error, strict=True))
        print(f"{name:28} {rmse:>20} {score:>20} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
