"""The batches of a loader, epoch after epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import RandomSampler

from particlevi.data.batches import Law
from particlevi.data.epochs import Epoch
from particlevi.data.isolated import GlobalStreams, generators_of
from particlevi.data.tensors import length_of
from particlevi.typing import Batch, BatchLaw, Streams

__all__ = ["LoaderBatches"]

_END = object()


class LoaderBatches:
    """Batches of an iterable, epoch after epoch, shared by all particles.

    Every batch has the weight ``N K / M`` of its ``Epoch``; that an epoch holds what it should is
    checked at its end.

    An epoch can be replayed: torch's global generator and those of the loader and its samplers are
    remembered as they were when it began. Randomness from elsewhere (numpy, random) is not.

    Args:
        loader: the iterable.
        epoch: what an epoch of it holds. If its number of batches is not known, all but the last
            must have the size of the first.
        prepare: from what the loader gives to tensors, checked and placed.
    """

    shared = True

    def __init__(self, loader: Iterable[Any], epoch: Epoch, prepare: Callable[[Any], Any]):
        self.loader = loader
        self.epoch: Epoch = epoch
        self.prepare = prepare
        self.own: dict[str, torch.Generator] = generators_of(loader)
        self.iterator: Iterator[Any] | None = None
        self.used: int = 0
        self.seen: int = 0
        self.epoch_start: dict[str, Tensor] = self._generators()
        self.check: Callable[[Any], None] = lambda data: None
        self.num_data: int | None = epoch.num_data
        first = self._first()
        self.batch_size: int | None = length_of(first)
        if epoch.num_batches is None:
            count = -(-epoch.num_data // self.batch_size)
            self.epoch = replace(epoch, num_batches=count)
        single = self.epoch.num_batches == 1 and self.batch_size == epoch.num_data
        sampler = getattr(loader, "sampler", None)
        self.batch_law: BatchLaw = "all" if single else "loader"
        if type(sampler) is RandomSampler and sampler.replacement:
            self.batch_law = "independent"
        self.law: Law = self.batch_law
        device = pytree.tree_leaves(first)[0].device
        # Double precision, because it does not round a weight; it does not widen [P] energies.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.scale: Tensor = torch.tensor(self.epoch.scale, dtype=dtype, device=device)
        self.first: Batch = self._weighted(first)

    def _first(self) -> Any:
        with GlobalStreams.present(self.loader).inside():
            item = next(iter(self.loader), _END)
        if item is _END:
            raise ValueError("The iterable of batches is empty.")
        return self.prepare(item)

    def _weighted(self, data: Any) -> Batch:
        if self.batch_law == "all":
            return Batch(data, law="all")
        return Batch(data, scale=self.scale, law=self.batch_law)

    def _generators(self) -> dict[str, Tensor]:
        own = {name: generator.get_state() for name, generator in self.own.items()}
        return {"global": torch.get_rng_state(), **own}

    def _begin(self) -> Iterator[Any]:
        self.epoch_start, self.used, self.seen = self._generators(), 0, 0
        return iter(self.loader)

    def next(self, streams: Streams) -> Batch:
        """The next batch, from the next epoch where this one has ended."""
        if self.iterator is None:
            self.iterator = self._begin()
        item = next(self.iterator, _END)
        if item is _END and self.used:
            self._check_epoch()
            self.iterator = self._begin()
            item = next(self.iterator, _END)
        if item is _END:
            raise ValueError(
                "The data ended after an earlier pass and cannot be read again: pass something "
                "that can be iterated over many times, such as a DataLoader or a list of batches."
            )
        data = self.prepare(item)
        self.check(data)
        self._count(length_of(data))
        return self._weighted(data)

    def _count(self, size: int) -> None:
        self.used += 1
        self.seen += size
        if self.seen > self.epoch.num_seen:
            raise ValueError(self._message(f"at least {self.seen} data"))

    def _check_epoch(self) -> None:
        if self.seen != self.epoch.num_seen:
            raise ValueError(self._message(f"{self.seen} data"))
        if self.used != self.epoch.num_batches:
            raise ValueError(
                f"An epoch of the loader held {self.used} batches, expected "
                f"{self.epoch.num_batches} from the size of the first: batches of unequal sizes "
                "need a list of batches, or a DataLoader with a batch_sampler."
            )

    def _message(self, found: str) -> str:
        return (
            f"An epoch of the loader held {found} in {self.used} batches, expected "
            f"{self.epoch.num_seen}: otherwise data do not count as in the posterior. Likely "
            "causes: num_data is not the size of the data set; drop_last=True; a collate_fn that "
            "drops data; an iterable that ends early, as by a StopIteration raised within the data "
            "set, or that can be read only once."
        )

    def example(self) -> Batch:
        """The first batch; generators are left as they were."""
        return self.first

    def check_targets(self, check: Callable[[Any], None]) -> None:
        """All batches of a list now; of others the first now, every batch when it is read."""
        if isinstance(self.loader, list):
            for data in self.loader:
                check(data)
            return
        check(self.first.data)
        self.check = check

    def nbytes(self) -> int:
        """The first batch, which is kept."""
        return sum(x.numel() * x.element_size() for x in pytree.tree_leaves(self.first.data))

    def batch_nbytes(self, num_particles: int) -> int:
        """Two batches, however many particles share them."""
        return 2 * self.nbytes()

    def _set_generators(self, states: dict[str, Tensor]) -> None:
        torch.set_rng_state(states["global"])
        for name, generator in self.own.items():
            generator.set_state(states[name])

    def state(self) -> dict[str, Tensor]:
        """The generators when the epoch began, and how many of its batches and data are used."""
        counts = {"used": torch.tensor(self.used), "seen": torch.tensor(self.seen)}
        return {**self.epoch_start, **counts}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Replay the epoch up to where it was."""
        state = dict(state)
        used, seen = int(state.pop("used")), int(state.pop("seen"))
        if state.keys() != self._generators().keys():
            raise ValueError(
                f"The run's loader had the generators {sorted(state)}, this one has "
                f"{sorted(self._generators())}: make it as in the first run."
            )
        if not used:
            return
        self._set_generators(state)
        self.iterator = self._begin()
        for _ in range(used):
            if next(self.iterator, _END) is _END:
                raise ValueError(
                    f"The run had read {used} batches of its epoch, but the data end before: "
                    "pass the data of the first run."
                )
        self.used, self.seen = used, seen
