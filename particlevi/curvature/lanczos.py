"""The largest eigenvalues of a symmetric matrix that is known by its products, by Lanczos.

Reference: Lehoucq, Sorensen and Yang, "ARPACK users' guide", 1998.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_function, check_nonnegative, check_positive_int, check_seed

__all__ = ["Eigenpairs", "top_eigenpairs"]

_DENSE = 3


class Eigenpairs(NamedTuple):
    """Eigenvalues, largest first, ``[K]``, and orthonormal eigenvectors ``[D, K]``, in float64."""

    values: Tensor
    vectors: Tensor


def top_eigenpairs(
    product: Callable[[Tensor], Tensor],
    size: int,
    num: int,
    *,
    tolerance: float = 0.0,
    seed: int = 0,
) -> Eigenpairs:
    """The ``num`` largest eigenvalues, with signs, and their eigenvectors.

    Args:
        product: ``A v [D]`` for ``v [D]`` in float64.
        size: D.
        num: K, at most D.
        tolerance: relative error of the eigenvalues; 0 for what rounding allows. Products in
            single precision do not reach less than about 1e-6.
        seed: of the starting vector.

    Raises:
        ValueError: products with which the iteration does not converge.

    Examples:
        >>> matrix = torch.diag(torch.tensor([1.0, 5.0, 3.0, -7.0], dtype=torch.float64))
        >>> top_eigenpairs(lambda v: matrix @ v, 4, 2).values
        tensor([5.0000, 3.0000], dtype=torch.float64)
    """
    check_function("product", product, "a vector [D] that gives one")
    check_positive_int("size", size)
    check_positive_int("num", num)
    check_nonnegative("tolerance", tolerance)
    check_seed("seed", seed)
    size, num, seed = int(size), int(num), int(seed)
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    def apply(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        given = torch.from_numpy(np.ascontiguousarray(vector.reshape(-1)))
        try:
            found = product(given)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"product failed on a vector [{size}] of float64: {error}") from error
        if not isinstance(found, Tensor) or found.shape != (size,):
            raise ValueError(f"product must give a tensor [{size}] for one.")
        return np.asarray(found.detach().double().cpu().numpy())

    if size <= _DENSE or num >= size:
        dense = np.stack([apply(column) for column in np.eye(size)])
        values, vectors = np.linalg.eigh(0.5 * (dense + dense.T))
        values, vectors = values[-num:], vectors[:, -num:]
    else:
        start = np.random.default_rng(int(seed)).standard_normal(size)
        operator = LinearOperator((size, size), matvec=apply, dtype=np.float64)
        try:
            values, vectors = eigsh(operator, num, which="LA", v0=start, tol=tolerance)
        except ArpackError as error:
            raise ValueError(
                f"The {num} largest curvatures of {size} were not found to a relative error of "
                f"{tolerance:g} ({error}): allow a larger tolerance, or use float64."
            ) from error
    order = np.argsort(values)[::-1]
    return Eigenpairs(
        torch.from_numpy(values[order].copy()), torch.from_numpy(vectors[:, order].copy())
    )
