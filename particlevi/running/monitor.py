"""Watching a run: chains that diverge, the progress bar, Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["DivergenceWatch", "Interrupt", "runaway_bound"]


def runaway_bound(start: Tensor, num_params: int) -> Tensor:
    """A potential no sound chain reaches: a thousand times the start's size, and D, above it."""
    return start + 1000 * (start.abs() + num_params + 1)


class DivergenceWatch:
    """Finds chains whose position or potential is not finite, or whose potential runs away.

    Between checks, potentials are remembered so that the step at which it happened can be told.

    Args:
        bound: potentials ``[P]`` beyond which a chain has run away; see ``runaway_bound``.
        diverged: chains that have diverged already, with their steps.
    """

    def __init__(self, bound: Tensor, diverged: Mapping[int, int]):
        self.bound = bound
        self.diverged = dict(diverged)
        self.window: list[Tensor] = []

    def observe(self, potential: Tensor) -> None:
        """The potentials ``[P]`` of one step, annealed ones as far as the particles feel them."""
        self.window.append(potential)

    def check(self, position: Tensor, step: int) -> dict[int, int]:
        """Chains that are found diverged now, with the step (from 1) at which it happened.

        A potential is that of the position before its step, so the step before did the damage.
        """
        recent = torch.stack(self.window)
        self.window.clear()
        bad = ~(torch.isfinite(recent) & (recent <= self.bound))
        lost = bad.any(0) | ~torch.isfinite(position).all(1)
        new = {}
        if bool(lost.any()):
            for chain in lost.nonzero().flatten().tolist():
                if chain in self.diverged:
                    continue
                when = bad[:, chain].nonzero()
                offset = int(when[0]) if len(when) else len(recent)
                new[chain] = max(1, step - len(recent) + offset)
            self.diverged.update(new)
        return new


class Interrupt:
    """Turns the first Ctrl-C into a flag, so that the step under way is finished.

    A second Ctrl-C raises ``KeyboardInterrupt`` at once.
    """

    def __init__(self) -> None:
        self.requested = False

    def _handle(self, *_: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    @contextmanager
    def watch(self) -> Iterator[Interrupt]:
        """Listen while inside; elsewhere than in the main thread, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = signal.signal(signal.SIGINT, self._handle)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before or signal.SIG_DFL)
