"""One value per group, spread over the coordinates of the group."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from particlevi._tracing import is_compiling

__all__ = ["Partition"]

_MOST_RUNS = 64
_ELEMENTS_PER_RUN = 4000


class Partition:
    """Group numbers ``LongTensor [D]``, from 0 without gaps, and the contiguous runs they make."""

    def __init__(self, groups: Tensor):
        self.groups = groups
        self.num_groups: int = int(groups.max()) + 1
        bounds = (groups.diff() != 0).nonzero().flatten().add(1).tolist()
        edges = [0, *bounds, len(groups)]
        self.runs: list[tuple[int, int, int]] = [
            (int(groups[start]), start, stop) for start, stop in pairwise(edges)
        ]

    def spread(self, values: Tensor) -> Tensor:
        """Values per group ``[S, M]`` as values per coordinate ``[S, D]``."""
        return _stored(self._spread, values)

    def _spread(self, values: Tensor) -> Tensor:
        groups = self.groups.to(values.device)
        return values.gather(1, groups.expand(len(values), -1))

    def gather(self, rows: Tensor, index: Tensor) -> Tensor:
        """``rows[index[s, groups[d]], d]``: every group from a row of its own.

        Long runs are copied as such, row by row; otherwise numbers are looked up one by one.

        Args:
            rows: ``[R, D]``.
            index: row numbers ``[S, M]``.

        Returns:
            ``[S, D]``.
        """
        index = index.to(rows.device)
        if is_compiling():
            by_runs = len(self.runs) <= _MOST_RUNS
        else:
            by_runs = len(self.runs) * _ELEMENTS_PER_RUN <= len(index) * rows.shape[1]
        if not by_runs:
            return _stored(lambda part: rows.gather(0, self._spread(part)), index)
        parts = [rows[:, start:stop].index_select(0, index[:, m]) for m, start, stop in self.runs]
        return torch.cat(parts, dim=1)


def _stored(lookup: Callable[[Tensor], Tensor], index: Tensor) -> Tensor:
    """``lookup(index)``, by halves under torch.compile.

    What ``cat`` joins is stored; anything else would be looked up anew by every operation that
    reads it, such as the addition of a bias to each row of a batch.
    """
    if not is_compiling():
        return lookup(index)
    return torch.cat([lookup(part) for part in index.chunk(2)])
