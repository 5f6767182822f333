"""Positive-definite kernels, each with the sums that a Stein direction needs.

Every kernel works rectangular, ``k(x [P, D], y [Q, D]) -> [P, Q]``, and never forms a tensor of
size P x Q x D: squared distances come from the Gram matrix of centred points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from particlevi._checks import check_positive
from particlevi.stein.bandwidths import Bandwidth, fixed, median

__all__ = ["Kernel", "linear", "rbf", "squared_distances"]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|^2`` of ``x [P, D]`` and ``y [Q, D]`` as ``[P, Q]``, from the Gram matrix."""
    center = x.mean(0)
    x, y = x - center, y - center
    squares = x.square().sum(-1).unsqueeze(1) + y.square().sum(-1)
    return (squares - 2 * x @ y.T).clamp(min=0)


class Kernel(Protocol):
    """A kernel, and the Stein direction that it gives."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel matrix ``[P, Q]``."""
        ...

    def direction(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Attraction and repulsion ``[P, D]`` on particles with scores ``[P, D]``.

        ``sum_j k(x_j, x_i) s_j / P`` and ``sum_j grad_{x_j} k(x_j, x_i) / P``.
        """
        ...


@dataclass(frozen=True)
class rbf:
    """``k(x, y) = exp(-|x - y|^2 / b)`` with one bandwidth ``b`` for all coordinates.

    Args:
        bandwidth: a rule from ``particlevi.stein.bandwidths``, or a number. It is held constant
            in gradients.
    """

    bandwidth: Bandwidth | float = median()

    def __post_init__(self) -> None:
        if not callable(self.bandwidth):
            check_positive("bandwidth", self.bandwidth)
            object.__setattr__(self, "bandwidth", fixed(float(self.bandwidth)))

    def _bandwidth(self, distances: Tensor) -> Tensor:
        assert callable(self.bandwidth)
        return self.bandwidth(distances)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel matrix ``[P, Q]``, the bandwidth taken from the points of ``x``."""
        b = self._bandwidth(squared_distances(x, x))
        return (-squared_distances(x, y) / b).exp()

    def direction(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Attraction ``K s / P`` and repulsion ``(2/b) (x_i sum_j k_ij - sum_j k_ij x_j) / P``."""
        distances = squared_distances(x, x)
        b = self._bandwidth(distances)
        kernel = (-distances / b).exp()
        centred = x - x.mean(0)
        repulsion = 2 / b * (centred * kernel.sum(1, keepdim=True) - kernel @ centred)
        return kernel @ scores / len(x), repulsion / len(x)


@dataclass(frozen=True)
class linear:
    """``k(x, y) = x.y + 1``: controls mean and covariance, and nothing else.

    With more particles than dimensions, SVGD under this kernel matches the mean and covariance of
    a Gaussian target exactly.

    Source: Liu and Wang, "Stein variational gradient descent as moment matching", 2018.
    """

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel matrix ``[P, Q]``."""
        return x @ y.T + 1

    def direction(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Attraction ``(x x' + 1) s / P`` and repulsion ``x_i``."""
        return (x @ (x.T @ scores) + scores.sum(0)) / len(x), x
