"""The effective potential from SGD's own draws, without knowing Hessian or noise.

Stationary draws have the law ``exp(-Phi / T)``, ``T = eta / (2b)``, so ``Phi = -T log density`` up
to a constant. Two estimates:

* ``gaussian_potential``: ``U = T Cov^-1``, in any dimension that the draws can fill;
* ``fit_potential``: ``Phi / T = E(x) = sum_j a_j phi_j(x)`` with ``phi`` the monomials up to degree
  two and Gaussian bumps, fitted by score matching: the minimum of
  ``J(a) = mean(|grad E|^2 / 2 - laplace E)`` over the draws, which needs no normalising constant,
  solves ``(A + ridge) a = b`` with ``A = mean(grad phi grad phi')``, ``b = mean(laplace phi)``.
  Width and ridge are those with the smallest ``J`` on draws left out. For a few dimensions.

Reference: Hyvarinen, "Estimation of non-normalized statistical models by score matching", 2005;
Sutherland, Strathmann, Arbel and Gretton, "Efficient and principled score estimation with Nystrom
kernel exponential families", 2018; Ledoit and Wolf, "A well-conditioned estimator for
large-dimensional covariance matrices", 2004.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_positive, check_positive_int, is_number
from particlevi.draws import Draws
from particlevi.sgdvi.series import as_series, block_labels, is_stationary

__all__ = ["FittedPotential", "GaussianPotential", "fit_potential", "gaussian_potential"]

_WIDTHS = (0.5, 0.8, 1.2, 1.8)
_RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_ROWS = 4096


@dataclass(frozen=True, eq=False)
class GaussianPotential:
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


@dataclass(frozen=True, eq=False)
class FittedPotential:
    """An effective potential of any shape, up to a constant.

    Attributes:
        temperature: T.
        center, scale: ``[D]``, by which points are standardised.
        centers: of the bumps, in standardised coordinates, ``[M, D]``.
        width: of the bumps, in standardised coordinates.
        ridge: the weight of ``|a|^2`` in the fit.
        coefficients: ``a [K]``.
        replicates: ``a`` refitted to resampled blocks, ``[B, K]``.
        score_loss: ``J`` on draws left out.
        stationary: whether the two halves of the run agree; None if it was too short to tell.
    """

    temperature: float
    center: Tensor
    scale: Tensor
    centers: Tensor
    width: float
    ridge: float
    coefficients: Tensor
    replicates: Tensor
    score_loss: float
    stationary: bool | None

    def __call__(self, points: Tensor) -> Tensor:
        """``Phi [...]`` at points ``[..., D]``; its mean over the bumps' centres is 0."""
        return self._values(points, self.coefficients.unsqueeze(1)).squeeze(-1)

    def resampled(self, points: Tensor) -> Tensor:
        """``Phi`` refitted to resampled blocks, ``[R, ...]``."""
        return self._values(points, self.replicates.T).movedim(-1, 0)

    def band(self, points: Tensor) -> Tensor:
        """Standard errors ``[...]`` of ``Phi`` at points ``[..., D]``, by the block bootstrap."""
        return self.resampled(points).std(0)

    def gradient(self, points: Tensor) -> Tensor:
        """``grad Phi [..., D]`` at points ``[..., D]``."""
        z = self._standardise(points).reshape(-1, len(self.center))
        slope, _ = _derivatives(z, self.centers, self.width)
        found = self.temperature * (slope @ self.coefficients) / self.scale
        return found.reshape(points.shape)

    def _standardise(self, points: Tensor) -> Tensor:
        return (points.to(self.center) - self.center) / self.scale

    def _values(self, points: Tensor, coefficients: Tensor) -> Tensor:
        z = self._standardise(points)
        flat = z.reshape(-1, z.shape[-1])
        values = torch.cat(
            [_features(part, self.centers, self.width) @ coefficients for part in flat.split(_ROWS)]
        )
        reference = (_features(self.centers, self.centers, self.width) @ coefficients).mean(0)
        return self.temperature * (values - reference).reshape(*z.shape[:-1], -1)


