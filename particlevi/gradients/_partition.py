"""One value per group, spread over the coordinates of the group."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Partition"]

_MOST_RUNS = 64
_ELEMENTS_PER_RUN = 2000


class Partition:
    """Group numbers ``LongTensor [D]``, from 0 without gaps, and the runs they make.

    Groups that are whole tensors or layers lie in few contiguous runs, which are copied row by
    row; scattered groups are gathered number by number, which costs some ten times as much.
    """

    def __init__(self, groups: Tensor):
        self.groups = groups
        self.num_groups = int(groups.max()) + 1
        bounds = (groups.diff() != 0).nonzero().flatten().add(1).tolist()
        edges = [0, *bounds, len(groups)]
        self.runs = [(int(groups[start]), start, stop) for start, stop in pairwise(edges)]

    def spread(self, values: Tensor) -> Tensor:
        """Values per group ``[..., M]`` as values per coordinate ``[..., D]``."""
        if len(self.runs) > _MOST_RUNS:
            return values.index_select(-1, self.groups)
        lead = values.shape[:-1]
        return torch.cat(
            [values[..., m : m + 1].expand(*lead, stop - start) for m, start, stop in self.runs],
            dim=-1,
        )

    def gather(self, rows: Tensor, index: Tensor) -> Tensor:
        """``rows[index[s, groups[d]], d]``: every group from a row of its own.

        Args:
            rows: ``[R, D]``.
            index: row numbers ``[S, M]``.

        Returns:
            ``[S, D]``.
        """
        if torch.compiler.is_compiling() and len(self.runs) <= _MOST_RUNS:
            parts = [rows[:, a:b].index_select(0, index[:, m]) for m, a, b in self.runs]
            return torch.cat(parts, dim=1)
        if (
            torch.compiler.is_compiling()
            or len(self.runs) * _ELEMENTS_PER_RUN >= len(index) * rows.shape[1]
        ):
            return rows.gather(0, index.index_select(1, self.groups.to(index.device)))
        out = rows.new_empty(len(index), rows.shape[1])
        for m, start, stop in self.runs:
            out[:, start:stop] = rows[:, start:stop].index_select(0, index[:, m])
        return out

    def own(self, gradients: Tensor) -> Tensor:
        """Of ``[..., M, P, D]``, for each coordinate the entry of its group: ``[..., P, D]``."""
        if len(self.runs) > _MOST_RUNS:
            index = self.groups.expand(*gradients.shape[:-3], 1, *gradients.shape[-2:])
            return gradients.gather(-3, index).squeeze(-3)
        return torch.cat([gradients[..., m, :, start:stop] for m, start, stop in self.runs], dim=-1)
