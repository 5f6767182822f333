"""Laws with known moments, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import particlevi as pvi
from particlevi.potentials.potential import ModelPotential

DTYPE = torch.float64


class Target(NamedTuple):
    """A potential whose law is known.

    Attributes:
        potential: whose density is to be sampled.
        mean: of the law, ``[D]``.
        covariance: of the law, ``[D, D]``.
        sample: ``(S, generator) -> [S, D]``: independent draws of the law itself.
        data: of the potential, None for a density without data.
    """

    potential: ModelPotential
    mean: Tensor
    covariance: Tensor
    sample: Callable[[int, torch.Generator], Tensor]
    data: Any = None


def normal(mean: Tensor, covariance: Tensor) -> Target:
    """``Normal(mean, covariance)``, normalised."""
    precision = torch.linalg.inv(covariance)
    constant = 0.5 * torch.logdet(2 * math.pi * covariance)

    def log_density(particles: Tensor) -> Tensor:
        offset = particles - mean.to(particles)
        return -0.5 * ((offset @ precision.to(particles)) * offset).sum(-1) - constant

    return Target(
        pvi.from_log_density(log_density, len(mean), vectorized=True, dtype=DTYPE),
        mean,
        covariance,
        _normal_draws(mean, covariance),
    )


def gaussian(dim: int = 2, scale: float = 1.0) -> Target:
    """``Normal(0, scale^2 I)``."""
    return normal(torch.zeros(dim, dtype=DTYPE), scale**2 * torch.eye(dim, dtype=DTYPE))


def correlated(dim: int = 3, correlation: float = 0.8) -> Target:
    """Unit variances, covariance ``correlation^|i-j|``, mean ``1, 2, ..., D``."""
    lag = (torch.arange(dim).unsqueeze(1) - torch.arange(dim)).abs()
    return normal(torch.arange(1.0, dim + 1, dtype=DTYPE), correlation ** lag.to(DTYPE))


def ill_conditioned(dim: int = 4, condition: float = 1e4) -> Target:
    """Mean zero, independent coordinates, variances from 1 down to ``1 / condition``."""
    variances = torch.logspace(0, -math.log10(condition), dim, dtype=DTYPE)
    return normal(torch.zeros(dim, dtype=DTYPE), variances.diag())


def mixture(separation: float = 4.0, weight: float = 0.3, dim: int = 2) -> Target:
    """``weight Normal(-a, I) + (1 - weight) Normal(a, I)`` with ``a = separation / 2 e_1``."""
    a = torch.zeros(dim, dtype=DTYPE)
    a[0] = separation / 2

    def log_density(particles: Tensor) -> Tensor:
        shift = a.to(particles)
        left = -0.5 * (particles + shift).square().sum(-1) + math.log(weight)
        right = -0.5 * (particles - shift).square().sum(-1) + math.log(1 - weight)
        return torch.logaddexp(left, right) - 0.5 * dim * math.log(2 * math.pi)

    def sample(size: int, generator: torch.Generator) -> Tensor:
        left = torch.rand(size, 1, generator=generator, dtype=DTYPE) < weight
        noise = torch.randn(size, dim, generator=generator, dtype=DTYPE)
        return noise + torch.where(left, -a, a)

    return Target(
        pvi.from_log_density(log_density, dim, vectorized=True, dtype=DTYPE),
        (1 - 2 * weight) * a,
        torch.eye(dim, dtype=DTYPE) + 4 * weight * (1 - weight) * torch.outer(a, a),
        sample,
    )


def funnel(dim: int = 3, scale: float = 1.0) -> Target:
    """Neal's funnel: ``v ~ Normal(0, scale^2)``, the others ``Normal(0, exp(v))``.

    Source: Neal, "Slice sampling", 2003 (there with scale 3).
    """

    def log_density(particles: Tensor) -> Tensor:
        v, x = particles[..., 0], particles[..., 1:]
        outer = -0.5 * (v / scale).square() - math.log(scale)
        inner = -0.5 * x.square().sum(-1) * (-v).exp() - 0.5 * (dim - 1) * v
        return outer + inner - 0.5 * dim * math.log(2 * math.pi)

    def sample(size: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(size, dim, generator=generator, dtype=DTYPE)
        v = scale * noise[:, :1]
        return torch.cat([v, (0.5 * v).exp() * noise[:, 1:]], dim=1)

    variances = torch.full((dim,), math.exp(scale**2 / 2), dtype=DTYPE)
    variances[0] = scale**2
    return Target(
        pvi.from_log_density(log_density, dim, vectorized=True, dtype=DTYPE),
        torch.zeros(dim, dtype=DTYPE),
        variances.diag(),
        sample,
    )


def conjugate_mean(
    num_data: int = 100, dim: int = 1, noise: float = 1.0, prior: float = 2.0, seed: int = 0
) -> Target:
    """``x_n ~ Normal(theta, noise^2 I)``, ``theta ~ Normal(0, prior^2 I)``."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 + noise * torch.randn(num_data, dim, generator=generator, dtype=DTYPE)
    precision = num_data / noise**2 + 1 / prior**2
    mean = x.sum(0) / noise**2 / precision
    covariance = torch.eye(dim, dtype=DTYPE) / precision

    def log_prior(particles: Tensor) -> Tensor:
        return _log_normal(particles, prior).sum(-1)

    def log_likelihood(particles: Tensor, batch: Tensor) -> Tensor:
        return _log_normal(batch - particles.unsqueeze(1), noise).sum(-1)

    potential = pvi.from_log_likelihood(
        log_prior, log_likelihood, dim, num_data, vectorized=True, dtype=DTYPE
    )
    return Target(potential, mean, covariance, _normal_draws(mean, covariance), x)


def conjugate_regression(
    num_data: int = 50, dim: int = 3, noise: float = 0.5, prior: float = 1.0, seed: int = 0
) -> Target:
    """``y_n ~ Normal(x_n . theta, noise^2)``, ``theta ~ Normal(0, prior^2 I)``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_data, dim, generator=generator, dtype=DTYPE)
    truth = torch.linspace(-1, 1, dim, dtype=DTYPE)
    y = x @ truth + noise * torch.randn(num_data, generator=generator, dtype=DTYPE)
    precision = x.T @ x / noise**2 + torch.eye(dim, dtype=DTYPE) / prior**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ x.T @ y / noise**2

    def log_prior(particles: Tensor) -> Tensor:
        return _log_normal(particles, prior).sum(-1)

    def log_likelihood(particles: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        fitted = (inputs * particles.unsqueeze(1)).sum(-1)
        return _log_normal(targets - fitted, noise)

    potential = pvi.from_log_likelihood(
        log_prior, log_likelihood, dim, num_data, vectorized=True, dtype=DTYPE
    )
    return Target(potential, mean, covariance, _normal_draws(mean, covariance), (x, y))


def _log_normal(value: Tensor, scale: float) -> Tensor:
    return -0.5 * (value / scale).square() - math.log(scale) - 0.5 * math.log(2 * math.pi)


def _normal_draws(mean: Tensor, covariance: Tensor) -> Callable[[int, torch.Generator], Tensor]:
    root = torch.linalg.cholesky(covariance)

    def sample(size: int, generator: torch.Generator) -> Tensor:
        return mean + torch.randn(size, len(mean), generator=generator, dtype=DTYPE) @ root.T

    return sample
