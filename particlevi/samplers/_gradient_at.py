"""The gradient of a step, as its transition sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from particlevi.gradients.halves import Halves, Parted, parted
from particlevi.samplers._metric import Metric
from particlevi.typing import Batch, Gradient, GradientEstimator

__all__ = ["GradientAt"]


# Not frozen: dynamo of torch 2.11 cannot build a frozen dataclass inside a graph.
@dataclass(eq=False)
class GradientAt:
    """``gradient_at(z)``: the estimate of this step at any particles ``[P, D]``.

    Attributes:
        estimator: how it is estimated.
        state: of the estimator.
        batch: of the step.
        noise: the estimator's random numbers of the step.
        metric: the coordinates z of the method; those of the potential if absent.
    """

    estimator: GradientEstimator
    state: Any
    batch: Batch | None
    noise: Any
    metric: Metric | None = None

    def __call__(self, position: Tensor) -> Gradient:
        """The gradient ``[P, D]`` and the potential ``[P]``."""
        theta = position if self.metric is None else self.metric.unwhiten(position)
        found = self.estimator(self.state, theta, self.batch, self.noise)
        return found if self.metric is None else self.metric.slope(found)

    def with_variance(self, position: Tensor) -> Halves:
        """The same with the variances of both, found on the two halves of the batch."""
        return self.parted(position).halves

    def parted(self, position: Tensor) -> Parted:
        """The same with the difference between the two halves of the batch."""
        theta = position if self.metric is None else self.metric.unwhiten(position)

        def estimate(part: Batch | None) -> Gradient:
            return self.estimator(self.state, theta, part, self.noise)

        found = parted(estimate, self.batch, self.estimator.potential.num_data)
        if self.metric is None:
            return found
        return Parted(
            self.metric.slope(found.found), self.metric.slope(found.difference), found.factor
        )

    def variance(self, variance: float | Tensor) -> float | Tensor:
        """A variance of each coordinate of the gradient, in the coordinates z of the method."""
        return variance if self.metric is None else self.metric.variance(variance)
