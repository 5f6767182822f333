"""Where the minibatches of a run come from. Each source declares the law of its batches.

A source's ``state`` and the states of the streams are all that a checkpoint needs to go on exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.data.indices import random_integers, random_orders, rows_at_once
from particlevi.data.tensors import length_of
from particlevi.streams import calls_at_once
from particlevi.typing import Batch, BatchLaw, Streams

__all__ = ["BatchSource", "Batching", "FullBatch", "Law", "TensorBatches"]

Batching: TypeAlias = Literal["replacement", "subset", "epoch"]
"""How minibatches are drawn from tensors."""

Law: TypeAlias = Literal["none", "all", "independent", "subset", "epoch", "loader"]
"""How a source draws its batches.

``"none"``: there are no data. ``"all"``: all the data, each once, at every step.
``"independent"``: B independent data per step, drawn with replacement; also where B = N.
``"subset"``: B different data, a fresh random choice per step. ``"epoch"``: the data in random
order, B at a time. ``"loader"``: as a loader gives them, unbiased over an epoch.
"""


class BatchSource(Protocol):
    """An endless stream of batches that can be stopped and taken up again.

    The mean of the potential's gradient over the batches is the gradient on all the data: at every
    step, or for the law ``"loader"`` over an epoch.
    """

    @property
    def law(self) -> Law:
        """How its batches are drawn."""
        ...

    @property
    def shared(self) -> bool:
        """Whether all particles see one batch."""
        ...

    @property
    def batch_size(self) -> int | None:
        """B, the largest where batches differ; None where there are no data."""
        ...

    @property
    def num_data(self) -> int | None:
        """N; None where there are no data."""
        ...

    def next(self, streams: Streams) -> Batch | None:
        """The batch of the next step."""
        ...

    def example(self) -> Batch | None:
        """A batch to try the potential on; draws no random numbers."""
        ...

    def check_targets(self, check: Callable[[Any], None]) -> None:
        """Call ``check`` on all data, now or as they are read."""
        ...

    def nbytes(self) -> int:
        """Memory that it keeps beside the data."""
        ...

    def batch_nbytes(self, num_particles: int) -> int:
        """The most memory that drawing the batch of a step takes beside the data.

        Two batches, because the one before lives until the next is drawn, and the random numbers.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """What ``restore`` needs."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        ...


class FullBatch:
    """All data at every step, shared by all particles; of a density without data, no batch.

    Args:
        data: tensors with first dimension N, where the particles are; None if there are none.
    """

    shared = True

    def __init__(self, data: Any = None):
        self.batch: Batch | None = None if data is None else Batch(data, law="all")
        self.law: Law = "none" if data is None else "all"
        self.num_data: int | None = None if data is None else length_of(data)
        self.batch_size: int | None = self.num_data

    def next(self, streams: Streams) -> Batch | None:
        """The data."""
        return self.batch

    def example(self) -> Batch | None:
        """The data."""
        return self.batch

    def check_targets(self, check: Callable[[Any], None]) -> None:
        """At once."""
        if self.batch is not None:
            check(self.batch.data)

    def nbytes(self) -> int:
        """None."""
        return 0

    def batch_nbytes(self, num_particles: int) -> int:
        """None: nothing is copied."""
        return 0

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing."""


class TensorBatches:
    """Minibatches of tensors, the indices drawn here.

    Args:
        data: tensors with first dimension N, where the particles are.
        batch_size: B.
        num_particles: P when every particle draws its own minibatch, None when all share one.
        batching: ``"replacement"``: B independent indices. ``"subset"``: a random subset of size B,
            fresh at every step. ``"epoch"``: the data in random order, B at a time, reshuffled when
            fewer than B are left.
    """

    def __init__(self, data: Any, batch_size: int, num_particles: int | None, batching: Batching):
        leaves, structure = pytree.tree_flatten(data)
        self.leaves: list[Tensor] = leaves
        self.structure: pytree.TreeSpec = structure
        self.flat: bool = type(data) is tuple and len(data) == len(self.leaves)
        self.num_data: int | None = len(self.leaves[0])
        self.total: int = len(self.leaves[0])
        self.batch_size: int | None = batch_size
        self.size = batch_size
        self.num_particles = num_particles
        self.shared: bool = num_particles is None
        self.batching = batching
        self.batch_law: BatchLaw = "independent" if batching == "replacement" else batching
        self.law: Law = self.batch_law
        self.order: Tensor = torch.empty(0, 0, dtype=torch.long)
        self.cursor: int = self.total

    def next(self, streams: Streams) -> Batch:
        """Leaves ``[P, B, ...]``, or ``[B, ...]`` when shared."""
        return self._gather(self._indices(streams))

    def example(self) -> Batch:
        """The first B data, for every particle."""
        rows = self.num_particles or 1
        return self._gather(torch.arange(self.size).expand(rows, -1))

    def check_targets(self, check: Callable[[Any], None]) -> None:
        """At once."""
        check(pytree.tree_unflatten(self.leaves, self.structure))

    def _indices(self, streams: Streams) -> Tensor:
        if self.batching == "replacement":
            return random_integers(streams, self.total, self.num_particles, self.size)
        if self.batching == "subset":
            return random_orders(streams, self.total, self.num_particles, self.size)
        if self.cursor + self.size > self.total:
            self.order = random_orders(streams, self.total, self.num_particles, self.total)
            self.cursor = 0
        indices = self.order[:, self.cursor : self.cursor + self.size]
        self.cursor += self.size
        return indices

    def _gather(self, indices: Tensor) -> Batch:
        if self.num_particles is None:
            indices = indices[0]
        # index_select copies whole rows: up to ten times as fast as indexing with [P, B] indices.
        rows = indices.flatten()
        parts = [
            leaf.index_select(0, rows.to(leaf.device)).unflatten(0, indices.shape)
            for leaf in self.leaves
        ]
        data = tuple(parts) if self.flat else pytree.tree_unflatten(parts, self.structure)
        return Batch(data, self.num_particles is not None, law=self.batch_law)

    def nbytes(self) -> int:
        """The order of the data in the current epoch, for every particle."""
        rows = self.num_particles or 1
        return 8 * rows * self.total if self.batching == "epoch" else 0

    def batch_nbytes(self, num_particles: int) -> int:
        """Batches and indices, or the keys that are sorted for random orders."""
        rows = 1 if self.shared else num_particles
        batch = rows * self.size * sum(x[0].numel() * x.element_size() for x in self.leaves)
        if self.batching == "replacement":
            # A batch is gathered while a block of indices, for some steps to come, is there.
            return int(2 * batch + 8 * rows * self.size * calls_at_once(self.size))
        # Keys of all rows, 4 bytes each, stay; sorted keys and their order of some, 4 + 8 bytes.
        keys = 4 * rows * self.total * calls_at_once(self.total)
        sorting = 12 * min(rows, rows_at_once(self.total)) * self.total
        return int(batch + keys + max(batch, sorting) + 8 * rows * self.size)

    def state(self) -> dict[str, Tensor]:
        """The order of the current epoch and the place in it."""
        if self.batching != "epoch":
            return {}
        return {"order": self.order, "cursor": torch.tensor(self.cursor)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on within an epoch."""
        if self.batching == "epoch":
            self.order, self.cursor = state["order"], int(state["cursor"])
