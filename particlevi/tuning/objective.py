"""The potential on all its data, with gradients and Hessians, for what looks before it samples."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from particlevi.curvature import dense_hessian, potential_energy
from particlevi.data import Data, DataLike, as_data
from particlevi.gradients.full import full_gradient
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import Batch, Gradient

__all__ = ["Objective", "probe_batch"]

_PROBES = 8


def probe_batch(potential: ModelPotential, data: Data, size: int) -> Batch | None:
    """Inputs ``[size, ...]`` evenly spread over the data; None for a model without outputs."""
    if potential.model is None or not data.num_data:
        return None
    rows = torch.arange(0, data.num_data, max(1, data.num_data // size))[:size]
    found = data.take(rows).data
    if not isinstance(found, tuple) or len(found) < 2:
        return None
    return Batch(found[:-1])


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

    @cached_property
    def is_net(self) -> bool:
        """Whether the outputs of a module are not linear in its parameters, as far as known.

        Then its posterior has many modes, alike by symmetry, and is curved within each: no metric
        fits, and chains need not visit all.
        """
        if self.potential.model is None:
            return False
        probe = probe_batch(self.potential, self.data, _PROBES)
        if probe is None:
            return True
        shape = 2, self.potential.num_params
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        ends = drawn.to(self.potential.device, self.potential.dtype)
        points = torch.cat([ends, ends.mean(0, keepdim=True)])
        with torch.no_grad():
            first, last, middle = self.potential.outputs(points, probe).double()
        off = (middle - (first + last) / 2).abs().max()
        return not bool(off <= 1e-3 * torch.maximum(first.abs(), last.abs()).max())

    def gradient_at(self, points: Tensor) -> Gradient:
        """Gradient ``[P, D]`` and potential ``[P]`` at points ``[P, D]``."""
        self.num_gradients += len(points)
        return full_gradient(self.potential, points, self.data, self.chunk_size)

    def hessian(self, point: Tensor) -> Tensor:
        """The Hessian ``[D, D]`` at one point ``[D]``; it counts as 2 D gradients.

        By differences of gradients where second derivatives are not finite, as those of torch's
        ``logaddexp`` far from where its terms are equal.
        """
        energy = potential_energy(self.potential, point, self.data, self.chunk_size)
        try:
            found = dense_hessian(energy).to(point)
        except ValueError:
            return self._differences(point)
        self.num_gradients += 2 * len(point)
        return found

    def _differences(self, point: Tensor) -> Tensor:
        """The Hessian by central differences, zero where they are not finite."""
        length = torch.finfo(point.dtype).eps ** (1 / 3) * (1 + point.abs())
        step = length.diag()
        after, before = (self.gradient_at(point + part).gradient for part in (step, -step))
        found = (after - before) / (2 * length).unsqueeze(1)
        return torch.where(torch.isfinite(found), 0.5 * (found + found.mT), 0.0)

    def diagonals(self, points: Tensor, scale: Tensor, generator: torch.Generator) -> Tensor:
        """The diagonals of the Hessians at points, each from one draw of signs, ``[P, D]``.

        By differences of gradients along random signs, ``E[v * (H v)]`` with ``v = +-scale``.

        Source: Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007.

        Args:
            points: ``[P, D]``.
            scale: length of the differences, ``[D]``, or for each point ``[P, D]``.
            generator: of the signs.
        """
        sign = torch.randint(0, 2, points.shape, generator=generator, device=points.device)
        step = (2 * sign.to(points) - 1) * scale
        after, before = (self.gradient_at(points + part).gradient for part in (step, -step))
        return (after - before) * step / (2 * scale.square())
