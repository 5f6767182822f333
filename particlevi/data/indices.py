"""Random indices: the only two places where minibatches take random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi.typing import Streams

__all__ = ["random_integers", "random_orders", "rows_at_once"]

_SHUFFLED_AT_ONCE = 2**24


def random_integers(streams: Streams, high: int, rows: int | None, size: int) -> Tensor:
    """Independent integers below ``high``, ``[P, B]``, or ``[1, B]`` where all share (None)."""
    if rows is None:
        return streams.shared.integers(high, (1, size))
    return streams.integers(high, (rows, size))


def random_orders(streams: Streams, num_data: int, rows: int | None, kept: int) -> Tensor:
    """The first ``kept`` entries of random orders of N data, ``[P, kept]``, or ``[1, kept]``.

    They are sorted some rows at a time, to bound memory.
    """
    if rows is None:
        keys = streams.shared.uniform((1, num_data))
    else:
        keys = streams.uniform((rows, num_data))
    parts = [part.argsort(dim=1)[:, :kept].clone() for part in keys.split(rows_at_once(num_data))]
    return torch.cat(parts)


def rows_at_once(num_data: int) -> int:
    """How many orders of N data are made at once."""
    return max(1, _SHUFFLED_AT_ONCE // num_data)
