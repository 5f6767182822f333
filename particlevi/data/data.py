"""The data of a potential, as every part of the package takes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_choice, check_flag, check_positive_int
from particlevi.data.batches import Batching, BatchSource, FullBatch, TensorBatches
from particlevi.data.fingerprint import checksum
from particlevi.data.isolated import GlobalStreams
from particlevi.data.placing import Placed, place
from particlevi.data.tensors import length_of
from particlevi.typing import JSON, Batch

__all__ = ["Data", "DataLike", "NoData", "TensorData"]


class Data(ABC):
    """Data that have been checked, typed and placed; made by ``as_data``.

    Attributes:
        num_data: N; 0 for a density without data.
        device: where its batches are.
        dtype: of what is floating point in them.
    """

    num_data: int
    device: torch.device
    dtype: torch.dtype

    def __repr__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{type(self).__name__}(N={self.num_data}, {kind}, {self.device})"

    def batches(
        self,
        *,
        num_particles: int,
        batch_size: int | None = None,
        shared: bool = False,
        batching: Batching = "replacement",
    ) -> BatchSource:
        """The source of the minibatches of a run.

        Args:
            num_particles: P.
            batch_size: B; all data at every step if absent. A loader has its own.
            shared: one minibatch for all particles.
            batching: how minibatches are drawn from tensors; see ``sample``.

        Raises:
            ValueError: a batch size larger than the data, or one beside a loader's own.
        """
        check_positive_int("num_particles", num_particles)
        check_flag("shared", shared)
        check_choice("batching", batching, get_args(Batching))
        if batch_size is not None:
            check_positive_int("batch_size", batch_size)
        return self._batches(num_particles, batch_size, shared, batching)

    @abstractmethod
    def _batches(
        self, num_particles: int, batch_size: int | None, shared: bool, batching: Batching
    ) -> BatchSource: ...

    @abstractmethod
    def chunks(self, size: int) -> Iterator[Batch]:
        """All the data, each once, in a fixed order, at most ``size`` at a time, ``[B, ...]``.

        Random streams of torch, numpy and python are left as they were.

        Raises:
            ValueError: a loader gives other than ``num_data`` data; after the last chunk.
        """

    def take(self, rows: Tensor) -> Batch:
        """The data of these numbers, in the order of ``chunks``, as one batch ``[B, ...]``.

        Args:
            rows: ``LongTensor [B]``, numbers from 0 to N - 1.

        Raises:
            ValueError: other numbers, or none.
        """
        _check_rows(rows, self.num_data)
        return self._take(rows)

    @abstractmethod
    def _take(self, rows: Tensor) -> Batch: ...

    def held(self, max_bytes: int = 2**30) -> Data:
        """The same data in memory, read once, if they take at most ``max_bytes``; else itself."""
        check_positive_int("max_bytes", max_bytes, minimum=0)
        return self

    @abstractmethod
    def fingerprint(self) -> JSON:
        """What identifies the data, so that a checkpoint is not resumed on others."""

    @property
    def random_access(self) -> bool:
        """Whether ``take`` reads only what it returns."""
        return True

    @property
    def own_batches(self) -> bool:
        """Whether each particle can draw minibatches of its own."""
        return True

    def isolated(self, seed: int = 0) -> AbstractContextManager[None]:
        """Inside, random streams of torch, numpy, python and the loader start from a seed.

        Afterwards they are as they were.
        """
        return GlobalStreams.seeded(self.loader, seed).inside()

    @property
    def loader(self) -> Any:
        """What the batches are read from, if they are."""
        return None

    def first(self, size: int = 1) -> Batch:
        """The first data, at most ``size``."""
        check_positive_int("size", size)
        return self.take(torch.arange(min(size, self.num_data)))

    def whole(self) -> Batch:
        """All the data as one batch."""
        return self.take(torch.arange(self.num_data))


DataLike: TypeAlias = (
    Data | Tensor | np.ndarray[Any, Any] | Mapping[Any, Any] | Iterable[Any] | None
)
"""What ``as_data`` takes.

A tensor, an array or a data frame of N rows, a tuple or dict of them, an iterable of batches such
as a ``DataLoader``, a ``Data``; None for a density without data.
"""


def _check_rows(rows: Any, num_data: int) -> None:
    fits = isinstance(rows, Tensor) and rows.ndim == 1 and rows.dtype == torch.long and len(rows)
    if not fits or rows.is_meta or int(rows.min()) < 0 or int(rows.max()) >= num_data:
        kind = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else repr(rows)
        raise ValueError(
            f"rows must be a LongTensor [B] of numbers of data, 0 ... {num_data - 1}, got {kind}."
        )


class NoData(Data):
    """The data of a density without data: none, so that loops over chunks do nothing."""

    num_data = 0

    def __init__(self, where: Placed):
        self.device: torch.device = where.device
        self.dtype: torch.dtype = where.dtype

    def _batches(
        self, num_particles: int, batch_size: int | None, shared: bool, batching: Batching
    ) -> BatchSource:
        if batch_size is not None:
            raise ValueError(
                "The potential is a density without data, but a batch_size was given: leave it "
                "out, or make the potential with from_log_likelihood."
            )
        return FullBatch()

    def chunks(self, size: int) -> Iterator[Batch]:
        """None."""
        check_positive_int("size", size)
        return iter(())

    def _take(self, rows: Tensor) -> Batch:
        raise ValueError("A density without data has no data to take.")

    def fingerprint(self) -> JSON:
        """None."""
        return None


class TensorData(Data):
    """Tensors in memory.

    Args:
        tensors: with first dimension N, checked by ``as_tensors``.
        where: a potential, for its device and dtype; the tensors are moved there, once.
    """

    def __init__(self, tensors: Any, where: Placed):
        self.device: torch.device = where.device
        self.dtype: torch.dtype = where.dtype
        self.tensors: Any = place(tensors, where)
        self.num_data: int = length_of(self.tensors)

    def _batches(
        self, num_particles: int, batch_size: int | None, shared: bool, batching: Batching
    ) -> BatchSource:
        if batch_size is None:
            return FullBatch(self.tensors)
        if batch_size > self.num_data:
            raise ValueError(
                f"batch_size must be at most the number of data, {self.num_data}, got "
                f"{batch_size}. Leave it out to use all data at every step."
            )
        if batch_size == self.num_data and batching != "replacement":
            return FullBatch(self.tensors)
        owners = None if shared else num_particles
        return TensorBatches(self.tensors, int(batch_size), owners, batching)

    def chunks(self, size: int) -> Iterator[Batch]:
        """Views, in the order given."""
        check_positive_int("size", size)
        return (self._cut(start, start + int(size)) for start in range(0, self.num_data, int(size)))

    def _cut(self, start: int, stop: int) -> Batch:
        return Batch(pytree.tree_map(lambda leaf: leaf[start:stop], self.tensors))

    def _take(self, rows: Tensor) -> Batch:
        return Batch(
            pytree.tree_map(lambda leaf: leaf.index_select(0, rows.to(leaf.device)), self.tensors)
        )

    def whole(self) -> Batch:
        """The tensors themselves."""
        return Batch(self.tensors, law="all")

    def fingerprint(self) -> JSON:
        """Shapes, dtypes and checksums."""
        return [checksum(leaf) for leaf in pytree.tree_leaves(self.tensors)]
