"""An estimate together with its variance, from the two halves of its batch.

A batch of B data is cut into halves of ``B_1`` and ``B_2`` data. With the estimates ``g_1`` and
``g_2`` on each, the estimate on the batch and an unbiased estimate of its variance are::

    g = (B_1 g_1 + B_2 g_2) / B,        v = (B_1 B_2 / B^2) (g_1 - g_2)^2

for data drawn with replacement; for a random subset of N data it is ``(1 - B/N) v``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.typing import Batch, Gradient

__all__ = ["Halves", "Parted", "in_halves", "parted"]


class Halves(NamedTuple):
    """An estimate, and the variances of its gradient ``[P, D]`` and of its potential ``[P]``.

    The variances are estimates of one degree of freedom.
    """

    found: Gradient
    variance: Gradient


class Parted(NamedTuple):
    """An estimate, and the difference ``[P, ...]`` of those on the halves of its batch.

    ``sqrt(factor) difference`` has mean 0 and the covariance of the estimate.
    """

    found: Gradient
    difference: Gradient
    factor: float

    @property
    def halves(self) -> Halves:
        """With variances."""
        squares = (self.factor * value.square() for value in self.difference)
        return Halves(self.found, Gradient(*squares))

    @property
    def noise(self) -> Tensor:
        """Of mean 0 and the covariance of the gradient, ``[P, D]``."""
        return math.sqrt(self.factor) * self.difference.gradient


def in_halves(
    estimate: Callable[[Batch | None], Gradient], batch: Batch | None, num_data: int | None
) -> Halves:
    """The estimate on a batch and its variance; see ``parted``."""
    return parted(estimate, batch, num_data).halves


def parted(
    estimate: Callable[[Batch | None], Gradient], batch: Batch | None, num_data: int | None
) -> Parted:
    """The estimate on a batch and its halves' difference, 0 without data and on all of them.

    It sees the noise of the batch, not that of masks or other random numbers of the estimator,
    which both halves share.

    Args:
        estimate: the estimate on a part of the batch.
        batch: what is halved.
        num_data: N, for batches whose data are drawn without replacement.

    Raises:
        ValueError: a batch of one datum.
    """
    if batch is None or batch.law == "all":
        found = estimate(batch)
        return Parted(found, Gradient(*(torch.zeros_like(value) for value in found)), 0.0)
    axis, size = 1 if batch.per_particle else 0, batch.size
    if size < 2:
        raise ValueError(
            "The noise of a gradient is estimated from the two halves of its batch, got a batch of "
            "one datum: give batch_size=2 or more, or gradient_noise a number."
        )
    cut = size // 2

    def part(start: int, stop: int) -> Gradient:
        data = pytree.tree_map(lambda leaf: leaf.narrow(axis, start, stop - start), batch.data)
        scale = None if batch.scale is None else batch.scale * (size / (stop - start))
        return estimate(batch._replace(data=data, scale=scale))

    first, second = part(0, cut), part(cut, size)
    share = cut / size
    factor = share * (1 - share)
    if batch.law not in (None, "independent") and num_data is not None:
        factor *= 1 - size / num_data
    pairs = list(zip(first, second, strict=True))
    return Parted(
        Gradient(*(share * a + (1 - share) * b for a, b in pairs)),
        Gradient(*(a - b for a, b in pairs)),
        factor,
    )
