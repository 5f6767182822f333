"""Data that are read batch by batch: a DataLoader, a list of batches, any iterable of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset, Subset

from particlevi._checks import check_positive_int
from particlevi.data.batches import Batching, BatchSource
from particlevi.data.data import Data, TensorData
from particlevi.data.epochs import Epoch, inspect_loader, is_indexed
from particlevi.data.fingerprint import checksum
from particlevi.data.isolated import quietly
from particlevi.data.placing import Place, Placed, place
from particlevi.data.reader import LoaderBatches
from particlevi.data.tensors import as_tensors, length_of
from particlevi.typing import JSON, Batch

__all__ = ["LoaderData", "concatenated"]

_NUM_PROBES = 8


class LoaderData(Data):
    """Data of an iterable of batches that can be read many times.

    A list of batches is checked and placed here, once; other batches as they are read.

    Args:
        loader: a DataLoader, or any other iterable of batches.
        where: a potential, for its device, dtype and number of data.
        complete: whether they must be all its data; otherwise they are counted in a pass.

    Raises:
        ValueError: an iterable that can be read only once or is empty; samplers that weight data
            unequally or leave some out.
    """

    def __init__(self, loader: Iterable[Any], where: Placed, complete: bool = True):
        self.device: torch.device = where.device
        self.dtype: torch.dtype = where.dtype
        self.place: Place = Place(self.device, self.dtype)
        self.prepare: Callable[[Any], Any] = self._prepare
        self._loader: Iterable[Any] = loader
        if isinstance(loader, list):
            self._loader = [self._prepare(item) for item in loader]
            self.prepare = _as_it_is
            self.epoch: Epoch = _counted(self._loader)
        elif isinstance(loader, Iterator):
            raise ValueError(
                "The data can be read only once: pass something that can be iterated over many "
                "times, such as a DataLoader or a list of batches."
            )
        elif isinstance(loader, DataLoader) and is_indexed(loader):
            self.epoch = inspect_loader(loader)
        elif complete and where.num_data is not None:
            self.epoch = Epoch(where.num_data, where.num_data, _number_of_batches(loader))
        else:
            self.epoch = _counted([batch.data for batch in self._read()])
        self.num_data: int = self.epoch.num_data

    def _prepare(self, item: Any) -> Any:
        """What the loader gave as tensors, checked and placed."""
        return place(as_tensors(item, self.place, "a batch"), self.place)

    @property
    def loader(self) -> Any:
        """What the batches are read from."""
        return self._loader

    @property
    def random_access(self) -> bool:
        """Whether single data can be read."""
        return is_indexed(self.loader)

    @property
    def own_batches(self) -> bool:
        """A loader's batches are shared."""
        return False

    def _batches(
        self, num_particles: int, batch_size: int | None, shared: bool, batching: Batching
    ) -> BatchSource:
        if batch_size is not None:
            raise ValueError("batch_size is the loader's own: leave it out with a DataLoader.")
        return LoaderBatches(self.loader, self.epoch, self.prepare)

    def _read(self, loader: Iterable[Any] | None = None) -> Iterator[Batch]:
        """The batches of one pass, in an order that is the same every time."""
        for item in quietly(self.loader if loader is None else loader):
            yield Batch(self.prepare(item))

    def _indexed(self, rows: list[int] | None, size: int) -> DataLoader[Any]:
        """A loader of some of the data, in order, with the ways of the given one."""
        given: Any = self.loader
        if self.epoch.rows is not None:
            rows = list(self.epoch.rows if rows is None else (self.epoch.rows[k] for k in rows))
        return DataLoader(
            given.dataset if rows is None else Subset(given.dataset, rows),
            batch_size=size,
            collate_fn=given.collate_fn,
            num_workers=given.num_workers,
            worker_init_fn=given.worker_init_fn,
            multiprocessing_context=given.multiprocessing_context,
            generator=torch.Generator().manual_seed(0),
        )

    def chunks(self, size: int) -> Iterator[Batch]:
        """In the order of the data set; of a loader without numbers, in that of its batches."""
        check_positive_int("size", size)
        return self._chunks(int(size))

    def _chunks(self, size: int) -> Iterator[Batch]:
        seen = 0
        for batch in self._read(self._indexed(None, size) if self.random_access else None):
            length = length_of(batch.data)
            seen += length
            if seen > self.num_data:
                break
            for start in range(0, length, size):
                cut = pytree.tree_map(lambda leaf, a=start: leaf[a : a + size], batch.data)
                yield Batch(cut)
        if seen != self.num_data:
            more = "at least " if seen > self.num_data else ""
            raise ValueError(
                f"A pass over the loader gave {more}{seen} data, expected {self.num_data}: all of "
                "them are needed, each once."
            )

    def _take(self, rows: Tensor) -> Batch:
        wanted = [int(row) for row in rows]
        if not self.random_access:
            return self._found(wanted)
        batches = list(self._read(self._indexed(wanted, max(1, len(wanted)))))
        return concatenated(batches)

    def _found(self, wanted: list[int]) -> Batch:
        """In a pass that ends with the last of them."""
        parts, numbers, start = [], [], 0
        for batch in self._read():
            length = length_of(batch.data)
            here = [row for row in wanted if start <= row < start + length]
            if here:
                index = torch.tensor(here, device=self.device) - start
                parts.append(_rows(batch, index))
                numbers += here
            start += length
            if start > max(wanted):
                break
        if sorted(numbers) != sorted(wanted):
            raise ValueError(f"The loader gave {start} data, expected {self.num_data}.")
        place_of = {row: k for k, row in enumerate(numbers)}
        order = torch.tensor([place_of[row] for row in wanted], device=self.device)
        return _rows(concatenated(parts), order)

    def whole(self) -> Batch:
        """All the data, read and put together."""
        return concatenated(list(self.chunks(self.num_data)))._replace(law="all")

    def held(self, max_bytes: int = 2**30) -> Data:
        """In memory, if it is not too much by the size of the first datum."""
        check_positive_int("max_bytes", max_bytes, minimum=0)
        leaves = pytree.tree_leaves(self.first().data)
        if self.num_data * sum(leaf.numel() * leaf.element_size() for leaf in leaves) > max_bytes:
            return self
        return TensorData(self.whole().data, self.place)

    def fingerprint(self) -> JSON:
        """Kind and numbers of the loader, and checksums of a few of its data."""
        rows = torch.linspace(0, self.num_data - 1, min(_NUM_PROBES, self.num_data)).long()
        probe = self.take(rows) if self.random_access else self.first(_NUM_PROBES)
        return {
            "kind": type(self.loader).__name__,
            "sampler": type(getattr(self.loader, "sampler", None)).__name__,
            "num_data": self.num_data,
            "num_batches": self.epoch.num_batches,
            "probes": [checksum(leaf) for leaf in pytree.tree_leaves(probe.data)],
        }


def _as_it_is(item: Any) -> Any:
    return item


def _counted(batches: list[Any]) -> Epoch:
    if not batches:
        raise ValueError("The iterable of batches is empty.")
    total = sum(length_of(batch) for batch in batches)
    return Epoch(total, total, len(batches))


def _number_of_batches(loader: Iterable[Any]) -> int | None:
    """As far as the loader knows for certain; a data set that is a stream does not."""
    stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
    return len(loader) if isinstance(loader, Sized) and not stream else None


def _rows(batch: Batch, index: Tensor) -> Batch:
    return Batch(pytree.tree_map(lambda leaf: leaf.index_select(0, index), batch.data))


def concatenated(batches: list[Batch]) -> Batch:
    """Shared batches one after the other."""
    if len(batches) == 1:
        return batches[0]
    trees = [pytree.tree_flatten(batch.data) for batch in batches]
    leaves = [torch.cat(parts) for parts in zip(*(tree[0] for tree in trees), strict=True)]
    return Batch(pytree.tree_unflatten(leaves, trees[0][1]))
