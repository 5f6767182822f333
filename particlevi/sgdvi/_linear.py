"""Linear algebra that the stationary laws share: matrices are numpy's, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from particlevi._checks import check_finite

__all__ = [
    "Array",
    "as_matrix",
    "check_one_size",
    "check_positive_drift",
    "check_stable_steps",
    "is_symmetric",
    "momentum_steps",
    "solve_discrete",
    "symmetric_part",
]

Array = np.ndarray[Any, Any]


def as_matrix(name: str, matrix: Any) -> Array:
    """``matrix [D, D]`` in float64, finite.

    Raises:
        ValueError: anything else, by name.
    """
    try:
        tensor = torch.as_tensor(matrix)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be a matrix [D, D], got {type(matrix).__name__}: {error}"
        ) from error
    if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1] or len(tensor) == 0:
        raise ValueError(f"{name} must be a matrix [D, D], got {list(tensor.shape)}.")
    if tensor.is_complex():
        raise ValueError(f"{name} must be real, got {tensor.dtype}.")
    tensor = tensor.detach().cpu().double()
    check_finite(name, tensor, "Estimate it again.")
    found: Array = tensor.numpy()
    return found


def check_one_size(a: Array, b: Array) -> None:
    """Two matrices of one shape."""
    if a.shape != b.shape:
        raise ValueError(f"Both matrices must have one size, got {a.shape} and {b.shape}.")


def is_symmetric(matrix: Array) -> bool:
    """Symmetric up to the rounding of single precision."""
    return bool(np.abs(matrix - matrix.T).max() <= 1e-6 * np.abs(matrix).max())


def symmetric_part(matrix: Array) -> Array:
    """``(A + A') / 2``."""
    return np.asarray((matrix + matrix.T) / 2)


def check_positive_drift(slowest: float) -> None:
    """The smallest real part of the drift's eigenvalues is above 0."""
    if slowest <= 0:
        raise ValueError(
            f"There is no stationary law: the smallest curvature is {slowest:.3g}, it must be "
            "above 0. Add weight_decay, or restrict both matrices to directions of positive "
            "curvature (see invariant_subspace)."
        )


def momentum_steps(hessian: Array, learning_rate: float, momentum: float) -> tuple[Array, Array]:
    """``A`` and ``G`` of ``z' = A z + G xi`` for ``v' = m v + F x + xi``, ``x' = x - eta v'``.

    ``z`` is ``(x, v) [2 D]``; without momentum it is ``x [D]`` alone.
    """
    one, eta = np.eye(len(hessian)), learning_rate
    if momentum == 0:
        return one - eta * hessian, -eta * one
    step = np.block([[one - eta * hessian, -eta * momentum * one], [hessian, momentum * one]])
    return step, np.vstack([-eta * one, one])


def check_stable_steps(step: Array, learning_rate: float) -> None:
    """The largest factor per step is below 1."""
    finite = np.isfinite(step).all()
    radius = np.abs(np.linalg.eigvals(step)).max() if finite else np.inf
    if radius >= 1:
        raise ValueError(
            f"The steps have no stationary law: the largest factor per step is {radius:.4g}, it "
            f"must be below 1. Lower learning_rate (got {learning_rate}) below "
            f"2 (1 + momentum) / (largest curvature), and see that no curvature is <= 0."
        )


def solve_discrete(step: Array, kick: Array) -> Array:
    """``P = A P A' + N`` by doubling: the sum of ``A^k N A'^k`` over ``k < 2^j`` for growing j."""
    total, power = kick, step
    for _ in range(64):
        added = power @ total @ power.T
        total = total + added
        if np.abs(added).max() <= 1e-17 * np.abs(total).max():
            break
        power = power @ power
    return symmetric_part(total)
