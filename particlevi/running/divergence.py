"""Chains that are lost, and single transitions that diverge.

A chain is lost once its position or its potential is not finite, or once it has run away: its
potential stays above a bound for 64 steps on end and ends no lower than it began. The bound is::

    r + 1000 (|r| + D + 1),    r the median of its potentials in the first 32 steps,

so that neither the order of the data nor a datum far out decides: batches with such a datum exceed
the bound now and then, or raise the median if they are the rule. All this counts steps, and not the
moments at which somebody looks.

A transition of a method that follows the energy is divergent if its error exceeds 1000 nats, as in
Stan (Carpenter and others, "Stan: a probabilistic programming language", 2017). The chain goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Cause", "DivergenceWatch"]

EARLY = 32
PATIENCE = 64
LARGEST_ENERGY_ERROR = 1000.0

Cause: TypeAlias = Literal["not finite", "ran away", "zero density"]


class DivergenceWatch:
    """Finds chains whose position or potential is not finite, or whose potential runs away.

    Args:
        like: positions ``[P, D]``.
    """

    def __init__(self, like: Tensor):
        num_particles: int = like.shape[0]
        self.num_params: int = like.shape[1]
        self.early: Tensor = like.new_zeros(EARLY, num_particles)
        self.seen: int = 0
        self.above_since: Tensor = torch.full((num_particles,), -1, device=like.device)
        self.above_from: Tensor = like.new_zeros(num_particles)
        self.divergent: Tensor = torch.zeros(num_particles, dtype=torch.bool, device=like.device)
        self.lost: dict[int, int] = {}
        self.causes: dict[int, Cause] = {}
        self._window: list[Tensor] = []
        self._errors: list[Tensor] = []

    def observe(self, potential: Tensor) -> None:
        """The potentials ``[P]`` that particles felt in one step."""
        self._window.append(potential)

    def observe_energy(self, error: Tensor) -> None:
        """The errors of the energy ``[P]`` over one transition."""
        self._errors.append(error)

    def take_divergent(self) -> Tensor:
        """Whether a transition of each chain diverged since this was last asked, ``[P]``."""
        self._judge_errors()
        taken, self.divergent = self.divergent, torch.zeros_like(self.divergent)
        return taken

    def _judge_errors(self) -> None:
        if self._errors:
            sound = torch.stack(self._errors) <= LARGEST_ENERGY_ERROR
            self.divergent = self.divergent | ~sound.all(0)
            self._errors.clear()

    def check(self, position: Tensor) -> dict[int, int]:
        """Chains that are lost now, with the step (from 1) at which it happened.

        A potential is that of the position before its step, so the step before did the damage.
        """
        if not self._window:
            return {}
        recent = torch.stack(self._window)
        self._window.clear()
        first, ended = self.seen, ~torch.isfinite(position).all(1)
        high = self.above_since >= 0
        broken = ~torch.isfinite(recent)
        ran_away = self._run_away(recent)
        lost = broken.any(0) | ended | ran_away
        if not bool(lost.any()):
            return {}
        new = {}
        for chain in lost.nonzero().flatten().tolist():
            if chain in self.lost:
                continue
            if bool(broken[:, chain].any()):
                row = int(broken[:, chain].nonzero()[0])
                new[chain] = max(1, first + row)
                before = recent[row - 1, chain] > self.bound()[chain] if row else high[chain]
                empty = bool(recent[row, chain] == torch.inf) and not bool(before)
                self.causes[chain] = "zero density" if empty else "not finite"
            elif bool(ran_away[chain]):
                new[chain] = max(1, int(self.above_since[chain]))
                self.causes[chain] = "ran away"
            else:
                new[chain] = self.seen
                self.causes[chain] = "not finite"
        self.lost.update(new)
        return new

    def _run_away(self, recent: Tensor) -> Tensor:
        """Which chains have been above their bound for long enough, ``[P]``."""
        early = recent[: max(EARLY - self.seen, 0)]
        self.early[self.seen : self.seen + len(early)] = early
        first = self.seen + len(early)
        self.seen += len(recent)
        gone = torch.zeros_like(self.divergent)
        above = recent[len(early) :] > self.bound()
        if not bool(above.any()):
            self.above_since.fill_(-1)
            return gone
        for step, (row, potential) in enumerate(
            zip(above, recent[len(early) :], strict=True), first
        ):
            long = step - self.above_since >= PATIENCE - 1
            gone = gone | (row & long & (self.above_since >= 0) & (potential >= self.above_from))
            begins = row & ~gone & ((self.above_since < 0) | long)
            self.above_from = torch.where(begins, potential, self.above_from)
            self.above_since = torch.where(begins, step, self.above_since)
            self.above_since = torch.where(row | gone, self.above_since, -1)
        return gone

    def bound(self) -> Tensor:
        """The potential ``[P]`` above which a chain that stays there has run away."""
        seen = self.early[: max(1, min(self.seen, EARLY))]
        usual = seen.median(0).values
        return usual + 1000 * (usual.abs() + self.num_params + 1)

    def tensors(self) -> dict[str, Tensor]:
        """What ``restore`` needs, once all observed steps have been checked."""
        self._judge_errors()
        return {
            "early": self.early,
            "seen": torch.tensor(self.seen),
            "above_since": self.above_since,
            "above_from": self.above_from,
            "divergent": self.divergent,
        }

    def restore(self, tensors: Mapping[str, Tensor], lost: Mapping[int, int]) -> None:
        """Go on from a checkpoint."""
        device = self.early.device
        self.early = tensors["early"].to(device, copy=True)
        self.seen = int(tensors["seen"])
        self.above_since = tensors["above_since"].to(device, copy=True)
        self.above_from = tensors["above_from"].to(device, copy=True)
        self.divergent = tensors["divergent"].to(device, copy=True)
        self.lost = dict(lost)
