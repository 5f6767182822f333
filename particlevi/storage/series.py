"""One array on disk whose draw axis is filled from the front."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi.storage.chunking import BUFFER_BYTES

__all__ = ["Series", "plain"]


class Series:
    """An array whose draw axis is filled from the front, a chunk at a time.

    Args:
        array: ``[P, T, ...]``, or ``[T]``.
        axis: of the draws.
        length: draws in a chunk.
        start: draws that are there.
        dtype: to which what is put is narrowed first; None for statistics.
    """

    def __init__(
        self,
        array: Any,
        axis: int,
        length: int,
        start: int = 0,
        dtype: torch.dtype | None = None,
    ):
        self.array = array
        self.dtype = dtype
        self.axis = axis
        self.length = length
        self.written = start
        first = start - start % length
        shape = list(array.shape)
        shape[axis] = length
        self.buffer = np.empty(shape, array.dtype) if length > 1 else None
        if self.buffer is not None and start > first:
            self.buffer[self._at(slice(0, start - first))] = array[self._at(slice(first, start))]

    def _at(self, where: slice | int) -> tuple[slice | int, ...]:
        return (*[slice(None)] * self.axis, where)

    def put(self, place: int, value: Tensor | float) -> None:
        """Draw number ``place``."""
        if self.buffer is not None:
            found = plain(value, self.dtype) if isinstance(value, Tensor) else value
            self.buffer[self._at(place % self.length)] = found
            if (place + 1) % self.length == 0:
                self.write(place + 1)
            return
        assert isinstance(value, Tensor)
        each = max(1, BUFFER_BYTES // max(1, 8 * value[0].numel()))
        step = each if each < self.array.chunks[0] else each - each % self.array.chunks[0]
        for start in range(0, len(value), step):
            part = slice(start, start + step)
            self.array[part, place] = plain(value[part], self.dtype)

    def write(self, count: int) -> None:
        """Put the draws up to ``count`` on disk."""
        if self.buffer is not None and count > self.written:
            first = (count - 1) // self.length * self.length
            piece = self.buffer[self._at(slice(0, count - first))]
            self.array[self._at(slice(first, count))] = piece
        self.written = count

    def due(self, count: int) -> bool:
        """Whether the chunk is full."""
        return count % self.length == 0


def plain(value: Tensor, dtype: torch.dtype | None = None) -> Any:
    """As an array of a type; bfloat16 as float32."""
    value = value.detach().to("cpu", dtype or value.dtype)
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
