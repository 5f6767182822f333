"""Priors that tie the parameters of a tensor together: scales that are sampled, correlations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from particlevi._checks import check_flag, check_positive
from particlevi.potentials.priors.base import Block, Scale, check_scale, describe_scale
from particlevi.typing import JSON

__all__ = ["Correlated", "Hierarchical", "Horseshoe"]


def _normal(value: Tensor, scale: Tensor) -> Tensor:
    """Log densities of ``Normal(0, scale)``."""
    return -0.5 * (value / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def _log_half_cauchy(log_value: Tensor) -> Tensor:
    """``log(2/pi) + u - log(1 + e^2u)``: of ``u = log x`` where ``x ~ HalfCauchy(1)``."""
    return math.log(2 / math.pi) + log_value - torch.nn.functional.softplus(2 * log_value)


def _draw_log_half_cauchy(*shape: int) -> Tensor:
    return (0.5 * math.pi * torch.rand(shape, dtype=torch.float64)).tan().log()


@dataclass(frozen=True)
class Hierarchical:
    """``w ~ Normal(0, tau)`` and ``log tau ~ Normal(log scale, spread)``, a tau for every tensor.

    The scale of each tensor is sampled with its weights, so that the data choose how large the
    weights of each layer are. ``log_scale`` is added to the particle, as ``prior.NAME.log_scale``.

    Source: Neal, "Bayesian learning for neural networks", 1996.

    Args:
        scale: the median of tau, one number or one per name pattern.
        spread: the standard deviation of ``log tau``.
        fan_in: as in ``Normal``; tau is then relative to the root of the fan-in.
    """

    scale: Scale = 1.0
    spread: float = 1.0
    fan_in: bool = False

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_positive("spread", self.spread)
        if float(self.spread) > torch.finfo(torch.float32).max:
            raise ValueError(f"spread must fit single precision, got {self.spread!r}.")
        check_flag("fan_in", self.fan_in)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The prior as JSON."""
        scale = describe_scale(self.scale)
        return {
            "kind": "Hierarchical",
            "scale": scale,
            "spread": self.spread,
            "fan_in": self.fan_in,
        }

    def block(self, name: str, shape: tuple[int, ...], scale: Tensor) -> Block:
        """The law of a tensor and of the logarithm of its scale."""
        median = scale[:1].log()
        spread = torch.full_like(median, self.spread)

        def log_prob(weights: Tensor, log_scale: Tensor) -> Tensor:
            density = _normal(weights, log_scale.exp()).sum(-1)
            return density + _normal(log_scale - median, spread).sum(-1)

        def sample(count: int) -> tuple[Tensor, ...]:
            log_scale = median + spread * torch.randn(count, 1).to(scale)
            return log_scale.exp() * torch.randn(count, len(scale)).to(scale), log_scale

        return Block({"log_scale": ()}, {"log_scale": ("scale", torch.exp)}, log_prob, sample)


@dataclass(frozen=True)
class Horseshoe:
    """``w_j ~ Normal(0, tau lambda_j)``, ``lambda_j ~ HalfCauchy(1)``, ``tau ~ HalfCauchy(scale)``.

    Most weights are shrunk to nearly zero and few are left as they are, without a spike at zero.
    Each tensor has a tau, each weight a lambda: the particle holds their logarithms besides, as
    ``prior.NAME.log_scale`` and ``prior.NAME.log_local``, and is twice as long. Its posterior is
    shaped like funnels: use small steps and many of them.

    Source: Carvalho, Polson and Scott, "The horseshoe estimator for sparse signals", 2010.

    Args:
        scale: of the half-Cauchy law of tau, one number or one per name pattern.
        fan_in: as in ``Normal``.
    """

    scale: Scale = 1.0
    fan_in: bool = False

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_flag("fan_in", self.fan_in)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The prior as JSON."""
        scale = describe_scale(self.scale)
        return {"kind": "Horseshoe", "scale": scale, "fan_in": self.fan_in}

    def block(self, name: str, shape: tuple[int, ...], scale: Tensor) -> Block:
        """The law of a tensor and of the logarithms of its scales."""
        log_width = scale[:1].log()

        def log_prob(weights: Tensor, log_scale: Tensor, log_local: Tensor) -> Tensor:
            density = _normal(weights, (log_scale + log_local).exp()).sum(-1)
            density = density + _log_half_cauchy(log_local).sum(-1)
            return density + _log_half_cauchy(log_scale - log_width).sum(-1)

        def sample(count: int) -> tuple[Tensor, ...]:
            log_scale = log_width + _draw_log_half_cauchy(count, 1).to(scale)
            log_local = _draw_log_half_cauchy(count, len(scale)).to(scale)
            noise = torch.randn(count, len(scale)).to(scale)
            return (log_scale + log_local).exp() * noise, log_scale, log_local

        return Block(
            {"log_scale": (), "log_local": shape},
            {"log_scale": ("scale", torch.exp), "log_local": ("local", torch.exp)},
            log_prob,
            sample,
        )


@dataclass(frozen=True, eq=False)
class Correlated:
    """``v ~ Normal(0, covariance)`` for every consecutive stretch ``v [K]`` of a tensor.

    A tensor whose last dimensions hold K numbers is so many independent draws: with the covariance
    ``[9, 9]`` of a 3 x 3 window, the filters of a convolution are smooth.

    Source: Fortuin, Garriga-Alonso, Ober, Wenzel, Raetsch, Turner, van der Wilk and Aitchison,
    "Bayesian neural network priors revisited", 2022.

    Args:
        covariance: ``[K, K]``, symmetric and positive definite; K divides the size of each tensor.
        fan_in: divide the scale of weights by the root of their fan-in.
    """

    covariance: Tensor
    fan_in: bool = False
    scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_flag("fan_in", self.fan_in)
        found: Any = self.covariance
        square = isinstance(found, Tensor) and found.ndim == 2 and found.shape[0] == found.shape[1]
        if not square or not found.is_floating_point() or not torch.isfinite(found).all():
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"covariance must be a finite matrix [K, K], got {got}.")
        symmetric = torch.allclose(found, found.T, rtol=1e-5)
        if not symmetric or int(torch.linalg.cholesky_ex(found)[1]):
            raise ValueError("covariance must be symmetric and positive definite, and is not.")
        object.__setattr__(self, "covariance", found.detach().clone())

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The prior as JSON."""
        return {"kind": "Correlated", "covariance": self.covariance.tolist(), "fan_in": self.fan_in}

    def block(self, name: str, shape: tuple[int, ...], scale: Tensor) -> Block:
        """The law of a tensor."""
        size = len(self.covariance)
        if len(scale) % size:
            raise ValueError(
                f"The covariance [{size}, {size}] does not divide the tensor {name!r} "
                f"{list(shape)}: choose the tensors by name pattern."
            )
        factor = torch.linalg.cholesky(self.covariance.double())
        inverse = torch.linalg.inv(factor).to(scale)
        offset = -float(factor.diagonal().log().sum()) - 0.5 * size * math.log(2 * math.pi)
        width = scale[:1]

        def log_prob(weights: Tensor) -> Tensor:
            rows = weights.reshape(len(weights), -1, size) / width
            white = rows @ inverse.T
            count = rows.shape[1]
            total: Tensor = -0.5 * white.square().sum((1, 2)) + count * offset
            return total - count * size * width.log().squeeze(0)

        def sample(count: int) -> tuple[Tensor, ...]:
            rows = torch.randn(count, len(scale) // size, size, dtype=torch.float64) @ factor.T
            return (rows.reshape(count, -1).to(scale) * width,)

        return Block({}, {}, log_prob, sample)
