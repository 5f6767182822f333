"""One function per precondition. Each message says what came, what was expected, how to fix it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_choice",
    "check_finite",
    "check_fraction",
    "check_nonnegative",
    "check_particles",
    "check_positive",
    "check_positive_int",
    "is_number",
]


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number, booleans excluded."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> None:
    """``value`` is a finite number above 0."""
    if not is_number(value) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}.")


def check_nonnegative(name: str, value: Any) -> None:
    """``value`` is a finite number of at least 0."""
    if not is_number(value) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}.")


def check_fraction(name: str, value: Any) -> None:
    """``value`` is a number in [0, 1)."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}.")


def check_positive_int(name: str, value: Any, minimum: int = 1) -> None:
    """``value`` is an integer of at least ``minimum``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """``value`` is one of ``choices``."""
    choices = list(choices)
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {value!r}.")


def check_finite(name: str, value: Tensor, fix: str) -> None:
    """A floating-point tensor holds neither NaN nor infinity."""
    if value.is_floating_point() and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(
            f"{name} must be finite, got {bad} NaN or infinite values among {value.numel()}. {fix}"
        )


def check_particles(particles: Any, num_params: int, name: str = "particles") -> None:
    """``particles`` is a floating-point tensor ``[P, D]`` with at least one row."""
    if not isinstance(particles, Tensor):
        raise TypeError(f"{name} must be a tensor [P, D], got {type(particles).__name__}.")
    if particles.ndim != 2 or particles.shape[0] < 1 or particles.shape[1] != num_params:
        raise ValueError(
            f"{name} must have shape [P, {num_params}] with P >= 1, got {list(particles.shape)}. "
            "One particle is a tensor of shape [1, D]: use particles.unsqueeze(0)."
        )
    if not particles.is_floating_point():
        raise ValueError(
            f"{name} must be floating point, got {particles.dtype}: use {name}.float()."
        )
