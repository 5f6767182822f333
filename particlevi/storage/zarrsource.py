"""Draws and statistics of a hierarchy, read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi.drawset.lazy import Places
from particlevi.storage.chunking import BUFFER_BYTES, boxes
from particlevi.storage.hierarchy import DRAW, Hierarchy
from particlevi.storage.recording import available_memory

__all__ = ["ZarrSource", "read_stats"]


@dataclass(frozen=True)
class ZarrSource:
    """Where draws ``[P, T, K]`` lie in a hierarchy.

    A few draws of a chunk are asked for one after the other more often than not, so the draws of
    the last chunk, of the chains and columns that were asked for, are remembered: at most 64 MB.

    Attributes:
        path: of the hierarchy.
        parts: arrays ``"group/name"`` and the shapes of the tensors, in the order of the columns.
        dtype: of the draws.
    """

    path: Path
    parts: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    _last: dict[Any, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"in {str(self.path)!r}"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "parts": self.parts, "dtype": self.dtype, "_last": {}}

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The arrays, to read from."""
        hierarchy = Hierarchy(self.path)
        return {name: hierarchy.reader(*name.split("/")) for name in self.parts}

    def free(self) -> int:
        """Bytes that can be read at once."""
        return available_memory()

    def read(self, chains: Places, draws: Places, columns: slice) -> Tensor:
        """Some draws of some chains, ``[chains, draws, columns]``."""
        if not len(chains) or not len(draws) or columns.start >= columns.stop:
            width = columns.stop - columns.start
            return torch.empty(len(chains), len(draws), width, dtype=self.dtype)
        first = next(iter(self.arrays.values()))
        block, room = first.chunks[1], first.shape[1]
        start = int(draws[0]) // block * block
        stop = min(start + block, room)
        size = len(chains) * (stop - start) * (columns.stop - columns.start) * self.dtype.itemsize
        inside = draws.min() >= start and draws.max() < stop
        if not inside or len(draws) >= stop - start or size > BUFFER_BYTES:
            return self._read(chains, draws, columns)
        key = (tuple(chains.tolist()), start, columns.start, columns.stop)
        found = self._last.get(key)
        wanted = torch.from_numpy(draws - start)
        if found is None or int(wanted.max()) >= found.shape[1]:
            # A run that is going on fills the rest of the chunk later.
            upto = max(int(draws.max()) + 1, min(stop, self._there()))
            found = self._read(chains, np.arange(start, upto), columns)
            self._last.clear()
            self._last[key] = found
        return found[:, wanted]

    def _there(self) -> int:
        """Draws that are on disk, in the group that is read."""
        group = next(iter(self.parts)).split("/")[0]
        return Hierarchy(self.path).counts[group]

    def _read(self, chains: Places, draws: Places, columns: slice) -> Tensor:
        width = columns.stop - columns.start
        values = torch.empty(len(chains), len(draws), width, dtype=self.dtype)
        start = 0
        for name, shape in self.parts.items():
            stop = start + prod(shape)
            first, last = max(start, columns.start), min(stop, columns.stop)
            place = first - columns.start
            for box in boxes(shape, first - start, last - start):
                picked = _pick(self.arrays[name], chains, draws, box)
                flat = torch.from_numpy(picked).flatten(2) if box else _scalar(picked)
                values[..., place : place + flat.shape[-1]] = flat
                place += flat.shape[-1]
            start = stop
        return values


def _scalar(picked: Any) -> Tensor:
    return torch.from_numpy(picked).unsqueeze(-1)


def _pick(array: Any, chains: Places, draws: Places, box: tuple[slice, ...]) -> Any:
    """Rows and draws as ranges where they are ranges."""
    places = [_as_slice(chains), _as_slice(draws)]
    if all(isinstance(place, slice) for place in places):
        return np.asarray(array[(*places, *box)])
    return np.asarray(array.oindex[(*places, *box)])


def _as_slice(places: Places) -> slice | Places:
    if len(places) == 1:
        return slice(int(places[0]), int(places[0]) + 1)
    steps = np.diff(places)
    if (steps == steps[0]).all() and steps[0] > 0:
        return slice(int(places[0]), int(places[-1]) + 1, int(steps[0]))
    return places


def read_stats(hierarchy: Hierarchy, group: str, start: int, stop: int) -> dict[str, Tensor]:
    """Statistics ``[P, T]`` or ``[T]`` of some draws, in memory."""
    found: dict[str, Tensor] = {}
    if group not in hierarchy.nodes or start >= stop:
        return found
    for name in hierarchy.names(group):
        dims = hierarchy.dims(f"{group}/{name}")
        if DRAW not in dims or name == DRAW:
            continue
        array = hierarchy.reader(group, name)
        value = torch.from_numpy(np.asarray(array[..., start:stop]))
        dtype = array.attrs.get("torch_dtype")
        value = value if dtype is None else value.to(getattr(torch, str(dtype)))
        found["potential" if name == "lp" else name] = -value if name == "lp" else value
    return found
