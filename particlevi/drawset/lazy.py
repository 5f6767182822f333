"""Draws that stay on disk: a tensor that is read where it is looked at.

``LazyTensor`` is a ``torch.Tensor`` without memory of its own. Chains, draws and columns that are
picked, and rows that are laid end to end, stay lazy; every other operation reads what it is given
and then is torch's own. So a diagnostic that goes through the draws piece by piece needs memory
for one piece, and one that asks for all of them gets all, if they fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["PANEL_BYTES", "LazyTensor", "Source", "loaded", "panels"]

PANEL_BYTES = 2**27
"""Of all draws of some columns, as they are read together for a statistic along the chains."""

Places = npt.NDArray[np.int64]


class Source(Protocol):
    """Where draws lie."""

    @property
    def path(self) -> Path:
        """Of the Zarr hierarchy that they are in."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the draws."""
        ...

    def read(self, chains: Places, draws: Places, columns: slice) -> Tensor:
        """Some draws of some chains, ``[chains, draws, columns]``."""
        ...

    def free(self) -> int:
        """Bytes that can be read at once."""
        ...


@dataclass(frozen=True)
class Selection:
    """Which draws: all of ``chains`` x ``draws``, or of that grid the ``rows``, and columns.

    Attributes:
        source: where they lie.
        chains: their numbers there.
        draws: their numbers there.
        columns: a range of step 1.
        rows: numbers in the grid, chain after chain, of draws laid end to end; None for the grid.
    """

    source: Source
    chains: Places
    draws: Places
    columns: slice
    rows: Places | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """``[P, T, K]``, or ``[S, K]``."""
        width = self.columns.stop - self.columns.start
        if self.rows is not None:
            return len(self.rows), width
        return len(self.chains), len(self.draws), width

    def read(self) -> Tensor:
        """The draws, ``[P, T, K]`` or ``[S, K]``."""
        if self.rows is None:
            return self.source.read(self.chains, self.draws, self.columns)
        length = max(1, len(self.draws))
        parts = [
            self.source.read(self.chains[[chain]], self.draws[run % length], self.columns)[0]
            for chain, run in _runs(self.rows, length)
        ]
        return torch.cat(parts) if parts else torch.empty(self.shape, dtype=self.source.dtype)

    def pick(self, axis: int, places: slice | Places) -> Selection:
        """Some along an axis."""
        if axis == len(self.shape) - 1:
            assert isinstance(places, slice)
            first = self.columns.start
            return replace(self, columns=slice(first + places.start, first + places.stop))
        if self.rows is not None:
            return replace(self, rows=self.rows[places])
        if axis == 0:
            return replace(self, chains=self.chains[places])
        return replace(self, draws=self.draws[places])


