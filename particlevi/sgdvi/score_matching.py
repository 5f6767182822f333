"""Score matching with monomials and Gaussian bumps: the linear system and its cross-validation.

``E(z) = sum_j a_j phi_j(z)`` with ``phi`` the monomials of degree one and two and bumps
``exp(-|z - c|^2 / (2 w^2))``. The minimum of ``J(a) = mean(|grad E|^2 / 2 - laplace E)`` solves::

    (A + ridge m P) a = b,    A = mean(grad phi grad phi'),    b = mean(laplace phi)

with ``P`` the projection on the bumps and ``m`` their mean diagonal in ``A``: monomials are not
penalised, so that a Gaussian law needs no bump at all. ``A`` and ``b`` are kept for each block of
draws, so that leaving blocks out or resampling them costs one solution, and the system of the first
M centres is a part of that of all.

Of the law of ``z`` given other coordinates ``r``, ``E(z | r) = E(z) + z' B r``, with entries of
``B`` as more coefficients of monomials; derivatives are by ``z`` alone. It is exact for a Gaussian
law, where ``B`` is a block of the precision matrix.

Reference: Hyvarinen, "Estimation of non-normalized statistical models by score matching", 2005;
Arbel and Gretton, "Kernel conditional exponential family", 2018;
Sutherland, Strathmann, Arbel and Gretton, "Efficient and principled score estimation with Nystrom
kernel exponential families", 2018.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ScoreMatching", "derivatives", "features", "normal_equations", "spread_out"]

_ROWS = 2048
_FOLDS = 5


def features(z: Tensor, centers: Tensor, width: float) -> Tensor:
    """``phi [S, K]`` at points ``[S, D]``: linear, quadratic, bumps."""
    i, j = torch.triu_indices(z.shape[1], z.shape[1])
    distance = (z[:, None, :] - centers).square().sum(2)
    bumps = torch.exp(-0.5 * distance / width**2)
    return torch.cat([z, z[:, i] * z[:, j], bumps], dim=1)


def derivatives(z: Tensor, centers: Tensor, width: float) -> tuple[Tensor, Tensor]:
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


@dataclass(frozen=True, eq=False)
class ScoreMatching:
    """Sums over each of B blocks of draws.

    Attributes:
        squares: ``sum grad phi grad phi' [B, K, K]``.
        curves: ``sum laplace phi [B, K]``.
        sizes: draws in each block, ``[B]``.
        monomials: how many of the K features are no bumps.
    """

    squares: Tensor
    curves: Tensor
    sizes: Tensor
    monomials: int

    def first(self, num_centers: int) -> ScoreMatching:
        """The system of the first ``num_centers`` bumps."""
        stop = self.monomials + num_centers
        squares = self.squares[:, :stop, :stop]
        return ScoreMatching(squares, self.curves[:, :stop], self.sizes, self.monomials)

    def solve(self, weights: Tensor, ridge: float) -> Tensor:
        """``a [K]``, blocks weighted by ``weights [B]``; NaN where the system is singular."""
        return self._solutions(weights, (ridge,))[0]

    def _solutions(self, weights: Tensor, ridges: tuple[float, ...]) -> list[Tensor]:
        total = weights @ self.sizes
        matrix = torch.einsum("k,kij->ij", weights, self.squares) / total
        right = weights @ self.curves / total
        # Units of the root of the diagonal: the factorisation then needs no pivots.
        scale = matrix.diagonal().sqrt().clamp(min=1e-150)
        scaled = matrix / scale / scale[:, None]
        penalty = matrix.diagonal()[self.monomials :].mean() / scale[self.monomials :].square()
        found = []
        for ridge in ridges:
            penalised = scaled.clone()
            penalised.diagonal()[self.monomials :] += ridge * penalty
            factor, info = torch.linalg.cholesky_ex(penalised)
            solution = torch.cholesky_solve((right / scale)[:, None], factor)[:, 0] / scale
            found.append(torch.full_like(right, torch.nan) if int(info) else solution)
        return found

    def left_out_losses(self, ridges: tuple[float, ...]) -> Tensor:
        """Shares ``[R, B]`` of the blocks in ``J``, each left out of the fit with a fifth of them.

        Their sum is ``J``; infinite where the system is singular.
        """
        count = len(self.sizes)
        group = torch.arange(count) % min(_FOLDS, count)
        losses = torch.zeros(len(ridges), count, dtype=self.sizes.dtype)
        for fold in group.unique():
            inside = group == fold
            squares, curves = self.squares[inside], self.curves[inside]
            for k, a in enumerate(self._solutions((~inside).to(self.squares), ridges)):
                losses[k, inside] = 0.5 * (squares @ a) @ a - curves @ a
        return (losses / self.sizes.sum()).nan_to_num(nan=torch.inf)


def normal_equations(
    z: Tensor, labels: Tensor, count: int, centers: Tensor, width: float, given: Tensor
) -> ScoreMatching:
    """The system of draws ``z [S, D]`` given ``r [S, R]`` in blocks ``labels [S]`` of ``count``."""
    size = z.shape[1]
    plain = size + size * (size + 1) // 2
    monomials = plain + size * given.shape[1]
    total = monomials + len(centers)
    squares = torch.zeros(count, total, total, dtype=z.dtype)
    curves = torch.zeros(count, total, dtype=z.dtype)
    one = torch.eye(size, dtype=z.dtype)[:, :, None]
    for k in range(count):
        inside = labels == k
        for part, rest in zip(z[inside].split(_ROWS), given[inside].split(_ROWS), strict=True):
            slope, second = derivatives(part, centers, width)
            mixed = (one * rest[:, None, None, :]).flatten(2)
            slope = torch.cat([slope[..., :plain], mixed, slope[..., plain:]], 2)
            flat = slope.flatten(0, 1)
            squares[k].addmm_(flat.T, flat)
            bent = second.sum((0, 1))
            curves[k, :plain] += bent[:plain]
            curves[k, monomials:] += bent[plain:]
    sizes = torch.bincount(labels, minlength=count).to(z)
    return ScoreMatching(squares, curves, sizes, monomials)


def spread_out(z: Tensor, num: int, generator: torch.Generator) -> Tensor:
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
