"""Metrics from the draws of all chains, or from a Hessian."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_finite
from particlevi.tuning.descent import eigenpairs
from particlevi.typing import World

__all__ = [
    "Moments",
    "add",
    "check_metric",
    "factor_of_hessian",
    "mean_of",
    "no_moments",
    "regularised",
]


class Moments(NamedTuple):
    """Sums over draws: their number 0-d, mean ``[D]``, squares ``[D]`` or products ``[D, D]``.

    The last are of deviations from the mean.
    """

    number: Tensor
    mean: Tensor
    scatter: Tensor

    @property
    def covariance(self) -> Tensor:
        """``[D, D]``, or variances ``[D]``."""
        return self.scatter / (self.number - 1).clamp(min=1)


def no_moments(like: Tensor, dense: bool) -> Moments:
    """Of no draws yet, for particles ``[P, D]``."""
    size = like.shape[1]
    zero = torch.zeros((), dtype=torch.float64, device=like.device)
    scatter = zero.new_zeros((size, size) if dense else (size,))
    return Moments(zero, zero.new_zeros(size), scatter)


def add(moments: Moments, draws: Tensor, weight: Tensor, world: World) -> Moments:
    """With the draws ``[P, D]`` of all processes added, each as often as its weight ``[P]`` says.

    Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    draws, weight = draws.double(), weight.double()
    weight = torch.where(torch.isfinite(draws).all(-1), weight, 0.0)
    draws = torch.where(torch.isfinite(draws), draws, 0.0)
    new = world.sum(weight)
    count = moments.number + new
    mean = world.sum(weight.unsqueeze(1) * draws) / new.clamp(min=1)
    # Rounded by less than one part in a million, so that their products add up in any order.
    offset, shift = world.grid(draws - mean, bits=20), mean - moments.mean
    share = moments.number * new / count.clamp(min=1)
    if moments.scatter.ndim == 2:
        own = (weight.unsqueeze(1) * offset).mT @ offset
        between = share * torch.outer(shift, shift)
    else:
        own, between = (weight.unsqueeze(1) * offset.square()).sum(0), share * shift.square()
    scatter = moments.scatter + world.sum(own.unsqueeze(0)) + between
    return Moments(count, moments.mean + shift * new / count.clamp(min=1), scatter)


def mean_of(draws: Tensor, counts: Tensor, world: World) -> Tensor:
    """The mean ``[D]`` of the draws ``[P, D]`` of all processes that count ``[P]``."""
    counts = (counts & torch.isfinite(draws).all(-1)).to(draws)
    draws = torch.where(counts.unsqueeze(1) > 0, draws, 0.0)
    return world.sum(draws) / world.sum(counts)


def regularised(moments: Moments, before: Tensor) -> Tensor:
    """The metric of draws: a factor ``[D, D]`` or a scale ``[D]``, like the one before it.

    In the coordinates ``z = L^-1 x`` of the metric before it, the covariance ``S_z`` of n draws
    becomes ``(n S_z + k I) / (n + k)``, with ``k = D`` for a dense metric and 5 for a diagonal one.
    """
    n, size, given = moments.number, before.shape[-1], before
    before = before.double()
    if before.ndim == 1:
        variance = moments.covariance / before.square()
        found = before * ((n * variance + 5) / (n + 5)).sqrt()
        return torch.where(torch.isfinite(found) & (found > 0), found, before).to(given)
    half = torch.linalg.solve_triangular(before, moments.covariance, upper=False)
    within = torch.linalg.solve_triangular(before, half.mT, upper=False)
    eye = torch.eye(size, dtype=before.dtype, device=before.device)
    inner, failed = torch.linalg.cholesky_ex((n * within + size * eye) / (n + size))
    found = before @ inner
    good = (failed == 0) & torch.isfinite(found).all()
    return torch.where(good, found, before).to(given)


def factor_of_hessian(hessian: Tensor) -> Tensor:
    """A lower triangular L with ``L L' = H^-1``, ``[D, D]``, float64.

    Eigenvalues of the Hessian scaled to a unit diagonal count by their absolute values, and are at
    least ``D`` rounding errors: where the potential is flat or curves downwards the Gaussian is
    wide, but not without bound.

    >>> factor_of_hessian(torch.tensor([[4.0, 0.0], [0.0, 1e-8]]))
    tensor([[5.0000e-01, 0.0000e+00],
            [0.0000e+00, 1.0000e+04]], dtype=torch.float64)
    """
    rounding = 10 * len(hessian) * torch.finfo(hessian.dtype).eps
    hessian = hessian.double()
    diagonal = hessian.diagonal().abs()
    diagonal = torch.where(diagonal > 0, diagonal, 1.0)
    scale = diagonal.rsqrt()
    values, vectors = eigenpairs(hessian * scale.unsqueeze(0) * scale.unsqueeze(1))
    values = values.abs().clamp(min=rounding)
    root = scale.unsqueeze(1) * vectors * values.rsqrt()
    # root root' = H^-1, and its QR factor is triangular without squaring the condition.
    upper = torch.linalg.qr(root.mT).R
    signs = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(upper)
    lower: Tensor = (signs.unsqueeze(1) * upper).mT.contiguous()
    return lower


def check_metric(start: Tensor, position: Tensor, dense: bool) -> None:
    """A first metric fits particles ``[P, D]``.

    Raises:
        ValueError: another shape, values that are not finite, or scales that are not above 0.
    """
    size = position.shape[1]
    shape = (size, size) if dense else (size,)
    if start.shape != shape or not start.is_floating_point():
        raise ValueError(
            f"start must be a floating-point tensor {list(shape)}, got {start.dtype} "
            f"{list(start.shape)}."
        )
    check_finite("start", start, "Leave it out.")
    scales = start.diagonal() if dense else start
    if not bool((scales > 0).all()):
        raise ValueError("start must have scales above 0: it whitens the coordinates.")
