"""The potential where particles start, for the step sizes of methods with a rule of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from particlevi.curvature import largest_curvature
from particlevi.noise.variance import gradient_variance
from particlevi.tuning.objective import Objective
from particlevi.typing import GradientEstimator

__all__ = ["Surroundings"]

_ROUNDS, _LAST = 30, 10
_POINTS = 4


class Surroundings:
    """A ``Landscape``: see there.

    Args:
        objective: the potential on all its data.
        estimator: of the gradient in the run.
        points: where particles start, ``[P, D]``.
        batch_size: B of the run; None for all data.

    >>> import particlevi as pvi
    >>> bowl = pvi.from_log_density(lambda x: -x[0] ** 2 - 3 * x[1] ** 2, num_params=2)
    >>> estimator = pvi.gradients.minibatch(bowl)
    >>> around = Surroundings(Objective(bowl), estimator, torch.zeros(1, 2), None)
    >>> round(around.curvature(), 3), round(around.rate(lambda x: -around.gradient_at(x)), 3)
    (6.0, 6.0)
    """

    def __init__(
        self,
        objective: Objective,
        estimator: GradientEstimator,
        points: Tensor,
        batch_size: int | None,
    ):
        self._objective, self._estimator, self._batch_size = objective, estimator, batch_size
        self.points = points

    @cached_property
    def noise(self) -> Tensor:
        """Variance of the gradient estimate over minibatches ``[D]``, 0 with all data."""
        data = self._objective.data
        if self._batch_size is None or not data.num_data:
            return torch.zeros_like(self.points[0])
        points = self.points[:_POINTS]
        return gradient_variance(self._estimator, points, data, batch_size=self._batch_size)

    def gradient_at(self, points: Tensor) -> Tensor:
        """The gradient ``[P, D]`` at points ``[P, D]``."""
        return self._objective.gradient_at(points).gradient

    def curvature(self, scale: Tensor | None = None) -> float:
        """The largest eigenvalue of the Hessian in the coordinates ``theta / scale [D]``."""
        objective = self._objective
        points = self.points[:_POINTS]
        return largest_curvature(objective.potential, points, objective.data, scale=scale)

    def rate(self, direction: Callable[[Tensor], Tensor]) -> float:
        """The spectral radius of the Jacobian of ``direction``, by the power method."""
        points = self.points
        generator = torch.Generator().manual_seed(0)
        along = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points)
        spread = float((points - points.mean(0)).square().mean().sqrt())
        length = torch.finfo(points.dtype).eps ** (1 / 3) * (spread or 1.0)
        found = []
        for _ in range(_ROUNDS):
            along = along / along.square().mean().sqrt()
            step = length * along
            image = (direction(points + step) - direction(points - step)) / (2 * length)
            found.append(float(image.square().mean().sqrt()))
            along = image
        # Complex pairs turn: their images are now longer, now shorter.
        return max(found[-_LAST:])
