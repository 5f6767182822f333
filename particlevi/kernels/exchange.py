"""A Stein direction of particles whose rows lie in different processes.

Every process has some particles ``[P_r, D]``. For a step each is sent some columns of all of them,
``[P, D_r]``, works out the kernel's sums there, of which only the matrix P x P has to be added up
over processes, and sends the rows of the result back. With R processes each sends about 3 P D / R
numbers and twice P^2, where sending everybody all particles and scores takes 2 P D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from particlevi._tracing import is_compiling
from particlevi.kernels.kernels import Kernel

__all__ = [
    "MOST_COLUMNWISE",
    "Columnwise",
    "Direction",
    "Exchange",
    "exchanged_by",
    "stein_direction",
]

MOST_COLUMNWISE = 512
"""Particles up to which the matrix P x P is formed, and the median is that of all pairs."""

Add: TypeAlias = Callable[[Tensor], Tensor]


@runtime_checkable
class Columnwise(Protocol):
    """A kernel that can work on some columns of the particles."""

    def columns(self, x: Tensor, scores: Tensor, add: Add) -> tuple[Tensor, Tensor]:
        """As ``direction``, of columns ``[P, D_r]``; ``add`` sums over all columns' holders.

        The attraction is a new tensor, which is written over.
        """
        ...


class Exchange(Protocol):
    """Rows of particles for columns, and back."""

    def to_columns(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """``[P, D_r]`` from ``[P_r, D]``."""
        ...

    def to_rows(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """``[P_r, D]`` from ``[P, D_r]``."""
        ...

    def add(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        ...

    def own(self, values: Tensor) -> Tensor:
        """The rows of the particles here, ``[P_r, ...]`` from ``[P, ...]``."""
        ...


class Direction(NamedTuple):
    """``phi [P, D]``, and the norms ``[P]`` of attraction and repulsion, of which it is the sum."""

    phi: Tensor
    attraction_norm: Tensor
    repulsion_norm: Tensor


_EXCHANGE: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


@contextmanager
def exchanged_by(exchange: Exchange | None) -> Iterator[None]:
    """Inside, particles are rows of a larger set."""
    token = _EXCHANGE.set(exchange)
    try:
        yield
    finally:
        _EXCHANGE.reset(token)


def stein_direction(kernel: Kernel, x: Tensor, scores: Tensor) -> Direction:
    """The direction on particles ``[P, D]`` with scores ``[P, D]``, wherever the others are."""
    exchange = None if is_compiling() else _EXCHANGE.get()
    if exchange is None:
        attraction, repulsion = kernel.direction(x, scores)
        norms = [torch.linalg.vector_norm(part, dim=-1) for part in (attraction, repulsion)]
        return Direction(attraction + repulsion, *norms)
    assert isinstance(kernel, Columnwise)
    columns, slopes = exchange.to_columns([x, scores])
    attraction, repulsion = kernel.columns(columns, slopes, exchange.add)
    norms = [torch.linalg.vector_norm(part, dim=-1) for part in (attraction, repulsion)]
    lengths = exchange.own(exchange.add(torch.stack(norms, 1).square()).sqrt())
    return Direction(exchange.to_rows([attraction.add_(repulsion)])[0], *lengths.unbind(1))
