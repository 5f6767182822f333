"""Which way to the eigenvalues of the noise costs least in the memory that there is.

* The matrix: that of the inner products of all gradients ``[N, N]`` where ``N < D``, else the
  covariance ``[D, D]``. All eigenvalues come from it, and the largest few where that is cheaper. A
  module's inner products need no per-sample gradients; see ``particlevi.curvature.factors``. An
  eigenvector ``u`` of the first is ``sum_k u_k g_k`` of the second.
* Products with gradients ``[N, D]`` that are kept.
* Products computed anew, one pass over the data for each block of columns.

Costs are counted in multiplications, with weights that were measured on nets of 1e2 to 1e6
parameters. A space has about 2.5 times the columns that it cannot do without; where the matrix has
few rows for so many, all its eigenvalues cost less than the largest few.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int
from particlevi.curvature.factors import Factors, gram_matrix
from particlevi.noise.spectrum import (
    Spectrum,
    least_columns,
    most_columns,
    spectrum_of_matrix,
    sum_of_squares,
    top_of_matrix,
    top_spectrum,
)

if TYPE_CHECKING:
    from particlevi.noise.covariance import GradientNoise

__all__ = ["spectrum_of"]

_SMALL = 700
_PASS, _IN_MATRIX, _IN_SPACE, _ORTHOGONAL = 250, 15, 20, 20


class _Size(NamedTuple):
    """N, D, numbers kept of the gradient of a datum, and bytes of each."""

    n: int
    d: int
    kept: int
    item: int

    @property
    def square(self) -> float:
        """Bytes of the smaller matrix."""
        return 8.0 * min(self.n, self.d) ** 2

    @property
    def held(self) -> float:
        """Bytes of what the smaller matrix is made from."""
        return float(self.n * self.kept * self.item) if self.n < self.d else 0.0

    def matrix_is_cheaper(self, top: int) -> bool:
        """Than products with gradients, for the largest few."""
        n, d, columns = self.n, self.d, least_columns(top)
        small = min(n, d)
        if small <= _SMALL:
            return True
        made = 2 * n**2 * self.kept if n < d else 4 * n * d**2
        rows = _PASS * n * d if self.kept == d or n >= d else 0
        inside = _IN_MATRIX * small**2 * min(columns, most_columns(small))
        return made + rows + inside < (_IN_SPACE * n + _ORTHOGONAL * columns) * columns * d


def spectrum_of(
    noise: GradientNoise, top: int | None, centered: bool, seed: int, max_bytes: float
) -> Spectrum:
    """See ``GradientNoise.spectrum``."""
    check_positive("max_bytes", max_bytes)
    n, d = noise.num_data, noise.num_params
    size = _Size(n, d, noise._kept_numbers, noise.position.element_size())
    if top is None:
        if size.square + size.held > max_bytes:
            raise MemoryError(
                f"All eigenvalues need {size.held / 1e9:.2g} GB for gradients of {n} data and "
                f"{size.square / 1e9:.2g} GB for a matrix, more than {max_bytes / 1e9:.3g} GB: "
                "raise max_bytes, or ask for the largest few by top=200."
            )
        return spectrum_of_matrix(_matrix(noise, centered), d, n)
    check_positive_int("top", top)
    top = min(top, d)
    rank = min(d, n - 1 if centered else n)
    vectors = 4.0 * min(top, n) * d * size.item
    if size.square + size.held + vectors <= max_bytes and size.matrix_is_cheaper(top):
        return _from_matrix(noise, min(top, n), centered, seed, rank)
    least = float(least_columns(top) * d * size.item)
    if least > max_bytes:
        raise MemoryError(
            f"The {top} largest eigenvalues of {d} parameters need {least / 1e9:.2g} GB, more than "
            f"{max_bytes / 1e9:.3g} GB: raise max_bytes, or ask for fewer."
        )
    rows = n * d * size.item
    if rows + max(least, max_bytes / 4) > max_bytes:
        trace = noise.trace(centered=centered).value

        def apply(columns: Tensor) -> Tensor:
            return noise.matmat(columns, centered)
    else:
        held = noise._held(centered)
        trace = sum_of_squares(held) / n

        def apply(columns: Tensor) -> Tensor:
            return held.T @ (held @ columns) / n

    return top_spectrum(
        apply, top, trace, num_params=d, num_data=n, like=noise.position, seed=seed, rank=rank,
        basis_bytes=max_bytes / 4,
    )  # fmt: skip


def _matrix(noise: GradientNoise, centered: bool) -> Tensor:
    """``[N, N]`` or ``[D, D]``, over N."""
    n = noise.num_data
    if n >= noise.num_params:
        return noise.dense(centered)
    if noise.samples.factors is None:
        return gram_matrix([Factors(None, noise._held(centered))]).div_(n)
    pieces = zip(*noise._factors(), strict=True)
    gram = gram_matrix([_joined(each) for each in pieces])
    if centered:
        mean = gram.mean(0)
        gram.sub_(mean).sub_(mean[:, None]).add_(mean.mean())
    elif noise.samples.shift is not None:
        shift = noise._shift
        along = noise.slopes(shift).double().cpu() - 0.5 * shift.double().square().sum().cpu()
        gram.add_(along).add_(along[:, None])
    return gram.div_(n)


def _joined(pieces: tuple[Factors, ...]) -> Factors:
    right = torch.cat([piece.right for piece in pieces])
    left = [piece.left for piece in pieces if piece.left is not None]
    return Factors(torch.cat(left) if left else None, right)


def _from_matrix(noise: GradientNoise, top: int, centered: bool, seed: int, rank: int) -> Spectrum:
    matrix = _matrix(noise, centered)
    n, d, like = noise.num_data, noise.num_params, noise.position
    found = top_of_matrix(matrix, top, seed)
    values, residual = found.eigenvalues.numpy(), found.error.numpy()
    rounding = torch.finfo(like.dtype).eps * values[0]
    none = values <= 100 * rounding
    if n < d:
        longer = np.divide(values[0], values, out=np.ones_like(values), where=~none)
        residual = residual * np.sqrt(longer)

    def find() -> Tensor:
        inside = found.vectors
        assert inside is not None
        if n >= d:
            return inside.to(like)
        weights = (inside - inside.mean(0) if centered else inside).to(like)
        lengths = (found.eigenvalues * n).sqrt()
        return _orthonormal(noise._combined(weights), lengths, torch.from_numpy(none), seed)

    return Spectrum(
        eigenvalues=found.eigenvalues,
        error=torch.from_numpy(np.maximum(residual, 10 * rounding)),
        trace=found.trace,
        num_params=d,
        num_data=n,
        complete=top >= rank,
        _find_vectors=find,
    )


def _orthonormal(images: Tensor, lengths: Tensor, none: Tensor, seed: int) -> Tensor:
    """Columns of lengths that are known; random ones where these are rounding."""
    found = images / lengths.to(images)
    generator = torch.Generator().manual_seed(int(seed))
    random = torch.randn(len(images), int(none.sum()), generator=generator)
    found[:, none.to(found.device)] = (random / math.sqrt(len(images))).to(found)
    basis: Tensor = torch.linalg.qr(found)[0]
    return basis
