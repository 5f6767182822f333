"""Whether code is being turned into a graph, by ``torch.compile`` or by the loop of compiled steps.

Torch's own flag for the second is of the whole process: another thread, which runs eagerly, would
be told that it is compiled. This one is of the thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

__all__ = ["is_compiling", "tracing"]

_TRACING: ContextVar[bool] = ContextVar("particlevi tracing", default=False)


def is_compiling() -> bool:
    """Whether this code is run to find out what it does, and not for its values."""
    return torch.compiler.is_compiling() or _TRACING.get()


@contextmanager
def tracing() -> Iterator[None]:
    """Code of this thread is being turned into a graph."""
    token = _TRACING.set(True)
    try:
        yield
    finally:
        _TRACING.reset(token)
