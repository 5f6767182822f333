"""One function per precondition. Each message says what came, what was expected, how to fix it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "as_device",
    "as_list",
    "as_path",
    "as_real_tensor",
    "check_choice",
    "check_finite",
    "check_flag",
    "check_floating",
    "check_fraction",
    "check_function",
    "check_groups",
    "check_has",
    "check_is",
    "check_nonnegative",
    "check_particles",
    "check_positive",
    "check_positive_int",
    "check_real",
    "check_seed",
    "is_integer",
    "is_number",
    "is_word",
]

_LONGEST = 200


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number, of numpy too, booleans excluded."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    """Whether ``value`` is an integer, of numpy too, booleans excluded."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_word(value: Any, word: str) -> bool:
    """Whether ``value`` is this text; an array is none, and is not compared by element."""
    return isinstance(value, str) and value == word


def _shown(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return f"a {type(value).__name__} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _is_finite(value: Any) -> bool:
    if is_integer(value):
        return bool(abs(int(value)) < 2**63)
    return is_number(value) and math.isfinite(value)


def check_positive(name: str, value: Any) -> None:
    """``value`` is a finite number above 0."""
    if not _is_finite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number above 0, got {_shown(value)}.")


def check_nonnegative(name: str, value: Any) -> None:
    """``value`` is a finite number of at least 0."""
    if not _is_finite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of at least 0, got {_shown(value)}.")


def check_real(name: str, value: Any) -> None:
    """``value`` is a finite number."""
    if not _is_finite(value):
        raise ValueError(f"{name} must be a finite number, got {_shown(value)}.")


def check_flag(name: str, value: Any) -> None:
    """``value`` is True or False, nothing that only counts as one."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {_shown(value)}.")


def check_fraction(name: str, value: Any) -> None:
    """``value`` is a number in [0, 1)."""
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a number in [0, 1), got {_shown(value)}.")


def check_positive_int(name: str, value: Any, minimum: int = 1) -> None:
    """``value`` is an integer of at least ``minimum``."""
    if not is_integer(value) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {_shown(value)}.")
    if value >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {_shown(value)}.")


def check_seed(name: str, value: Any) -> None:
    """``value`` is an integer that seeds a generator."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, got {_shown(value)}.")
    if not 0 <= value < 2**63:
        raise ValueError(f"{name} must be in 0 ... 2**63 - 1, got {_shown(value)}.")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """``value`` is one of ``choices``."""
    choices = list(choices)
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}, got {_shown(value)}.")


def check_is(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """``value`` is of a class, ``expected`` in words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {expected}, got {_shown(value)}.")


def check_has(name: str, value: Any, members: Iterable[str], expected: str) -> None:
    """``value`` has the members of a protocol, ``expected`` in words; a class has not."""
    missing = [each for each in members if not hasattr(value, each)]
    if missing or isinstance(value, type):
        raise TypeError(f"{name} must be {expected}, got {_shown(value)}.")


def check_function(name: str, value: Any, of: str, takes: int | None = None) -> None:
    """``value`` can be called, with ``takes`` arguments; ``of`` says which, and what it gives."""
    if not callable(value):
        raise TypeError(f"{name} must be a function of {of}, got {_shown(value)}.")
    if takes is None:
        return
    if isinstance(value, type):
        raise TypeError(
            f"{name} must be a function of {of}, got the class {value.__name__}: give an instance."
        )
    try:
        signature = inspect.signature(getattr(value, "forward", value))
    except (TypeError, ValueError):  # some of C tell nothing
        return
    try:
        signature.bind(*range(takes))
    except TypeError:
        raise TypeError(
            f"{name} must be a function of {of}, got {_shown(value)}, which takes {signature}."
        ) from None


def as_list(name: str, value: Any, expected: str) -> list[Any]:
    """The items of a sequence; text and mappings are none."""
    scalar = isinstance(value, (Tensor, np.ndarray)) and not value.ndim
    if isinstance(value, (str, bytes, Mapping)) or scalar or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be {expected}, got {_shown(value)}.")
    return list(value)


def as_device(name: str, value: Any) -> torch.device:
    """``value`` as a device; a number, which torch takes for a GPU's, is none."""
    try:
        if isinstance(value, (str, torch.device)):
            return torch.device(value)
    except RuntimeError as error:
        raise ValueError(
            f"{name} must be a device, as 'cpu' or 'cuda:0', got {value!r}."
        ) from error
    raise TypeError(f"{name} must be a device, as 'cpu' or 'cuda:0', got {_shown(value)}.")


def check_floating(name: str, value: Any) -> None:
    """``value`` is a floating point dtype."""
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise TypeError(
            f"{name} must be a floating point torch.dtype, as torch.float64, got {_shown(value)}."
        )


def as_path(name: str, value: Any) -> Path:
    """``value`` as a path; it is text or a path."""
    if not isinstance(value, (str, PathLike)) or not str(value):
        raise TypeError(f"{name} must be a path, got {_shown(value)}.")
    return Path(value)


def as_real_tensor(name: str, value: Any, shape: str, ndim: int | None = None) -> Tensor:
    """``value`` as a tensor of real numbers, arrays and lists too.

    Args:
        name: in messages.
        value: what was given.
        shape: what was expected, in messages.
        ndim: how many dimensions; any if None.

    Raises:
        ValueError: what torch cannot read, complex numbers, no values, other dimensions.
    """
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be a tensor {shape}, got {_shown(value)}.") from error
    if found.is_meta or found.is_complex() or (ndim is not None and found.ndim != ndim):
        raise ValueError(
            f"{name} must be a tensor {shape} of real numbers, got {found.dtype} "
            f"{list(found.shape)} on {found.device}."
        )
    if not found.numel():
        raise ValueError(f"{name} must be a tensor {shape}, got one without values.")
    return found.detach()


def check_finite(name: str, value: Tensor, fix: str) -> None:
    """A floating-point tensor holds neither NaN nor infinity; one without values passes."""
    if value.is_floating_point() and not value.is_meta and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(
            f"{name} must be finite, got {bad} NaN or infinite values among {value.numel()}. {fix}"
        )


def check_groups(groups: Any, num_params: int | None = None) -> None:
    """``groups`` is a LongTensor ``[D]`` of numbers from 0 without gaps."""
    found = groups if isinstance(groups, Tensor) else torch.empty(0)
    if found.dtype != torch.long or found.ndim != 1 or len(found) != (num_params or len(found)):
        kind = f"{found.dtype} {list(found.shape)}" if found is groups else type(groups).__name__
        raise ValueError(
            f"groups must be a LongTensor [{num_params or 'D'}], one number per parameter, "
            f"got {kind}."
        )
    present = groups.unique()
    if not len(present) or not bool((present.diff() == 1).all()) or int(present[0]):
        raise ValueError(
            f"groups must be numbered from 0 without gaps, got {present[:10].tolist()}: "
            "use groups.unique(return_inverse=True)[1]."
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
