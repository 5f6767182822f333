"""Sums over the particles of one process, exact in any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BITS", "Here", "on_grid"]

BITS = 40


class Here:
    """A ``World`` in which all particles are here."""

    def share(self, num_particles: int) -> range:
        """All particles."""
        return range(num_particles)

    def grid(self, values: Tensor, bits: int = BITS) -> Tensor:
        """``[P, ...]`` in float64, rounded to so many bits below the largest over particles."""
        return on_grid(values, values.abs().amax(0), bits)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over particles of ``[P, ...]``, ``[...]``."""
        return self.grid(values).sum(0).to(values)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over particles of ``[P, ...]``, ``[...]``."""
        return self.sum(values) / len(values)

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors."""
        return list(tensors)


def on_grid(values: Tensor, largest: Tensor, bits: int) -> Tensor:
    """``values`` in float64, rounded to multiples of ``2^-bits`` times a power of two.

    That power is the next above ``largest``, so that sums of up to ``2^(53 - bits)`` of them are
    exact: their order, and who adds which of them, does not matter.
    """
    whole = torch.where(torch.isfinite(largest) & (largest > 0), largest, 1.0).double()
    unit = torch.ldexp(torch.ones_like(whole), torch.frexp(whole).exponent - bits)
    return (values.double() / unit).round() * unit
