"""One array on disk whose draw axis is filled from the front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from particlevi.storage.chunking import BUFFER_BYTES
from particlevi.storage.team import Team

__all__ = ["Series", "plain", "write_together"]


class Series:
    """An array whose draw axis is filled from the front, a chunk at a time.

    Where a chunk holds chains of several processes, each keeps its own in a buffer, and the first
    writes all of them: such an array is ``staged``.

    Args:
        array: ``[P, T, ...]``, or ``[T]``; None where this process does not write.
        axis: of the draws.
        length: draws in a chunk.
        start: draws that are there.
        dtype: to which what is put is narrowed first; None for statistics.
        rows: the chains that are put here; all if absent.
        staged: whether the first process writes all chains.
        like: what tells shape, type and the draws that are there; the array if absent.
    """

    def __init__(
        self,
        array: Any,
        axis: int,
        length: int,
        start: int = 0,
        dtype: torch.dtype | None = None,
        *,
        rows: range | None = None,
        staged: bool = False,
        like: Any = None,
    ):
        like = array if like is None else like
        self.array = array
        self.dtype = dtype
        self.axis = axis
        self.length = length
        self.staged = staged
        self.written: int = start
        self.rows: slice = slice(None) if rows is None else slice(rows.start, rows.stop)
        shape = list(like.shape)
        shape[axis] = length
        if axis and rows is not None:
            shape[0] = len(rows)
        buffered = staged or (array is not None and length > 1)
        self.buffer: npt.NDArray[Any] | None = np.empty(shape, like.dtype) if buffered else None
        first = start - start % length
        if self.buffer is not None and start > first:
            self.buffer[self._at(slice(0, start - first))] = like[
                self._at(slice(first, start), self.rows)
            ]

    def _at(self, where: slice | int, rows: slice = slice(None)) -> tuple[slice | int, ...]:
        return (rows, where) if self.axis else (where,)

    def put(self, place: int, value: Tensor | float) -> None:
        """Draw number ``place``."""
        if self.buffer is not None:
            found = plain(value, self.dtype) if isinstance(value, Tensor) else value
            self.buffer[self._at(place % self.length)] = found
            if (place + 1) % self.length == 0 and not self.staged:
                self.write(place + 1)
            return
        if self.array is None:
            return
        assert isinstance(value, Tensor)
        each = max(1, BUFFER_BYTES // max(1, 8 * value[0].numel()))
        step = each if each < self.array.chunks[0] else each - each % self.array.chunks[0]
        first = self.rows.start or 0
        for start in range(0, len(value), step):
            piece = plain(value[start : start + step], self.dtype)
            self.array[first + start : first + start + len(piece), place] = piece

    def waiting(self, count: int) -> npt.NDArray[Any]:
        """Draws of the chains here, from the first of the last chunk up to ``count``."""
        assert self.buffer is not None
        return self.buffer[self._at(slice(0, count - self._first(count)))]

    def write(self, count: int, whole: npt.NDArray[Any] | None = None) -> None:
        """Put the draws up to ``count`` on disk.

        Args:
            count: draws that there are.
            whole: what waits of them in all processes, if the array is staged.
        """
        if self.array is not None and self.buffer is not None and count > self.written:
            where = slice(self._first(count), count)
            if whole is None:
                self.array[self._at(where, self.rows)] = self.waiting(count)
            else:
                self.array[self._at(where)] = whole
        self.written = count

    def _first(self, count: int) -> int:
        return (count - 1) // self.length * self.length

    def due(self, count: int) -> bool:
        """Whether the chunk is full."""
        return count % self.length == 0


def write_together(series: Sequence[Series], count: int, team: Team) -> None:
    """Put the draws up to ``count`` of staged arrays on disk, those of all processes.

    Args:
        series: staged, the same in every process.
        count: draws that there are.
        team: the processes; those that do not write have no part in it.
    """
    due = [each for each in series if count > each.written]
    if not due or not team.writes:
        return
    waiting = [each.waiting(count) for each in due]
    flat = [np.ascontiguousarray(part).reshape(len(part), -1).view(np.uint8) for part in waiting]
    (found,) = team.gather([torch.from_numpy(np.concatenate(flat, 1))])
    parts = np.split(found.numpy(), np.cumsum([part.shape[1] for part in flat])[:-1], 1)
    for each, part, own in zip(due, parts, waiting, strict=True):
        numbers = np.ascontiguousarray(part).view(own.dtype)
        each.write(count, numbers.reshape(len(part), *own.shape[1:]))


def plain(value: Tensor, dtype: torch.dtype | None = None) -> Any:
    """As an array of a type; bfloat16 as float32."""
    value = value.detach().to("cpu", dtype or value.dtype)
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
