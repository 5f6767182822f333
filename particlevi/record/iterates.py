"""Rows that arrive one by one, evenly spaced, in memory that is bounded."""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi._checks import check_positive_int

__all__ = ["Iterates"]


class Iterates:
    """Every k-th row of a series, with k doubled each time that the memory is full.

    When the rows kept would take more than ``max_bytes``, every second of them is dropped, so that
    what is left is evenly spaced again, over the whole series. At least two rows are kept.

    Args:
        every: k at first, in steps.
        max_bytes: of all rows together.

    Raises:
        ValueError: a k or a size below one.

    Examples:
        >>> kept = Iterates(every=1, max_bytes=40)
        >>> for step in range(1, 31):
        ...     if kept.wants(step):
        ...         kept.add(step, torch.tensor([float(step)]))
        >>> kept.every, kept.steps
        (4, [4, 8, 12, 16, 20, 24, 28])
    """

    def __init__(self, every: int, max_bytes: int):
        check_positive_int("every", every)
        check_positive_int("max_bytes", max_bytes)
        self.every = int(every)
        self.max_bytes = int(max_bytes)
        self.steps: list[int] = []
        self.rows: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.rows)

    def wants(self, step: int) -> bool:
        """Whether the row of this step, counted from 1, is to be kept."""
        return step % self.every == 0

    def add(self, step: int, row: Tensor) -> None:
        """One more row ``[K]``, of a step that is wanted."""
        size = row.numel() * row.element_size()
        if len(self.rows) >= 2 and (len(self.rows) + 1) * size > self.max_bytes:
            self.coarsen(2 * self.every)
        if self.wants(step):
            self.steps.append(step)
            self.rows.append(row)

    def coarsen(self, every: int) -> None:
        """Keep only the rows of every ``every``-th step, from the first on."""
        self.every = every
        held = [k for k, step in enumerate(self.steps) if self.wants(step)]
        self.steps = [self.steps[k] for k in held]
        self.rows = [self.rows[k] for k in held]

    def stacked(self) -> Tensor:
        """All rows, ``[T, K]``.

        Raises:
            ValueError: there are none.
        """
        if not self.rows:
            raise ValueError(
                f"Nothing was recorded yet: the first record is after step {self.every} "
                "(Recorder(every=...))."
            )
        return torch.stack(self.rows)
