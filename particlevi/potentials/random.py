"""Randomness of code that only knows torch's global generator, which all threads share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from particlevi.typing import Streams

__all__ = ["alone", "draw_seeds", "global_seed", "seeded"]

_LOCK = threading.RLock()


class _Runs:
    """Threads with a run under way, and the global generators' states before the first of them."""

    count = 0
    before: list[torch.Tensor] | None = None
    here = threading.local()


def _states() -> list[torch.Tensor]:
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_devices]


def _restore(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


def draw_seeds(streams: Streams, num_particles: int) -> list[int]:
    """A seed for every particle, drawn from its own stream."""
    seeds: list[int] = streams.integers(2**62, (num_particles,)).tolist()
    return seeds


@contextmanager
def alone() -> Iterator[None]:
    """No other thread draws from the global generators through this package."""
    with _LOCK:
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generators seeded inside, and as they were afterwards.

    One thread at a time is inside, so that what it draws depends on ``seed`` only.
    """
    with _LOCK:
        before = _states()
        torch.manual_seed(seed)
        try:
            yield
        finally:
            _restore(before)


@contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Torch's global generators seeded for the length of a run.

    They are as they were once the last of the runs in different threads has ended. What is drawn
    from them without ``seeded`` depends on ``seed`` only as long as there is one run.
    """
    nested = getattr(_Runs.here, "nested", 0)
    with _LOCK:
        own = _states()
        if _Runs.count == 0:
            _Runs.before = own
        _Runs.count += 1
        _Runs.here.nested = nested + 1
        torch.manual_seed(seed)
    try:
        yield
    finally:
        with _LOCK:
            _Runs.count -= 1
            _Runs.here.nested = nested
            if nested:
                _restore(own)
            elif _Runs.count == 0 and _Runs.before is not None:
                _restore(_Runs.before)
