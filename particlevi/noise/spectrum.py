"""Eigenvalues of the noise covariance, all or the largest, and what they say.

All: those of ``[N, N]`` Gram or ``[D, D]`` covariance matrices, in float64. The largest: Rayleigh
and Ritz in the block Krylov space ``span(V, A V, A^2 V ...)`` with full orthogonalisation; the
residual ``r = |A x - l x|`` of a pair bounds the distance from ``l`` to an eigenvalue of ``A``;
for one that stands apart by a gap, the distance is at most ``r^2 / gap``. Where the space grows
too large for memory it is reduced to its best Ritz vectors and grows again (thick restart): the
residuals of all of them lie in the block that comes next, so that nothing else is lost.

Reference: Wu and Simon, "Thick-restart Lanczos method for large symmetric eigenvalue problems",
2000; Musco and Musco, "Randomized block Krylov methods for stronger and faster approximate
singular value decomposition", 2015.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi._shown import Shown
from particlevi.noise.samples import Array

__all__ = [
    "Spectrum",
    "least_columns",
    "most_columns",
    "spectrum_of_matrix",
    "sum_of_squares",
    "top_of_matrix",
    "top_spectrum",
]

_PIECE = 2**24
_DENSE, _TINY = 10, 200


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(Shown):
    """Eigenvalues of a covariance of ``num_params`` rows, largest first.

    Attributes:
        eigenvalues: ``[K]`` in float64; the ``num_params - K`` others are zero if ``complete``.
        error: bounds on the distance of each to an eigenvalue, ``[K]``.
        trace: of the matrix.
        num_params: D.
        num_data: N.
        complete: whether these are all that are not zero.
    """

    eigenvalues: Tensor
    error: Tensor
    trace: float
    num_params: int
    num_data: int
    complete: bool
    _find_vectors: Callable[[], Tensor] | None = None

    @cached_property
    def vectors(self) -> Tensor | None:
        """Eigenvectors ``[D, K]`` of the largest few, computed when they are first asked for."""
        return None if self._find_vectors is None else self._find_vectors()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"vectors": self.vectors, "_find_vectors": None}

    def threshold(self, epsilon: float = torch.finfo(torch.float32).eps) -> float:
        """``largest * D * epsilon``, numpy's rule for the rank of a matrix."""
        return float(self.eigenvalues[0]) * self.num_params * epsilon

    def rank(self, epsilon: float = torch.finfo(torch.float32).eps) -> int:
        """The number of eigenvalues above ``threshold(epsilon)``.

        It is a statement about the threshold as much as about the matrix: with the epsilon of
        single precision the threshold is ``1.2e-7 D`` of the largest eigenvalue, and with that of
        double precision the rank is often N - 1, the most it can be.

        Raises:
            ValueError: all eigenvalues that are known lie above the threshold, but there are more.
        """
        above = int((self.eigenvalues > self.threshold(epsilon)).sum())
        if above == len(self.eigenvalues) and not self.complete:
            raise ValueError(
                f"The rank is at least {above}, as many eigenvalues as were asked for: ask for "
                "more (top=), or for all of them."
            )
        return above

    @property
    def effective_rank(self) -> float:
        """``tr(C)^2 / tr(C^2)``: how many equal eigenvalues would be as spread out.

        Of the largest few only, an upper bound.
        """
        return self.trace**2 / float(self.eigenvalues.square().sum())

    @property
    def anisotropy(self) -> float:
        """The largest eigenvalue over the mean of all D."""
        return float(self.eigenvalues[0]) * self.num_params / self.trace

    @property
    def mean(self) -> float:
        """Of all D eigenvalues."""
        return self.trace / self.num_params

    @property
    def std(self) -> float:
        """Of all D eigenvalues; of the largest few only, a lower bound."""
        second = float(self.eigenvalues.square().sum()) / self.num_params
        return float(max(second - self.mean**2, 0.0) ** 0.5)