def _runs(rows: Places, length: int) -> Iterator[tuple[int, Places]]:
    """Neighbouring rows of one chain."""
    chains = rows // length
    for run in np.split(rows, np.flatnonzero(np.diff(chains)) + 1) if len(rows) else []:
        yield int(run[0] // length), run


class LazyTensor(Tensor):
    """Draws ``[P, T, K]``, or ``[S, K]``, that are read when they are needed.

    Raises:
        TypeError: it is to be changed in place.
        MemoryError: more is needed at once than fits in memory.
    """

    selection: Selection

    @staticmethod
    def __new__(cls, selection: Selection) -> LazyTensor:
        """A tensor of the shape of the selection, on the CPU."""
        made: LazyTensor = Tensor._make_wrapper_subclass(
            cls, selection.shape, dtype=selection.source.dtype, device=torch.device("cpu")
        )
        made.selection = selection
        return made

    @classmethod
    def of(cls, source: Source, chains: range, draws: range, width: int) -> LazyTensor:
        """Some draws of some chains, ``[P, T, K]``."""
        return cls(Selection(source, np.array(chains), np.array(draws), slice(0, width)))

    def of_chains(self, chains: Places) -> LazyTensor:
        """The same draws of other chains."""
        return LazyTensor(replace(self.selection, chains=chains))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"LazyTensor({list(self.shape)}, {self.dtype}, {self.selection.source})"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return LazyTensor, (self.selection,)

    def __deepcopy__(self, memo: Any) -> LazyTensor:
        return LazyTensor(self.selection)

    def numpy(self, **options: Any) -> npt.NDArray[Any]:
        """The draws as an array."""
        return self.load().numpy(**options)

    def tolist(self) -> list[Any]:
        """The draws as lists."""
        return self.load().tolist()

    def load(self) -> Tensor:
        """The draws, in memory.

        Raises:
            MemoryError: they do not fit.
        """
        needed, free = self.numel() * self.dtype.itemsize, self.selection.source.free()
        if needed > free:
            raise MemoryError(
                f"Draws {list(self.shape)} of {needed / 1e9:.2f} GB were asked for at once, and "
                f"{free / 1e9:.2f} GB are available: take fewer, such as draws[:, -100:] or "
                "draws.thin(10), or a part of their columns."
            )
        return self.selection.read()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """An operation of torch."""
        lazily = _LAZILY.get(func)
        if lazily is not None and isinstance(args[0], cls):
            found = lazily(args[0].selection, *args[1:])
            if isinstance(found, Tensor):
                return found
            if isinstance(found, list):
                return [cls(each) for each in found]
            if found is not None:
                return cls(found)
        if func._schema.is_mutable and isinstance(args[0], cls):
            raise TypeError("Draws on disk are not changed in place: take a copy, draws.clone().")

        def read(value: Any) -> Any:
            return value.load() if isinstance(value, cls) else value

        return func(*pytree.tree_map(read, args), **pytree.tree_map(read, kwargs or {}))


def loaded(values: Tensor) -> Tensor:
    """Draws in memory, wherever they were.

    Raises:
        MemoryError: they do not fit.
    """
    return values.load() if isinstance(values, LazyTensor) else values


def _same(what: Selection) -> Selection:
    return what


def _slice(
    what: Selection, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Selection | None:
    axis = dim % len(what.shape)
    span = slice(*slice(start, end, step).indices(what.shape[axis]))
    if axis == len(what.shape) - 1:
        if step != 1:
            return None
        span = slice(span.start, max(span.start, span.stop))
    return what.pick(axis, span)


def _select(what: Selection, dim: int, index: int) -> Tensor | None:
    """One chain, draw or row, read."""
    axis = dim % len(what.shape)
    if axis == len(what.shape) - 1:
        return None
    place = index % what.shape[axis]
    return LazyTensor(what.pick(axis, slice(place, place + 1))).load().select(axis, 0)


def _index(what: Selection, indices: list[Tensor | None]) -> Selection | None:
    used = [axis for axis, index in enumerate(indices) if index is not None]
    if len(used) != 1 or used[0] == len(what.shape) - 1:
        return None
    (axis,) = used
    index = indices[axis]
    if index is None or index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
        return None
    return what.pick(axis, index.cpu().numpy().astype(np.int64))


def _view(what: Selection, shape: Sequence[int]) -> Selection | None:
    """Draws of all chains laid end to end."""
    now = what.shape
    wanted = list(shape)
    if wanted == list(now) or (-1 in wanted and _resolved(wanted, now) == list(now)):
        return what
    if len(now) != 3 or _resolved(wanted, now) != [now[0] * now[1], now[2]]:
        return None
    return replace(what, rows=np.arange(now[0] * now[1]))


def _resolved(wanted: list[int], now: tuple[int, ...]) -> list[int]:
    known = int(np.prod([size for size in wanted if size != -1]))
    total = int(np.prod(now))
    return [total // max(1, known) if size == -1 else size for size in wanted]


def _split(what: Selection, size: int, dim: int = 0) -> list[Selection] | None:
    axis = dim % len(what.shape)
    length = what.shape[axis]
    starts = range(0, max(1, length), size)
    return [what.pick(axis, slice(start, min(start + size, length))) for start in starts]


_aten = torch.ops.aten
_LAZILY: dict[Any, Callable[..., Selection | list[Selection] | Tensor | None]] = {
    _aten.detach.default: _same,
    _aten.alias.default: _same,
    _aten.slice.Tensor: _slice,
    _aten.select.int: _select,
    _aten.index.Tensor: _index,
    _aten.view.default: _view,
    _aten._unsafe_view.default: _view,
    _aten.split.Tensor: _split,
}


def panels(values: Any) -> Iterator[tuple[slice, Any]]:
    """All draws of some columns at a time, ``[P, T, columns]``, where they are on disk.

    Values in memory come as they are, all at once.
    """
    width = values.shape[-1]
    if not isinstance(values, LazyTensor):
        yield slice(0, width), values
        return
    each = max(1, int(np.prod(values.shape[:-1])) * values.dtype.itemsize)
    length = max(1, PANEL_BYTES // each)
    for start in range(0, width, length):
        part = slice(start, min(start + length, width))
        yield part, LazyTensor(values.selection.pick(len(values.shape) - 1, part)).load()
