"""Random indices: the only two places where minibatches take random numbers.

They come from one ``torch.Generator``, or from streams that belong to particles. Then neither the
number of particles nor that of processes changes the minibatches of one of them.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

__all__ = ["RandomSource", "Streams", "random_integers", "random_orders"]

_SHUFFLED_AT_ONCE = 2**24


@runtime_checkable
class Streams(Protocol):
    """Random numbers of P particles, each from a stream of its own."""

    def integers(self, high: int, shape: tuple[int, ...]) -> Tensor:
        """Integers below ``high``, ``[P, *shape]``."""
        ...

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers in [0, 1), ``[P, *shape]``."""
        ...

    @property
    def shared(self) -> Any:
        """One stream that all particles share: ``integers`` and ``uniform`` as above, P = 1."""
        ...


RandomSource: TypeAlias = torch.Generator | Streams


def random_integers(source: RandomSource, high: int, rows: int | None, size: int) -> Tensor:
    """Independent integers below ``high``, ``[P, B]``, or ``[1, B]`` where all share (None)."""
    if isinstance(source, torch.Generator):
        shape = (rows or 1, size)
        return torch.randint(high, shape, generator=source, device=source.device)
    if rows is None:
        drawn: Tensor = source.shared.integers(high, (size,))
        return drawn.reshape(1, size)
    return source.integers(high, (size,))


def random_orders(source: RandomSource, num_data: int, rows: int | None, kept: int) -> Tensor:
    """The first ``kept`` entries of random orders of N data, ``[P, kept]``, or ``[1, kept]``.

    A generator shuffles some rows at a time, to bound memory.
    """
    if not isinstance(source, torch.Generator):
        if rows is None:
            keys: Tensor = source.shared.uniform((num_data,))
            keys = keys.reshape(1, num_data)
        else:
            keys = source.uniform((num_data,))
        return keys.argsort(dim=1)[:, :kept].clone()
    parts = []
    block = rows_at_once(num_data)
    for first in range(0, rows or 1, block):
        size = (min(block, (rows or 1) - first), num_data)
        keys = torch.rand(size, generator=source, device=source.device)
        parts.append(keys.argsort(dim=1)[:, :kept].clone())
    return torch.cat(parts)


def rows_at_once(num_data: int) -> int:
    """How many orders of N data are made at once."""
    return max(1, _SHUFFLED_AT_ONCE // num_data)
