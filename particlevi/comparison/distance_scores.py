"""Distances between draws, and of draws to the posterior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi.comparison.estimates import Estimate, root_of
from particlevi.comparison.score import Score
from particlevi.comparison.subject import Subject
from particlevi.data import as_particles
from particlevi.gradients.full import full_gradient
from particlevi.kernels.discrepancies import ksd, mmd, sliced_wasserstein
from particlevi.kernels.kernels import imq, rbf

__all__ = ["distances"]

_MAX_DENSE = 500


@dataclass(frozen=True, eq=False)
class Whitening:
    """The reference's scale: ``z = (x - m) L^-T``, with ``L L'`` its shrunk covariance.

    ``(1 - a) S + a diag(S)`` with ``a = D / (D + S - 1)`` for S draws; the diagonal alone above 500
    parameters.
    """

    mean: Tensor
    factor: Tensor

    @staticmethod
    def of(points: Tensor) -> Whitening:
        """Of draws ``[S, D]``."""
        count, size = points.shape
        mean = points.mean(0)
        scale = points.std(0).clamp(min=1e-300) if count > 1 else torch.ones_like(mean)
        if size > _MAX_DENSE or count < 3:
            return Whitening(mean, scale)
        standard = (points - mean) / scale
        shrink = size / (size + count - 1)
        correlation = (1 - shrink) * (standard.T @ standard) / (count - 1)
        correlation.diagonal().add_(1 - correlation.diagonal())
        return Whitening(mean, scale[:, None] * torch.linalg.cholesky(correlation))

    def points(self, x: Tensor) -> Tensor:
        """``[S, D]`` in the reference's units."""
        if self.factor.ndim == 1:
            return (x - self.mean) / self.factor
        moved: Tensor = torch.linalg.solve_triangular(self.factor, (x - self.mean).T, upper=False)
        return moved.T

    def scores(self, scores: Tensor) -> Tensor:
        """``grad log p`` with respect to ``z``."""
        return scores * self.factor if self.factor.ndim == 1 else scores @ self.factor


def _spaced(points: Tensor, num: int) -> Tensor:
    """At most ``num`` of the points, evenly spaced."""
    return points[torch.linspace(0, len(points) - 1, min(num, len(points))).long()]


def distances(num_directions: int = 200, num_points: int = 500) -> list[Score]:
    """Sliced Wasserstein distance, maximum mean discrepancy and kernel Stein discrepancy.

    Args:
        num_directions: of the first.
        num_points: draws, evenly spaced, of the other two.
    """

    def sliced(subject: Subject, reference: Subject) -> Estimate | None:
        if subject is reference:
            return None
        square = sliced_wasserstein(
            subject.parameters, reference.parameters, num_directions, subject.setting.seed
        )
        return root_of(Estimate(square.value, square.standard_error))

    def mean_discrepancy(subject: Subject, reference: Subject) -> Estimate | None:
        some, others = (_spaced(each.parameters, num_points) for each in (subject, reference))
        if subject is reference or min(len(some), len(others)) < 2:
            return None
        # One bandwidth for every row: the median squared distance within the reference.
        width = float(torch.pdist(others).square().median())
        estimate = mmd(some, others, rbf(width) if width > 0 else rbf())
        return Estimate(estimate.value, estimate.standard_error)

    def stein(subject: Subject, reference: Subject) -> Estimate | None:
        model, train = subject.setting.model, subject.setting.train
        some, others = (_spaced(each.parameters, num_points) for each in (subject, reference))
        if train is None or min(len(some), len(others)) < 2:
            return None
        units = Whitening.of(reference.parameters)
        width = float(torch.pdist(units.points(others)).square().median())
        parts = as_particles(some, model, model.num_params).split(64)
        slopes = [full_gradient(model, part, train).gradient for part in parts]
        scores = -torch.cat(slopes).double().cpu()
        estimate = ksd(units.points(some), units.scores(scores), imq(width) if width > 0 else imq())
        return Estimate(estimate.value, estimate.standard_error)

    return [
        Score(
            "sliced_wasserstein",
            "between draws and the reference's: root of the mean over directions",
            sliced,
            best="lowest",
        ),
        Score(
            "mmd",
            "squared maximum mean discrepancy between draws and the reference's, unbiased; "
            "Gaussian kernel, its bandwidth the median squared distance within the reference",
            mean_discrepancy,
            best="lowest",
        ),
        Score(
            "ksd",
            "squared kernel Stein discrepancy of the draws to the posterior, unbiased, in units of "
            "the reference's covariance; IMQ kernel, bandwidth as for mmd",
            stein,
            rank=True,
            best="lowest",
        ),
    ]
