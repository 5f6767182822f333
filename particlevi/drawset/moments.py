"""Mean and variance over the draws of a run, where the draws are not kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Moments", "RunningMoments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Of every parameter of every chain, in float64.

    Attributes:
        count: T, the draws that they are of.
        mean: ``[P, D]``.
        variance: ``[P, D]``, with T - 1 in the denominator.
    """

    count: int
    mean: Tensor
    variance: Tensor

    def chains(self, rows: Any) -> Moments:
        """Those of some chains."""
        return Moments(self.count, self.mean[rows], self.variance[rows])


_BLOCK = 2**20


class RunningMoments:
    """Moments that take one draw after the other, by Welford's update.

    With the n-th draw x, ``d = x - mean``, ``mean += d / n`` and ``squares += d (x - mean)``.

    Args:
        num_particles, num_params: P and D.
        device: of the particles.
    """

    def __init__(self, num_particles: int, num_params: int, device: torch.device):
        shape = (num_particles, num_params)
        self.count: int = 0
        self.mean: Tensor = torch.zeros(shape, dtype=torch.float64, device=device)
        self.squares: Tensor = torch.zeros(shape, dtype=torch.float64, device=device)

    def update(self, position: Tensor) -> None:
        """A draw of every particle, ``[P, D]``."""
        self.count += 1
        rows = max(1, _BLOCK // max(1, position.shape[1]))
        parts = (each.split(rows) for each in (position, self.mean, self.squares))
        for x, mean, squares in zip(*parts, strict=True):
            moved = x - mean
            mean.add_(moved / self.count)
            squares.add_(moved * (x - mean))

    def moments(self, rows: Any) -> Moments:
        """So far, of some particles."""
        mean, squares = self.mean[rows].cpu().clone(), self.squares[rows].cpu()
        spread = squares / (self.count - 1) if self.count > 1 else torch.full_like(mean, torch.nan)
        return Moments(self.count, mean, spread)

    def tensors(self) -> dict[str, Tensor]:
        """What ``restore`` needs."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "squares": self.squares}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what ``tensors`` gave."""
        self.count = int(tensors["count"])
        self.mean.copy_(tensors["mean"])
        self.squares.copy_(tensors["squares"])
