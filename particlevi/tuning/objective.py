"""The potential on all its data, with gradients and Hessians, for what looks before it samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from particlevi.data import as_data
from particlevi.gradients._evaluate import Energy, value_and_grad
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import Batch, Gradient

__all__ = ["Objective"]


class Objective:
    """A potential with all its data.

    Args:
        potential: what is sampled.
        data: as given to ``sample``; None for a density without data.
        chunk_size: data evaluated at once.

    Attributes:
        num_gradients: gradients of one particle on all the data that were taken so far.

    Raises:
        ValueError: data missing, superfluous, or not all of them.

    >>> import particlevi as pvi
    >>> bowl = pvi.from_log_density(lambda x: -x[0] ** 2 - 3 * x[1] ** 2, num_params=2)
    >>> Objective(bowl).hessian(torch.zeros(2))
    tensor([[2., 0.],
            [0., 6.]])
    """

    def __init__(self, potential: ModelPotential, data: Any = None, chunk_size: int = 1 << 16):
        self.potential = potential
        self.data = as_data(data, potential)
        self.chunk_size = chunk_size
        self.num_gradients = 0

    def gradient_at(self, points: Tensor) -> Gradient:
        """Gradient ``[P, D]`` and potential ``[P]`` at points ``[P, D]``."""
        self.num_gradients += len(points)
        parts = [
            value_and_grad(energy, points, batch, self.potential.chunk_size)
            for energy, batch in self._terms()
        ]
        gradient, value = parts[0]
        for part in parts[1:]:
            gradient, value = gradient + part.gradient, value + part.potential
        return Gradient(gradient, value)

    def hessian(self, point: Tensor) -> Tensor:
        """The Hessian ``[D, D]`` at one point ``[D]``, by one pass over D copies of it."""
        size = len(point)
        self.num_gradients += 2 * size
        eye = torch.eye(size, dtype=point.dtype, device=point.device)
        total = torch.zeros_like(eye)
        rows = max(1, min(size, self.potential.chunk_size or size))
        for start in range(0, size, rows):
            along = eye[start : start + rows]
            for energy, batch in self._terms():
                leaf = point.detach().expand(len(along), -1).clone().requires_grad_()
                with torch.enable_grad():
                    (g,) = torch.autograd.grad(energy(leaf, batch).sum(), leaf, create_graph=True)
                    part = (g * along).sum()
                    if part.requires_grad:
                        (row,) = torch.autograd.grad(part, leaf, allow_unused=True)
                        if row is not None:
                            total[start : start + rows] += row
        return 0.5 * (total + total.mT)

    def _terms(self) -> Iterator[tuple[Energy, Batch | None]]:
        """Energies whose sum is the potential, each with the piece of data that it takes."""
        if 0 < self.data.num_data <= self.chunk_size:
            yield self.potential, self.data.whole()
            return
        yield lambda points, batch: self.potential.prior_energy(points), None
        for batch in self.data.chunks(self.chunk_size):
            yield self._data_energy, batch

    def _data_energy(self, points: Tensor, batch: Batch | None) -> Tensor:
        assert batch is not None
        return self.potential.data_energy(points, batch)
