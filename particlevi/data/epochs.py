"""What an epoch of a loader holds: how many batches and data, and whether each datum has its turn.

With K batches per epoch that hold M of the N data, a batch's log-likelihood has the weight
``N K / M``: the same for every batch, so that over an epoch each datum counts once, whether
batches are of one size or not, and whether the order is fixed or random. ``N / B`` per batch would
count the data of a short last batch more than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from particlevi.data.isolated import GlobalStreams

__all__ = ["Epoch", "inspect_loader", "is_indexed"]


@dataclass(frozen=True)
class Epoch:
    """An epoch of a loader.

    Attributes:
        num_data: N, all the data that may be given.
        num_seen: M, data in one epoch.
        num_batches: K; None where it shows only when an epoch has been read.
        rows: the numbers in the data set of the N data; None for all of them.
    """

    num_data: int
    num_seen: int
    num_batches: int | None
    rows: Sequence[int] | None = None

    @property
    def scale(self) -> float:
        """The weight ``N K / M`` of a batch's log-likelihood."""
        assert self.num_batches is not None
        return self.num_data * self.num_batches / self.num_seen


def is_indexed(loader: Any) -> bool:
    """Whether it is a DataLoader that makes batches from a data set by numbers."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def inspect_loader(loader: DataLoader[Any]) -> Epoch:
    """What an epoch of an indexed loader holds, from its samplers; no data are read.

    Samplers of torch are known. Of others, those made from them included, two epochs of numbers are
    drawn; torch's generators are left as they were.

    Raises:
        ValueError: a sampler that gives some data more weight than others or leaves some out for
            good, or no batch at all.
    """
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler:
        return _probed(loader)
    sampler: Any = batches.sampler
    size, drop = batches.batch_size, batches.drop_last
    if isinstance(sampler, WeightedRandomSampler):
        raise ValueError(
            "A WeightedRandomSampler draws some data more often than others, so that the run would "
            "sample another posterior: use shuffle=True, and put weights into the likelihood."
        )
    if isinstance(sampler, DistributedSampler):
        raise ValueError(
            "A DistributedSampler gives a process only its part of the data: use shuffle=True on "
            "all the data; every process then runs particles of its own."
        )
    if type(sampler) is SequentialSampler:
        total = len(sampler.data_source)
        if drop and total % size:
            raise ValueError(_never_seen(total % size, total))
        return _even(total, total, size, drop)
    if type(sampler) is RandomSampler:
        return _even(len(sampler.data_source), sampler.num_samples, size, drop)
    if type(sampler) is SubsetRandomSampler:
        rows = sorted(int(row) for row in sampler.indices)
        if len(set(rows)) < len(rows):
            raise ValueError(_unequal("the indices of its SubsetRandomSampler"))
        return _even(len(rows), len(rows), size, drop, rows)
    return _probed(loader)


def _even(
    num_data: int, num_samples: int, size: int, drop: bool, rows: Sequence[int] | None = None
) -> Epoch:
    num_batches = num_samples // size if drop else -(-num_samples // size)
    if not num_batches:
        raise ValueError(
            f"An epoch of the loader is empty: {num_samples} data, batches of {size}"
            f"{', drop_last=True' if drop else ''}."
        )
    return Epoch(num_data, num_batches * size if drop else num_samples, num_batches, rows)


def _probed(loader: DataLoader[Any]) -> Epoch:
    """From two epochs of numbers."""
    with GlobalStreams.present(loader).inside():
        first, num_batches = _one_epoch(loader)
        second, again = _one_epoch(loader)
    total = len(loader.dataset)  # type: ignore[arg-type]
    if len(first) != len(second) or num_batches != again:
        raise ValueError(
            f"An epoch of the loader's sampler held {len(first)} data in {num_batches} batches, "
            f"the next {len(second)} in {again}: they must be the same, or some data would count "
            "more than others."
        )
    if not num_batches:
        raise ValueError("An epoch of the loader's sampler is empty.")
    if first != second:
        return Epoch(total, len(first), num_batches)
    rows = None if len(first) == total else sorted(first)
    return Epoch(len(first), len(first), num_batches, rows)


def _one_epoch(loader: DataLoader[Any]) -> tuple[set[Any], int]:
    seen: set[Any] = set()
    count = 0
    for batch in loader.batch_sampler or ():
        count += 1
        for row in batch:
            if row in seen:
                raise ValueError(_unequal("an epoch of the loader's sampler"))
            seen.add(row)
    return seen, count


def _unequal(where: str) -> str:
    return (
        f"A datum comes more than once in {where}, so that it would count more than others: use a "
        "sampler that gives each datum once per epoch, such as shuffle=True, and put weights into "
        "the likelihood."
    )


def _never_seen(missing: int, total: int) -> str:
    return (
        f"drop_last=True in a fixed order never shows the last {missing} of {total} data: use "
        "drop_last=False, or shuffle=True."
    )
