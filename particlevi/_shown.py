"""What a terminal and a notebook show of a result: its text, or its fields in short."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor

from particlevi import _html

__all__ = ["Shown"]

_MOST = 6
_WIDEST = 60


class Shown:
    """A dataclass (with ``repr=False``) that is shown by ``str``, never twice and never at length.

    >>> from dataclasses import dataclass
    >>> import torch
    >>> @dataclass(repr=False)
    ... class Found(Shown):
    ...     value: float
    ...     matrix: Tensor
    >>> Found(0.25, torch.eye(20))
    Found
      value   0.25
      matrix  tensor [20, 20], 0 to 1
    """

    def __str__(self) -> str:
        """Every field in a line."""
        shown = {each.name: _brief(getattr(self, each.name)) for each in fields(self)}  # type: ignore[arg-type]
        width = max((len(name) for name in shown), default=0)
        lines = [f"  {name:{width}}  {text}" for name, text in shown.items() if name[0] != "_"]
        return "\n".join([type(self).__name__, *lines])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        name, _, rest = str(self).partition("\n")
        own = name != type(self).__name__
        return _html.block(type(self).__name__, _html.preformatted(str(self) if own else rest))


def _brief(value: Any) -> str:
    if isinstance(value, (Tensor, np.ndarray)):
        return _brief_array(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (str, int)) or value is None:
        return str(value)
    if isinstance(value, Mapping):
        return f"{len(value)} by name: {', '.join(map(str, value))}"[:_WIDEST]
    if isinstance(value, (list, tuple)) and len(value) > _MOST:
        return f"{len(value)} x {type(value[0]).__name__}"
    text = str(value)
    plain = isinstance(value, Sized) and "\n" not in text and len(text) <= _WIDEST
    return text if plain else type(value).__name__


def _brief_array(value: Any) -> str:
    kind = "tensor" if isinstance(value, Tensor) else "array"
    if not value.size if kind == "array" else not value.numel():
        return f"{kind} {list(value.shape)}"
    if value.ndim == 0:
        return f"{value.item():.6g}"
    if value.ndim == 1 and len(value) <= _MOST:
        return f"[{', '.join(f'{each:.4g}' for each in value.tolist())}]"
    return f"{kind} {list(value.shape)}, {float(value.min()):.4g} to {float(value.max()):.4g}"
