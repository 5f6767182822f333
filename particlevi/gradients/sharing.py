"""One evaluation made by several processes: each takes some of the particles, or of the data.

Whoever holds all particles in every process, as the methods in which particles see each other do,
has their gradients evaluated here in parts. A batch may be cut instead: with B_r of its B data in
process r, the sum over processes of B_r / B times their estimates is that of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeAlias

from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.typing import Batch, Gradient

__all__ = ["Crew", "Evaluation", "by_data", "by_particles", "current_crew", "shared_by"]

Evaluation: TypeAlias = Callable[[Tensor, Batch | None], Gradient]
"""Gradients ``[P, D]`` and energies ``[P]`` of particles on a batch."""


class Crew(Protocol):
    """Who evaluates together."""

    def __call__(self, evaluate: Evaluation, particles: Tensor, batch: Batch | None) -> Gradient:
        """The whole of what ``evaluate`` would give, in every process."""
        ...


_CREW: ContextVar[Crew | None] = ContextVar("crew", default=None)


def current_crew() -> Crew | None:
    """Who evaluates together now; None if every process does all of its own."""
    return _CREW.get()


@contextmanager
def shared_by(crew: Crew | None) -> Iterator[None]:
    """Inside, evaluations are made by the crew."""
    token = _CREW.set(crew)
    try:
        yield
    finally:
        _CREW.reset(token)


def by_particles(
    evaluate: Evaluation,
    particles: Tensor,
    batch: Batch | None,
    mine: range,
    gather: Callable[[Sequence[Tensor]], list[Tensor]],
) -> Gradient:
    """Evaluate the particles ``mine`` and gather the rest along the first axis."""
    rows = slice(mine.start, mine.stop)
    if batch is not None and batch.per_particle:
        batch = batch._replace(data=pytree.tree_map(lambda leaf: leaf[rows], batch.data))
    nobody = Gradient(particles[:0], particles[:0, 0])
    found = evaluate(particles[rows], batch) if mine else nobody
    return Gradient(*gather(found))


def by_data(
    evaluate: Evaluation,
    particles: Tensor,
    batch: Batch,
    mine: range,
    add: Callable[[Sequence[Tensor]], list[Tensor]],
) -> Gradient:
    """Evaluate the data ``mine`` of a batch and add the estimates by their shares."""
    size, rows = batch.size, slice(mine.start, mine.stop)
    share = len(mine) / size
    if not mine:
        return Gradient(*add([particles.new_zeros(particles.shape), particles[:, 0] * 0]))
    cut = (slice(None), rows) if batch.per_particle else rows
    scale = None if batch.scale is None else batch.scale / share
    part = batch._replace(data=pytree.tree_map(lambda leaf: leaf[cut], batch.data), scale=scale)
    return Gradient(*add([share * value for value in evaluate(particles, part)]))
