"""The effective potential from SGD's own draws as far as it is quadratic.

Stationary draws have the law ``exp(-Phi / T)``, so ``Phi = -T log density`` up to a constant, and
``U = T Cov^-1`` if it is quadratic: in any dimension that the draws can fill. For other shapes, in
a few dimensions, see ``fit_potential``.

Reference: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
matrices", 2004.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_positive, check_positive_int, is_number
from particlevi._shown import Shown
from particlevi.draws import Draws
from particlevi.sgdvi.series import as_series, block_labels, is_stationary

__all__ = ["GaussianPotential", "gaussian_potential"]


@dataclass(frozen=True, eq=False, repr=False)
class GaussianPotential(Shown):
    """A quadratic effective potential ``(x - m)' U (x - m) / 2``.

    Attributes:
        mean: ``m [D]``.
        covariance: of the draws, after shrinkage, ``[D, D]``.
        hessian: ``U = T Cov^-1 [D, D]``; without shrinkage corrected for the inverse's bias.
        standard_error: of each entry of ``U``, by the jackknife over blocks, ``[D, D]``.
        temperature: T.
        shrinkage: the share of the multiple of the identity in ``covariance``.
        stationary: whether the two halves of the run agree; None if it was too short to tell.
        replicates: ``m`` and ``U`` with one block left out each, ``[B, D]`` and ``[B, D, D]``.
    """

    mean: Tensor
    covariance: Tensor
    hessian: Tensor
    standard_error: Tensor
    temperature: float
    shrinkage: float
    stationary: bool | None
    replicates: tuple[Tensor, Tensor]

    def __call__(self, points: Tensor) -> Tensor:
        """The potential ``[...]`` at points ``[..., D]``; 0 at its minimum."""
        shift = points.to(self.mean) - self.mean
        return 0.5 * ((shift @ self.hessian) * shift).sum(-1)

    def resampled(self, points: Tensor) -> Tensor:
        """Values ``[R, ...]`` whose standard deviations are the standard errors."""
        means, hessians = self.replicates
        values = []
        for mean, hessian in zip(means, hessians, strict=True):
            shift = points.to(mean) - mean
            values.append(0.5 * ((shift @ hessian) * shift).sum(-1))
        left_out = torch.stack(values)
        middle = left_out.mean(0)
        wider: Tensor = middle + (len(values) - 1) / math.sqrt(len(values)) * (left_out - middle)
        return wider

    def band(self, points: Tensor) -> Tensor:
        """Standard errors ``[...]`` of the potential at points ``[..., D]``."""
        return self.resampled(points).std(0)


def gaussian_potential(
    draws: Draws | Tensor,
    temperature: float,
    *,
    shrinkage: float | str = 0.0,
    num_blocks: int = 20,
) -> GaussianPotential:
    """The effective potential as far as it is quadratic: ``U = T Cov(draws)^-1``.

    The inverse of an estimated covariance is too large by ``v / (v - D - 1)``, with ``v`` the
    number of independent draws that the covariance is worth; ``v`` is estimated from the blocks, so
    that it knows of autocorrelation, and the factor taken off where there is no shrinkage.

    Args:
        draws: stationary draws of SGD, or ``[P, T, D]``.
        temperature: T, as ``particlevi.noise.temperature`` gives it, with the momentum of the run.
        shrinkage: the share in [0, 1] of ``tr(Cov)/D`` times the identity; or ``"auto"``, the
            share that makes the expected error least, with the error of the covariance taken from
            the blocks, so that it knows of autocorrelation.
        num_blocks: for the standard errors: whole chains, or stretches of them.

    Raises:
        ValueError: the worth of fewer independent draws than ``D + 4``, and no shrinkage.

    >>> x = torch.randn(50, 200, 2, generator=torch.Generator().manual_seed(0))
    >>> found = gaussian_potential(x, temperature=0.5)
    >>> bool(((found.hessian - 0.5 * torch.eye(2)).abs() < 5 * found.standard_error).all())
    True
    """
    check_positive("temperature", temperature)
    check_positive_int("num_blocks", num_blocks, minimum=3)
    series = as_series(draws)
    stationary = is_stationary(series)
    flat, size = series.flatten(0, 1), series.shape[-1]
    labels = block_labels(series, num_blocks).flatten()
    count = int(labels.max()) + 1
    if count < 3:
        raise ValueError(f"Standard errors need at least 3 blocks of draws, got {count}.")
    weights = torch.bincount(labels).double()
    sums = torch.zeros(count, size, dtype=flat.dtype).index_add_(0, labels, flat)
    origin = flat.mean(0)
    squares = torch.stack(
        [(flat[labels == k] - origin).T @ (flat[labels == k] - origin) for k in range(count)]
    )

    def moments(chosen: Tensor) -> tuple[Tensor, Tensor]:
        total = chosen @ weights
        mean = (chosen @ sums) / total
        covariance = torch.einsum("k,kij->ij", chosen, squares) / total
        shift = mean - origin
        return mean, (covariance - torch.outer(shift, shift)) * total / (total - 1)

    everything = torch.ones(count, dtype=flat.dtype)
    mean, covariance = moments(everything)
    left_out = [moments(everything - one) for one in torch.eye(count, dtype=flat.dtype)]
    share = _share(shrinkage, covariance, torch.stack([c for _, c in left_out]))

    def invert(matrix: Tensor) -> tuple[Tensor, Tensor]:
        scale = matrix.diagonal().mean()
        mixed = (1 - share) * matrix + share * scale * torch.eye(size, dtype=matrix.dtype)
        factor, info = torch.linalg.cholesky_ex(mixed)
        if int(info) or (len(flat) <= size and share == 0):
            raise ValueError(
                f"The covariance of {len(flat)} draws in {size} dimensions has no inverse: pass "
                "shrinkage='auto', or project the draws on fewer directions."
            )
        return mixed, temperature * torch.cholesky_inverse(factor)

    mixed, hessian = invert(covariance)
    replicates = torch.stack([invert(c)[1] for _, c in left_out])
    freedom = _degrees_of_freedom(covariance, torch.stack([c for _, c in left_out]), len(flat) - 1)
    if share == 0:
        if freedom < size + 4:
            raise ValueError(
                f"The draws tell as much as {freedom:.3g} independent ones, too few for the "
                f"inverse of their covariance in {size} dimensions: run longer, pass "
                "shrinkage='auto', or project the draws on fewer directions."
            )
        # E[S^-1] = v / (v - D - 1) Cov^-1 for a covariance S of v degrees of freedom.
        unbias = (freedom - size - 1) / freedom
        hessian, replicates = unbias * hessian, unbias * replicates
    return GaussianPotential(
        mean=mean,
        covariance=mixed,
        hessian=hessian,
        standard_error=_jackknife_error(replicates),
        temperature=temperature,
        shrinkage=share,
        stationary=stationary,
        replicates=(torch.stack([m for m, _ in left_out]), replicates),
    )


def _share(shrinkage: float | str, covariance: Tensor, replicates: Tensor) -> float:
    if isinstance(shrinkage, str):
        check_choice("shrinkage", shrinkage, ["auto"])
        target = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
        error = float(_jackknife_error(replicates).square().sum())
        distance = float((covariance - target).square().sum())
        return min(1.0, error / distance) if distance > 0 else 1.0
    if not is_number(shrinkage) or not 0 <= shrinkage <= 1:
        raise ValueError(f'shrinkage must be in [0, 1] or "auto", got {shrinkage!r}.')
    return float(shrinkage)


def _degrees_of_freedom(covariance: Tensor, replicates: Tensor, most: int) -> float:
    """``v`` with ``Var S_ij = (S_ii S_jj + S_ij^2) / v``, from the spread of ``S`` over blocks."""
    diagonal = covariance.diagonal()
    scale = diagonal.sqrt()
    wanted = torch.outer(diagonal, diagonal) + covariance.square()
    error = _jackknife_error(replicates / torch.outer(scale, scale)).square().sum()
    total = (wanted / torch.outer(diagonal, diagonal)).sum()
    return min(float(total / error), float(most)) if float(error) > 0 else float(most)


def _jackknife_error(replicates: Tensor) -> Tensor:
    count = len(replicates)
    return ((count - 1) * replicates.var(0, correction=0)).sqrt()