def fit_potential(
    draws: Draws | Tensor,
    temperature: float,
    *,
    num_centers: int = 200,
    width: float | None = None,
    ridge: float | None = None,
    num_blocks: int = 20,
    num_bootstrap: int = 50,
    seed: int = 0,
) -> FittedPotential:
    """The effective potential in a few dimensions, of any shape, by score matching.

    The draws are standardised; the bumps sit on draws far from each other. All is linear algebra:
    for 20 000 draws in two dimensions, seconds with the band. In more than about five dimensions
    project first (see ``project``), or take ``gaussian_potential``.

    Args:
        draws: stationary draws of SGD, or ``[P, T, D]``.
        temperature: T, as ``particlevi.noise.temperature`` gives it, with the momentum of the run.
        num_centers: M.
        width: of the bumps in standard deviations; chosen by draws left out if absent.
        ridge: likewise.
        num_blocks: whole chains, or stretches of them: the unit that is left out and resampled.
        num_bootstrap: refits for the band.
        seed: of the centres and the bootstrap.

    Raises:
        ValueError: fewer than 10 draws per unknown.

    >>> x = torch.randn(100, 50, 1, generator=torch.Generator().manual_seed(0))
    >>> phi = fit_potential(x, temperature=1.0, num_centers=20)
    >>> rise = phi(torch.tensor([[1.0]])) - phi(torch.tensor([[0.0]]))
    >>> bool((rise - 0.5).abs() < 0.1)
    True
    """
    check_positive("temperature", temperature)
    check_positive_int("num_centers", num_centers)
    check_positive_int("num_bootstrap", num_bootstrap, minimum=2)
    series = as_series(draws)
    stationary = is_stationary(series)
    flat, size = series.flatten(0, 1), series.shape[-1]
    unknowns = num_centers + size + size * (size + 1) // 2
    if len(flat) * size < 10 * unknowns:
        raise ValueError(
            f"{unknowns} unknowns need at least {10 * unknowns // size} draws, got {len(flat)}: "
            "lower num_centers, or project the draws on fewer directions."
        )
    generator = torch.Generator().manual_seed(seed)
    center, scale = flat.mean(0), flat.std(0)
    if (scale == 0).any():
        raise ValueError("The draws do not move in some coordinates: leave those out.")
    z = (flat - center) / scale
    labels = block_labels(series, num_blocks).flatten()
    count = int(labels.max()) + 1
    if count < 3:
        raise ValueError(f"The band needs at least 3 blocks of draws, got {count}.")
    centers = _spread_out(z, num_centers, generator)
    best: tuple[float, float, float] | None = None
    for h in _WIDTHS if width is None else (width,):
        check_positive("width", h)
        a, b, n = _normal_equations(z, labels, count, centers, h)
        for r in _RIDGES if ridge is None else (ridge,):
            check_positive("ridge", r)
            loss = _left_out_loss(a, b, n, r)
            if best is None or loss < best[0]:
                best, system = (loss, h, r), (a, b, n)
    assert best is not None
    a, b, n = system
    everything = torch.ones(count, dtype=flat.dtype)
    replicates = []
    for _ in range(num_bootstrap):
        picked = torch.randint(count, (count,), generator=generator)
        replicates.append(_solve(a, b, n, torch.bincount(picked, minlength=count).to(a), best[2]))
    return FittedPotential(
        temperature=temperature,
        center=center,
        scale=scale,
        centers=centers,
        width=best[1],
        ridge=best[2],
        coefficients=_solve(a, b, n, everything, best[2]),
        replicates=torch.stack(replicates),
        score_loss=best[0],
        stationary=stationary,
    )


def _features(z: Tensor, centers: Tensor, width: float) -> Tensor:
    """``phi [S, K]``: linear, quadratic, bumps."""
    i, j = torch.triu_indices(z.shape[1], z.shape[1])
    distance = (z[:, None, :] - centers).square().sum(2)
    bumps = torch.exp(-0.5 * distance / width**2)
    return torch.cat([z, z[:, i] * z[:, j], bumps], dim=1)


def _derivatives(z: Tensor, centers: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """``d phi_k / d z_i [S, D, K]`` and ``d^2 phi_k / d z_i^2 [S, D, K]``."""
    count, size = z.shape
    one = torch.eye(size, dtype=z.dtype)
    i, j = torch.triu_indices(size, size)
    quadratic = one[:, i] * z[:, None, j] + one[:, j] * z[:, None, i]
    shift = (z[:, None, :] - centers).transpose(1, 2) / width
    bump = torch.exp(-0.5 * shift.square().sum(1, keepdim=True))
    slope = torch.cat([one.expand(count, -1, -1), quadratic, -shift * bump / width], dim=2)
    second = torch.cat(
        [
            torch.zeros(count, size, size, dtype=z.dtype),
            (2 * one[:, i] * one[:, j]).expand(count, -1, -1),
            (shift.square() - 1) * bump / width**2,
        ],
        dim=2,
    )
    return slope, second


def _normal_equations(
    z: Tensor, labels: Tensor, count: int, centers: Tensor, width: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over each block: ``A [B, K, K]``, ``b [B, K]`` and the number of draws ``[B]``."""
    a, b = [], []
    for k in range(count):
        total, right = None, None
        for part in z[labels == k].split(_ROWS):
            slope, second = _derivatives(part, centers, width)
            flat = slope.flatten(0, 1)
            outer, curve = flat.T @ flat, second.sum((0, 1))
            total = outer if total is None else total + outer
            right = curve if right is None else right + curve
        assert total is not None and right is not None
        a.append(total)
        b.append(right)
    return torch.stack(a), torch.stack(b), torch.bincount(labels, minlength=count).to(z)


def _solve(a: Tensor, b: Tensor, n: Tensor, weights: Tensor, ridge: float) -> Tensor:
    total = weights @ n
    matrix = torch.einsum("k,kij->ij", weights, a) / total
    matrix = matrix + ridge * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=a.dtype)
    right = weights @ b / total
    solution: Tensor = torch.linalg.solve(matrix, right)
    return solution


def _left_out_loss(a: Tensor, b: Tensor, n: Tensor, ridge: float) -> float:
    """``J`` on five groups of blocks, each left out of the fit in turn."""
    count, folds = len(a), min(5, len(a))
    group = torch.arange(count) % folds
    total = 0.0
    for fold in range(folds):
        inside = (group == fold).to(a)
        x = _solve(a, b, n, 1 - inside, ridge)
        total += float(0.5 * x @ torch.einsum("k,kij->ij", inside, a) @ x - (inside @ b) @ x)
    return total / float(n.sum())


def _spread_out(z: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draws far from each other: each next one is the farthest from those before."""
    some = z[torch.randperm(len(z), generator=generator)[: max(10 * num, 2000)]]
    if num >= len(some):
        return some
    chosen = [0]
    distance = (some - some[0]).square().sum(1)
    for _ in range(num - 1):
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (some - some[chosen[-1]]).square().sum(1))
    return some[chosen]
