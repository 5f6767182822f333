"""Evaluation of many particles a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.typing import Batch

__all__ = ["chunks"]


def chunks(
    particles: Tensor, batch: Batch | None, chunk_size: int | None
) -> Iterator[tuple[Tensor, Batch | None]]:
    """Pieces of at most ``chunk_size`` particles, each with its part of the batch."""
    if chunk_size is None or chunk_size >= len(particles):
        yield particles, batch
        return
    for start in range(0, len(particles), chunk_size):
        stop = start + chunk_size
        if batch is not None and batch.per_particle:
            part = pytree.tree_map(lambda leaf, a=start, b=stop: leaf[a:b], batch.data)
            yield particles[start:stop], batch._replace(data=part)
        else:
            yield particles[start:stop], batch
