"""Randomness of code that only knows torch's global generator."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["draw_seed", "seeded"]

_LOCK = threading.RLock()
"""All threads share the global generators: one at a time seeds them and draws."""


def draw_seed(generator: torch.Generator) -> int:
    """A seed drawn from ``generator``."""
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generators seeded inside, and as they were afterwards.

    One thread at a time is inside, so that what it draws depends on ``seed`` only.
    """
    with _LOCK, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
