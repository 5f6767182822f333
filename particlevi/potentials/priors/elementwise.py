"""Priors under which parameters are independent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from particlevi._checks import check_flag
from particlevi.potentials.priors.base import (
    Mean,
    Scale,
    check_mean,
    check_scale,
    describe_mean,
    describe_scale,
)
from particlevi.typing import JSON

__all__ = ["Flat", "Laplace", "Normal"]


@dataclass(frozen=True)
class _LocationScale:
    scale: Scale = 1.0
    fan_in: bool = False
    mean: Mean = 0.0

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_flag("fan_in", self.fan_in)
        check_mean(self.mean)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The prior as JSON."""
        return {
            "kind": type(self).__name__,
            "scale": describe_scale(self.scale),
            "fan_in": self.fan_in,
            "mean": describe_mean(self.mean),
        }


@dataclass(frozen=True)
class Normal(_LocationScale):
    """``w ~ Normal(mean, scale)``.

    Args:
        scale: the standard deviation, or one per name pattern, as in
            ``{"*.weight": 0.5, "*": 1.0}`` (shell patterns; the first that matches counts).
        fan_in: divide the scale of weights (two or more dimensions) by the root of their fan-in,
            so that the prior of the outputs does not grow with the width. The fan-in is the number
            of weights that enter one unit; that of an embedding is 1, and strides do not count.
        mean: one number, or numbers or tensors per name pattern, 0 for names that none matches;
            a ``state_dict`` centres the prior at trained weights.

    Examples:
        >>> float(Normal(scale=2.0).elementwise(torch.tensor(2.0)).variance)
        4.0
    """

    def elementwise(self, scale: Tensor, mean: Tensor | None = None) -> Any:
        """``Normal(mean, scale)``."""
        mean = scale.new_zeros(()) if mean is None else mean
        return torch.distributions.Normal(mean, scale, validate_args=False)


@dataclass(frozen=True)
class Laplace(_LocationScale):
    """``w ~ Laplace(mean, scale)``; its standard deviation is ``sqrt(2) scale``.

    Args:
        scale: the scale, or one per name pattern, as in ``Normal``.
        fan_in: as in ``Normal``.
        mean: as in ``Normal``.
    """

    def elementwise(self, scale: Tensor, mean: Tensor | None = None) -> Any:
        """``Laplace(mean, scale)``."""
        mean = scale.new_zeros(()) if mean is None else mean
        return torch.distributions.Laplace(mean, scale, validate_args=False)


class _Improper:
    """The density 1 everywhere, which has no draws."""

    batch_shape = torch.Size()

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero, with a gradient of zero."""
        return 0.0 * value


@dataclass(frozen=True)
class Flat:
    """``p(w) = 1``: improper, a density that has no integral.

    The posterior is proper only if the likelihood alone makes it so: with more parameters than
    data, or with layers that can trade their scales, as in most neural nets, it is not, and chains
    wander off without an end. There are no draws of it, so particles start elsewhere.
    """

    scale: ClassVar[float] = 1.0
    fan_in: ClassVar[bool] = False
    mean: ClassVar[float] = 0.0

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The prior as JSON."""
        return {"kind": "Flat"}

    def elementwise(self, scale: Tensor, mean: Tensor | None = None) -> Any:
        """The constant density."""
        return _Improper()
