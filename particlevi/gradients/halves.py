"""A gradient estimate together with its variance, from the two halves of its batch.

A batch of B data is cut into halves of ``B_1`` and ``B_2`` data. With the estimates ``g_1`` and
``g_2`` on each, the estimate on the batch and an unbiased estimate of its variance are::

    g = (B_1 g_1 + B_2 g_2) / B,        v = (B_1 B_2 / B^2) (g_1 - g_2)^2

for data drawn with replacement; for a random subset of N data v is too large by ``N / (N - B)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.typing import Batch, Gradient

__all__ = ["Halves", "in_halves"]


class Halves(NamedTuple):
    """An estimate, and one of its variance per parameter ``[P, D]``, of one degree of freedom."""

    found: Gradient
    variance: Tensor


def in_halves(estimate: Callable[[Batch | None], Gradient], batch: Batch | None) -> Halves:
    """The estimate on a batch and its variance, which is 0 without data and on a complete batch.

    It sees the noise of the batch, not that of masks or other random numbers of the estimator,
    which both halves share.

    Raises:
        ValueError: a batch of one datum.
    """
    axis = 1 if batch is not None and batch.per_particle else 0
    size = 0 if batch is None else pytree.tree_leaves(batch.data)[0].shape[axis]
    if batch is None or batch.complete:
        found = estimate(batch)
        return Halves(found, found.gradient.new_zeros(found.gradient.shape))
    if size < 2:
        raise ValueError(
            "The noise of a gradient is estimated from the two halves of its batch, got a batch of "
            "one datum: give batch_size=2 or more, or gradient_noise a number."
        )
    cut = size // 2

    def part(start: int, stop: int) -> Gradient:
        data = pytree.tree_map(lambda leaf: leaf.narrow(axis, start, stop - start), batch.data)
        scale = None if batch.scale is None else batch.scale * (size / (stop - start))
        return estimate(Batch(data, batch.per_particle, scale))

    first, second = part(0, cut), part(cut, size)
    share = cut / size
    found = Gradient(*(share * a + (1 - share) * b for a, b in zip(first, second, strict=True)))
    return Halves(found, share * (1 - share) * (first.gradient - second.gradient).square())
