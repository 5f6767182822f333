"""Preconditions of the functions of this package: points, vectors, fields, real tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_function

__all__ = [
    "as_directions",
    "as_real",
    "check_field",
    "check_points",
    "check_vector",
]


def _got(value: Any) -> str:
    return (
        f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    )


def check_points(name: str, value: Any, ndim: int | None = 2, size: int | None = None) -> None:
    """``value`` is a finite floating-point tensor ``[S, D]``, or ``[..., D]`` of any ``ndim``."""
    shape = f"[{'...' if ndim is None else 'S'}, {size or 'D'}]"
    right = isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 1
    if not right or (ndim is not None and value.ndim != ndim) or 0 in value.shape:
        raise ValueError(f"{name} must be a floating-point tensor {shape}, got {_got(value)}.")
    if size is not None and value.shape[-1] != size:
        raise ValueError(f"{name} must be a tensor {shape}, got {_got(value)}.")
    check_finite(name, value, "Leave those points out.")


def check_vector(name: str, value: Any, size: int | None = None) -> None:
    """``value`` is a floating-point tensor ``[D]``, finite."""
    if (
        not isinstance(value, Tensor)
        or value.ndim != 1
        or not value.is_floating_point()
        or not len(value)
        or (size is not None and len(value) != size)
    ):
        raise ValueError(
            f"{name} must be a floating-point tensor [{size or 'D'}], got {_got(value)}."
        )
    check_finite(name, value, "Take one that has not diverged.")


def as_real(name: str, value: Any, shape: str) -> Tensor:
    """``value`` as a float64 tensor on the CPU, finite.

    Args:
        name: in messages.
        value: a tensor, an array, a number or a list.
        shape: what was expected, in messages.

    Raises:
        ValueError: what torch cannot read, complex numbers, values that are not finite.
    """
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"{name} must be a tensor {shape}, got {type(value).__name__}: {error}"
        ) from error
    if tensor.is_meta or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be a real tensor {shape}, got {_got(tensor)}.")
    tensor = tensor.detach().cpu().double()
    check_finite(name, tensor, "Estimate it again.")
    return tensor


def check_field(
    name: str, field: Callable[[Tensor], Tensor], points: Tensor, shape: tuple[int, ...]
) -> None:
    """``field`` is a function of points ``[S, D]`` that gives ``[S, *shape]``, finite."""
    check_function(name, field, "points [S, D]", takes=1)
    try:
        found = field(points[:1])
    except Exception as error:
        raise ValueError(
            f"{name} failed on points [1, {points.shape[1]}] of {points.dtype}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (1, *shape):
        wanted = ", ".join(["S", *map(str, shape)])
        raise ValueError(
            f"{name} must map points [S, D] to a tensor [{wanted}], got {_got(found)} at one point."
        )
    check_finite(f"{name}(points)", found, "Leave those points out.")


def as_directions(name: str, value: Any, size: int, columns: int | None = None) -> Tensor:
    """``value`` as a finite float64 tensor ``[D, K]``."""
    right = isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 2
    if not right or value.shape[0] != size or value.shape[1] != (columns or value.shape[1]):
        raise ValueError(
            f"{name} must be a floating-point tensor [{size}, {columns or 'K'}], got {_got(value)}."
        )
    if value.shape[1] == 0:
        raise ValueError(f"{name} must have at least one column, got {_got(value)}.")
    check_finite(name, value, "Leave those directions out.")
    found: Tensor = value.detach().double()
    return found
