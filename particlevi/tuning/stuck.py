"""Chains that refuse everything at a step size which suits the others.

A chain that begins where the density is narrow, in the tail of a start or in the neck of a funnel,
needs a smaller step than the others. A step size tuned to the mean acceptance never gets there, and
the chain stays where it is for the whole run. So while the step size is tuned a chain that refuses
trajectory after trajectory brings a few steps for all chains that are 8 times shorter, and 64 times
if these were not enough. They change no law: every step size has the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi.typing import World

__all__ = ["Stuck", "look_for_stuck", "none_stuck"]

_MEMORY, _STUCK_BELOW = 0.75, 0.1  # eight trajectories without hope
_SHORT_STEPS, _PAUSE = 40, 120
_SHORTER = (1 / 8, 1 / 64)


class Stuck(NamedTuple):
    """Which chains refuse, and the short steps that they bring.

    Attributes:
        acceptance: a running mean over the trajectories of each chain, ``[P]``.
        since: steps since short ones were begun, 0-d.
        times: how often they were begun, 0-d.
    """

    acceptance: Tensor
    since: Tensor
    times: Tensor

    @property
    def short(self) -> bool:
        """Whether the next step is."""
        return bool(self.since < _SHORT_STEPS)

    @property
    def factor(self) -> Tensor:
        """By which short steps are shorter, 0-d."""
        return self.times.new_tensor(_SHORTER[int(self.times + 1) % 2])


def none_stuck(position: Tensor) -> Stuck:
    """Of chains ``[P, D]`` at the start."""
    zero = position.new_zeros(())
    return Stuck(torch.ones_like(position[:, 0]), zero + _SHORT_STEPS + _PAUSE, zero)


def look_for_stuck(stuck: Stuck, info: Any, world: World) -> Stuck:
    """After a step that reported ``info``.

    Where half the chains or more refuse, the step size is what is wrong, and tuned at that moment.
    """
    since = stuck.since + 1
    if stuck.short:
        return stuck._replace(since=since)
    tested = getattr(info, "tested", torch.ones_like(info.acceptance)) > 0
    probability = info.acceptance.nan_to_num(nan=0.0)
    mean = _MEMORY * stuck.acceptance + (1 - _MEMORY) * probability
    mean = torch.where(tested, mean, stuck.acceptance)
    sound = torch.isfinite(info.potential)
    stuck = Stuck(mean, since, stuck.times)
    if bool(since < _SHORT_STEPS + _PAUSE):
        return stuck
    refusing, chains = world.sum(torch.stack([sound & (mean < _STUCK_BELOW), sound], -1).to(mean))
    if not 0 < float(refusing) < 0.5 * float(chains):
        return stuck
    return Stuck(torch.ones_like(mean), torch.zeros_like(since), stuck.times + 1)