def sum_of_squares(rows: Tensor) -> float:
    """Of ``[N, D]``, in float64 by pieces of 128 MB at most, or one row."""
    pieces = rows.split(max(1, _PIECE // rows.shape[1]))
    return float(sum(piece.double().square().sum() for piece in pieces))


def spectrum_of_matrix(matrix: Tensor, num_params: int, num_data: int) -> Spectrum:
    """All eigenvalues of a matrix in float64, whose lower half is overwritten."""
    found = torch.from_numpy(_in_place(matrix.cpu().numpy(), driver="ev"))
    size = torch.finfo(torch.float64).eps * len(found) * found[0]
    return Spectrum(
        eigenvalues=found.clamp(min=0),
        error=size.expand(len(found)),
        trace=float(found.sum()),
        num_params=num_params,
        num_data=num_data,
        complete=True,
    )


def _in_place(matrix: Array, **options: Any) -> Array:
    """Eigenvalues, largest first, by LAPACK in the lower half of the matrix."""
    from scipy.linalg import eigvalsh

    # The transpose is column-major, so that no copy is made.
    values = eigvalsh(matrix.T, lower=False, overwrite_a=True, check_finite=False, **options)
    found: Array = values[::-1].copy()
    return found


def top_of_matrix(matrix: Tensor, top: int, seed: int) -> Spectrum:
    """The largest eigenvalues of a positive matrix in float64, whose lower half is overwritten."""
    size = len(matrix)
    if least_columns(top) < most_columns(size):
        return top_spectrum(
            matrix.__matmul__, top, float(matrix.trace()), num_params=size, num_data=size,
            like=matrix, seed=seed, tolerance=1e-4,
        )  # fmt: skip
    array = matrix.cpu().numpy()
    diagonal = array.diagonal().copy()
    which = [size - top, size - 1]
    if size <= _TINY:
        values = torch.linalg.eigvalsh(matrix).cpu().numpy()[: -top - 1 : -1].copy()
    else:
        values = _in_place(array, driver="evr", subset_by_index=which)

    def vectors() -> Tensor:
        from scipy.linalg import eigh

        np.fill_diagonal(array, diagonal)
        kept = eigh(array.T, lower=True, subset_by_index=which)[1]
        return torch.from_numpy(kept[:, ::-1].copy())

    return Spectrum(
        eigenvalues=torch.from_numpy(np.maximum(values, 0)),
        error=torch.full((top,), np.finfo(float).eps * size * values[0], dtype=torch.float64),
        trace=float(diagonal.sum()),
        num_params=size,
        num_data=size,
        complete=top >= size,
        _find_vectors=vectors,
    )


def least_columns(top: int) -> int:
    """Vectors ``[D]`` that ``top_spectrum`` cannot do without."""
    return 3 * top + 9 * _width(top)


def most_columns(size: int) -> int:
    """With so many, ``top_spectrum`` costs as much as all eigenvalues of a matrix of that size."""
    return size // _DENSE


def _width(top: int) -> int:
    return max(8, top // 4)


def top_spectrum(
    apply: Callable[[Tensor], Tensor],
    top: int,
    trace: float,
    *,
    num_params: int,
    num_data: int,
    like: Tensor,
    seed: int,
    rank: int | None = None,
    tolerance: float = 1e-2,
    basis_bytes: float = 5e8,
) -> Spectrum:
    """The largest eigenvalues of a positive matrix, given only by its products.

    Args:
        apply: ``A V [D, B]`` for ``V [D, B]``.
        top: how many.
        trace: of the matrix.
        num_params: D.
        num_data: N.
        like: a tensor of the dtype and device to work in.
        seed: of the first block.
        rank: the most that the matrix can have; D if absent. The first block and the range of
            the matrix hold the whole space, so that it never grows past both.
        tolerance: the space grows until every residual is below this share of its eigenvalue or
            the rounding of the largest.
        basis_bytes: beyond which the space is reduced, to ``3 K`` vectors or so.
    """
    top = min(top, num_params)
    width = min(num_params, _width(top))
    rank = num_params if rank is None else min(rank, num_params)
    limit = min(num_params, rank + width)
    generator = torch.Generator().manual_seed(int(seed))
    block = torch.randn(num_params, width, generator=generator).to(like)
    # Blocks, never joined: a joined copy would hold the whole basis twice.
    basis = [torch.linalg.qr(block)[0]]
    bearable = int(basis_bytes / (num_params * block.element_size()))
    allowed = max(bearable, 2 * top + 4 * width)
    del block
    projected = torch.zeros(0, 0, dtype=like.dtype, device=like.device)
    floor = 10 * torch.finfo(like.dtype).eps
    while True:
        image = apply(basis[-1])
        columns = _within(basis, image)
        old, size = projected.shape[0], len(columns)
        grown = torch.zeros(size, size, dtype=like.dtype, device=like.device)
        grown[:old, :old] = projected
        grown[:, old:] = columns
        grown[old:, :old] = columns[:old].T
        projected = grown
        values, inner = torch.linalg.eigh((projected + projected.T).double() / 2)
        rest = image - _combined(basis, columns)
        del image
        rest -= _combined(basis, _within(basis, rest))
        kept = inner[:, -top:].flip(1).to(like.dtype)
        ritz = values[-top:].flip(0)
        residual = (rest @ kept[old:]).norm(dim=0).double()
        scale = torch.maximum(tolerance * ritz.clamp(min=0), floor * ritz[0])
        full = size >= limit
        if full or (len(ritz) == top and bool((residual <= scale).all())):
            break
        added = torch.linalg.qr(rest)[0][:, : limit - size]
        del rest
        if size + added.shape[1] > allowed:
            best = slice(-min(top + width, size), None)
            basis = [_combined(basis, inner[:, best].to(like.dtype))]
            projected = values[best].diag().to(like.dtype)
        for _ in range(2):
            added = torch.linalg.qr(added - _combined(basis, _within(basis, added)))[0]
        basis.append(added)
    vectors = _combined(basis, kept)
    return Spectrum(
        eigenvalues=ritz.clamp(min=0).cpu(),
        error=residual.cpu(),
        trace=trace,
        num_params=num_params,
        num_data=num_data,
        complete=full and top >= rank,
        _find_vectors=lambda: vectors,
    )


def _within(basis: list[Tensor], columns: Tensor) -> Tensor:
    """``V' X`` for ``V [D, B]`` in blocks."""
    return torch.cat([block.T @ columns for block in basis])


def _combined(basis: list[Tensor], weights: Tensor) -> Tensor:
    """``V W``."""
    parts = weights.split([block.shape[1] for block in basis])
    total: Tensor = basis[0] @ parts[0]
    for block, part in zip(basis[1:], parts[1:], strict=True):
        total.addmm_(block, part)
    return total
