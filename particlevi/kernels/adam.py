"""Adam's direction as a pure function, for witnesses and for the particles of Stein methods."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Moments", "adam"]


class Moments(NamedTuple):
    """Moving averages of a gradient and of its square, and the number of updates, 0-d."""

    first: Tensor
    second: Tensor
    num_updates: Tensor


def adam(gradient: Tensor, moments: Moments) -> tuple[Tensor, Moments]:
    """``m / (sqrt(v) + 1e-8)``, both without their bias towards 0, and the moments after.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
    """
    count = moments.num_updates + 1
    first = 0.9 * moments.first + 0.1 * gradient
    second = 0.999 * moments.second + 0.001 * gradient.square()
    spread = (second / (1 - 0.999**count)).sqrt() + 1e-8
    return first / (1 - 0.9**count) / spread, Moments(first, second, count)
