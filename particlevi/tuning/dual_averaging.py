"""Step sizes by dual averaging on the acceptance.

With the acceptance ``a_t`` of step t (from 1), its target A, ``t_0 = 10``, ``gamma = 0.05``,
``kappa = 0.75`` and a center m, to which the log step size is drawn::

    H_t    = (1 - 1 / (t + t_0)) H_{t-1} + (A - a_t) / (t + t_0)
    log h  = m - sqrt(t) / gamma H_t
    log hb = t^-kappa log h + (1 - t^-kappa) log hb

h is used while it is tuned, and hb, its average, afterwards.

Where a step is one of many of a trajectory, the acceptance holds the errors of all its steps, also
of those from before h last changed. If t grew by 1 at each of them, h would swing widely, and its
average end far too low: with a diagonal metric where ten parameters all correlate by 0.99, at an
acceptance of 0.79 to 0.998 in ten runs of 16 chains, in place of 0.8. So t counts trajectories: it
grows by d, the share of chains whose trajectory ended, and d takes the place of the other ones::

    H_t    = (1 - d / (t + t_0)) H_{t-d} + d (A - a_t) / (t + t_0)
    log hb = d max(t, 1)^-kappa log h + (1 - d max(t, 1)^-kappa) log hb

There it ends at 0.84 to 0.95. While ``1 - a`` is below a tenth of ``1 - A`` in a running mean,
d is 1: errors are small whenever they were made, and h is far too short.

Reference: Hoffman and Gelman, "The No-U-Turn Sampler", 2014, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_fraction, check_positive
from particlevi.typing import JSON, Controls, Progress, World

__all__ = [
    "Averages",
    "acceptance_of",
    "advance",
    "begin",
    "dual_averaging",
    "running_mean",
    "share_of",
]

_T0, _GAMMA, _KAPPA = 10.0, 0.05, 0.75
_FAR = 0.1


class Averages(NamedTuple):
    """Where dual averaging stands; 0-d tensors.

    Attributes:
        log_step: of the next step.
        log_average: of the steps so far.
        error: H.
        steps: t.
        center: m.
    """

    log_step: Tensor
    log_average: Tensor
    error: Tensor
    steps: Tensor
    center: Tensor


def begin(step_size: Tensor, boldness: float = 10.0) -> Averages:
    """Before the first step, with the center at ``boldness`` times the step size."""
    log_step = step_size.log()
    zero = torch.zeros_like(log_step)
    return Averages(log_step, log_step, zero, zero, log_step + math.log(boldness))


def advance(
    state: Averages, acceptance: Tensor, target: float, share: float | Tensor = 1.0
) -> Averages:
    """After a step with that acceptance, 0-d; nothing where it is not finite.

    t grows by ``share``.

    >>> state = begin(torch.tensor(1.0))
    >>> for _ in range(200):
    ...     state = advance(state, (-state.log_step.exp()).exp(), target=0.8)
    >>> round(float((-state.log_average.exp()).exp()), 2)
    0.8
    """
    count = state.steps + share
    new = share / (count + _T0)
    error = (1 - new) * state.error + new * (target - acceptance)
    log_step = state.center - count.sqrt() / _GAMMA * error
    weight = share * count.clamp(min=1.0) ** -_KAPPA
    log_average = weight * log_step + (1 - weight) * state.log_average
    after = Averages(log_step, log_average, error, count, state.center)
    told = torch.isfinite(acceptance)
    return Averages(*(torch.where(told, a, b) for a, b in zip(after, state, strict=True)))


def acceptance_of(info: Any, world: World) -> Tensor:
    """The mean acceptance, 0-d, over the chains whose potential is finite; 0 where it is not."""
    sound = torch.isfinite(info.potential).to(info.acceptance)
    acceptance = torch.where(torch.isfinite(info.acceptance), info.acceptance, 0.0)
    return world.sum(sound * acceptance) / world.sum(sound)


def share_of(info: Any, reached: Tensor, target: float, world: World) -> Tensor | float:
    """By how much t grows in a step: the share of chains whose trajectory ended.

    1 of methods that make a whole trajectory in a step, and while the running mean of the
    acceptance is so near 1 that the step size is far too small.
    """
    if not hasattr(info, "tested"):
        return 1.0
    sound = torch.isfinite(info.potential).to(info.acceptance)
    ended = world.sum(sound * info.tested) / world.sum(sound)
    return torch.where(1 - reached < _FAR * (1 - target), 1.0, ended)


def running_mean(before: Tensor, new: Tensor) -> Tensor:
    """``0.9 before + 0.1 new``; the new one where there is none before."""
    return torch.where(torch.isnan(before), new, 0.9 * before + 0.1 * new)


class State(NamedTuple):
    """The tuner's state."""

    averages: Averages
    acceptance: Tensor


@dataclass(frozen=True)
class dual_averaging:
    """The step size at which the mean acceptance over chains is the target.

    For samplers that report an acceptance: ``hmc``, ``randomized_hmc``, ``mams``, ``obabo`` with a
    Metropolis test.

    Source: Hoffman and Gelman, "The No-U-Turn Sampler", 2014.

    Args:
        target_acceptance: A.
        step_size: the first one; any is found from, in some tens of steps.

    Raises:
        ValueError: a target out of (0, 1), or a step size that is not positive.
    """

    target_acceptance: float = 0.8
    step_size: float = 0.1
    name: str = field(default="dual_averaging", init=False)

    def __post_init__(self) -> None:
        check_fraction("target_acceptance", self.target_acceptance)
        check_positive("target_acceptance", self.target_acceptance)
        check_positive("step_size", self.step_size)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Its arguments, for the record."""
        return {"target_acceptance": self.target_acceptance, "step_size": self.step_size}

    def init(self, position: Tensor, controls: Controls) -> State:
        """The first state."""
        first = position.new_tensor(self.step_size)
        return State(begin(first), torch.full_like(first, math.nan))

    def controls(self, state: State) -> Controls:
        """The step size."""
        return {"step_size": state.averages.log_step.exp()}

    def update(
        self, state: State, position: Tensor, info: Any, progress: Progress, world: World
    ) -> State:
        """The state after a step of the warm-up."""
        acceptance, target = acceptance_of(info, world), self.target_acceptance
        reached = running_mean(state.acceptance, acceptance)
        share = share_of(info, reached, target, world)
        averages = advance(state.averages, acceptance, target, share)
        if progress.step >= progress.num_warmup:
            averages = averages._replace(log_step=averages.log_average)
        return State(averages, reached)

    def report(self, state: State) -> Mapping[str, JSON]:
        """The step size, and the acceptance at the end of the warm-up."""
        return {
            "step_size": float(state.averages.log_step.exp()),
            "acceptance": float(state.acceptance),
            "target_acceptance": self.target_acceptance,
        }
