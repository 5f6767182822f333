"""State to file and back: safetensors with JSON metadata, so that loading never runs code.

A checkpoint is a folder. ``state.safetensors`` is replaced atomically; the draws lie in files that
are written once and named in the state, so that a kill at any moment leaves a checkpoint whole.
Every file holds a digest of itself, and the files of a run its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from particlevi._checks import as_path, check_positive_int, is_integer, is_number
from particlevi.storage import sealed

__all__ = ["Checkpoint", "differences", "flatten", "read", "unflatten", "write"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder to save a run in, and how often.

    Args:
        folder: made if it is not there.
        every: steps between checkpoints; about once a minute if absent.

    Raises:
        ValueError: ``every`` below 1.

    Examples:
        >>> Checkpoint("run", every=1000).every
        1000
    """

    folder: str | Path
    every: int | None = None

    def __post_init__(self) -> None:
        as_path("folder", self.folder)
        if self.every is not None:
            check_positive_int("every", self.every)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write one file atomically: after a crash there is the old file or the new one."""
    sealed.write(path, tensors, json.dumps(metadata, default=_plain))


def _plain(number: Any) -> int | float:
    """A number of numpy as JSON."""
    if not is_number(number):
        raise TypeError(f"A file's metadata must be JSON, got {type(number).__name__}.")
    return int(number) if is_integer(number) else float(number)


def read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and metadata of one file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind or format, or a damaged one.
    """
    tensors, text = sealed.read(path)
    return tensors, json.loads(text)


def flatten(value: Any, prefix: str) -> dict[str, Tensor]:
    """A tree of tuples of tensors as a flat dict with dotted names."""
    if isinstance(value, Tensor):
        return {prefix: value}
    flat = {}
    for name, part in zip(_names(value), value, strict=True):
        flat.update(flatten(part, f"{prefix}.{name}"))
    return flat


def _names(value: tuple[Any, ...]) -> tuple[str, ...]:
    """The fields of a NamedTuple, or the places in another tuple."""
    return getattr(value, "_fields", tuple(map(str, range(len(value)))))


def unflatten(template: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    """The tree that ``flatten`` took apart, in the shape of ``template``.

    Raises:
        ValueError: a tensor is missing or has another shape or dtype.
    """
    if isinstance(template, Tensor):
        found = tensors.get(prefix)
        if found is None or found.shape != template.shape or found.dtype != template.dtype:
            got = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ValueError(
                f"The checkpoint's {prefix} must be {template.dtype} {list(template.shape)}, "
                f"got {got}: it belongs to another sampler."
            )
        # A copy, because how torch rounds depends on how memory is aligned.
        return found.to(template.device, copy=True)
    parts = [
        unflatten(part, tensors, f"{prefix}.{name}")
        for name, part in zip(_names(template), template, strict=True)
    ]
    return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)


def differences(saved: Any, given: Any, name: str) -> list[str]:
    """Where two JSON values differ, in words."""
    if isinstance(saved, dict) and isinstance(given, dict):
        found = []
        for key in sorted(set(saved) | set(given)):
            found += differences(saved.get(key), given.get(key), f"{name}.{key}")
        return found
    if isinstance(given, tuple):
        given = list(given)
    if saved == given:
        return []
    return [f"{name} was {_short(saved)}, is {_short(given)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, default=_plain)
    return text if len(text) < 80 else text[:77] + "..."
