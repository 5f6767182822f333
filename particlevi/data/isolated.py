"""Reading data without touching the random streams outside."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from particlevi.potentials.random import alone

__all__ = ["GlobalStreams", "generators_of", "quietly"]

_END = object()


def generators_of(loader: Any) -> dict[str, torch.Generator]:
    """The generators of a DataLoader and of its samplers, by where they are."""
    known: dict[str, torch.Generator] = {}
    for path in ("", "sampler", "batch_sampler", "batch_sampler.sampler"):
        holder = loader
        for name in path.split(".") if path else ():
            holder = getattr(holder, name, None)
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator) and generator not in known.values():
            known[f"{path}.generator".lstrip(".")] = generator
    return known


class GlobalStreams:
    """States of torch's, numpy's and python's random streams, and of a loader's generators.

    Args:
        own: the generators of the loader.
        states: their states and those of the global streams.
    """

    def __init__(self, own: list[torch.Generator], states: tuple[Any, ...]):
        self.own = own
        self.states: tuple[Any, ...] = states

    @classmethod
    def present(cls, loader: Any) -> GlobalStreams:
        """The streams as they are."""
        own = list(generators_of(loader).values())
        return cls(own, _capture(own))

    @classmethod
    def seeded(cls, loader: Any, seed: int = 0) -> GlobalStreams:
        """The streams as after seeding."""
        own, seed = list(generators_of(loader).values()), int(seed)
        short = seed % 2**32
        states = (
            torch.Generator().manual_seed(seed).get_state(),
            np.random.RandomState(short).get_state(),
            random.Random(seed).getstate(),
            [torch.Generator(g.device).manual_seed(seed).get_state() for g in own],
        )
        return cls(own, states)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Use these streams, go on with them next time, and leave those outside as they were."""
        with alone():
            outer = _capture(self.own)
            _set(self.own, self.states)
            try:
                yield
            finally:
                self.states = _capture(self.own)
                _set(self.own, outer)


def quietly(iterable: Iterable[Any]) -> Iterator[Any]:
    """One pass with streams seeded with 0; those outside stay as they were."""
    streams = GlobalStreams.seeded(iterable)
    with streams.inside():
        iterator = iter(iterable)
    while True:
        with streams.inside():
            item = next(iterator, _END)
        if item is _END:
            return
        yield item


def _capture(own: list[torch.Generator]) -> tuple[Any, ...]:
    return (
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
        [generator.get_state() for generator in own],
    )


def _set(own: list[torch.Generator], states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
    for generator, state in zip(own, states[3], strict=True):
        generator.set_state(state)
