"""The potential on all its data, with gradients and Hessians, for what looks before it samples."""

from __future__ import annotations

from torch import Tensor

from particlevi.curvature import dense_hessian, potential_energy
from particlevi.data import Data, DataLike, as_data
from particlevi.gradients.full import full_gradient
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import Gradient

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

    >>> import torch
    >>> import particlevi as pvi
    >>> bowl = pvi.from_log_density(lambda x: -x[0] ** 2 - 3 * x[1] ** 2, num_params=2)
    >>> Objective(bowl).hessian(torch.zeros(2))
    tensor([[2., 0.],
            [0., 6.]])
    """

    def __init__(self, potential: ModelPotential, data: DataLike = None, chunk_size: int = 1 << 16):
        self.potential = potential
        self.data: Data = as_data(data, potential)
        self.chunk_size = chunk_size
        self.num_gradients: int = 0

    def gradient_at(self, points: Tensor) -> Gradient:
        """Gradient ``[P, D]`` and potential ``[P]`` at points ``[P, D]``."""
        self.num_gradients += len(points)
        return full_gradient(self.potential, points, self.data, self.chunk_size)

    def hessian(self, point: Tensor) -> Tensor:
        """The Hessian ``[D, D]`` at one point ``[D]``; it counts as 2 D gradients."""
        self.num_gradients += 2 * len(point)
        energy = potential_energy(self.potential, point, self.data, self.chunk_size)
        return dense_hessian(energy).to(point)
