"""Step size and metric of a Metropolis-adjusted method, by windows of the warm-up.

The warm-up is cut into a first part that tunes the step size only, windows that double, at the end
of each of which the metric becomes that of the window's draws, and a last part that tunes the step
size only. Within a window the step size follows dual averaging, begun anew after each.

With many chains, the draws of all are pooled, so that short windows do. With one or a few, the
windows are Stan's.

Reference: Carpenter and others, "Stan: a probabilistic programming language", 2017, and the Stan
Reference Manual, section "Automatic parameter tuning".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_flag, check_fraction, check_is, check_positive
from particlevi.samplers._metric import Metric
from particlevi.tuning.chees import Lengths, begin_lengths, climb, turn
from particlevi.tuning.dual_averaging import (
    Averages,
    acceptance_of,
    advance,
    begin,
    running_mean,
    share_of,
)
from particlevi.tuning.low_rank import LowRank, hold, no_directions, renew
from particlevi.tuning.metric import Moments, add, check_metric, mean_of, no_moments, regularised
from particlevi.tuning.stuck import Stuck, look_for_stuck, none_stuck
from particlevi.typing import JSON, Controls, Progress, Proposals, World

__all__ = ["pooled_windows", "stan_windows", "windows"]


def stan_windows(num_warmup: int) -> list[int]:
    """Steps after which the metric is renewed, by Stan's rule for one chain.

    75 steps, windows of 25, 50, 100, ... of which the last takes the rest, 50 steps; for fewer than
    150 steps 15 %, one window of 75 %, 10 %; for fewer than 20 none.

    >>> stan_windows(1000)
    [100, 150, 250, 450, 950]
    """
    if num_warmup < 20:
        return []
    if num_warmup < 150:
        return [num_warmup - int(0.1 * num_warmup)]
    begun, end, size, ends = 75, num_warmup - 50, 25, []
    while begun < end:
        last = end - begun < 3 * size
        begun = end if last else begun + size
        ends.append(begun)
        size *= 2
    return ends


def pooled_windows(num_warmup: int) -> list[int]:
    """Steps after which the metric is renewed, where the draws of many chains are pooled.

    A tenth of the warm-up, four windows in the proportion 1 : 1 : 2 : 4, and a fifth.

    >>> pooled_windows(400)
    [75, 110, 180, 320]
    """
    if num_warmup < 20:
        return []
    first, last = num_warmup // 10, num_warmup - num_warmup // 5
    span = last - first
    return [first + span // 8, first + span // 4, first + span // 2, last]


_PATIENCE = 10.0
_LONGEST = 1e30
_MOST_STEPS_TUNING, _MOST_STEPS = 16.0, 1000.0
_FEWEST_CHAINS = 4
_MOST_STEPS_OF_SHORT, _SHARE_OF_TURN = 4.0, 0.25


class State(NamedTuple):
    """The tuner's state.

    Attributes:
        averages: of the step size.
        metric: scale ``[D]`` or factor ``[D, D]``.
        moments: of the window's draws.
        acceptance: a running mean, 0-d.
        renewed: how often the metric was renewed, 0-d.
        ended: 1 after the warm-up, 0-d.
        lengths: of trajectories.
        center: a running mean of the chains ``[D]``, where lengths are learned, else ``[0]``.
        turn: number of steps of the turn in which lengths are learned, 0-d; 0 in others.
        low_rank: directions of a low-rank metric.
        stuck: chains that refuse everything.
    """

    averages: Averages
    metric: Tensor
    moments: Moments
    acceptance: Tensor
    renewed: Tensor
    ended: Tensor
    lengths: Lengths
    center: Tensor
    turn: Tensor
    low_rank: LowRank
    stuck: Stuck


@dataclass(frozen=True, eq=False)
class windows:
    """Step size by dual averaging, metric by windows, trajectory length in whitened units.

    For samplers that report an acceptance: ``hmc``, ``randomized_hmc``, ``mams``.

    Args:
        metric: ``"dense"``; for many parameters ``"diagonal"``, or ``"low_rank"``, which adds the
            few directions, eight at most, in which draws spread much further.
        target_acceptance: of dual averaging.
        step_size: the first one, in units of the metric's coordinates.
        trajectory_length: in the same units, for samplers that take one; None for those that do
            not. ``"chees"``: learned, for ``randomized_hmc`` and ``mams`` with four chains or
            more, see ``particlevi.tuning.chees``.
        start: the first metric: a factor ``[D, D]`` for a dense one, else a scale ``[D]``; the
            identity if absent.
        pooled: whether windows are short, for many chains, or Stan's; by the number of chains (8 or
            more) if absent.

    Raises:
        ValueError: an argument out of its range.
    """

    metric: Literal["dense", "diagonal", "low_rank"] = "dense"
    target_acceptance: float = 0.8
    step_size: float = 0.5
    trajectory_length: float | Literal["chees"] | None = None
    start: Tensor | None = None
    pooled: bool | None = None
    name: str = field(default="windows", init=False)

    def __post_init__(self) -> None:
        check_choice("metric", self.metric, ["dense", "diagonal", "low_rank"])
        check_fraction("target_acceptance", self.target_acceptance)
        check_positive("target_acceptance", self.target_acceptance)
        check_positive("step_size", self.step_size)
        wanted = 2 if self.metric == "dense" else 1
        if isinstance(self.trajectory_length, str):
            check_choice("trajectory_length", self.trajectory_length, ["chees"])
        elif self.trajectory_length is not None:
            check_positive("trajectory_length", self.trajectory_length)
        if self.pooled is not None:
            check_flag("pooled", self.pooled)
        if self.start is not None:
            check_is("start", self.start, Tensor, "a tensor, the first metric")
        if self.start is not None and self.start.ndim != wanted:
            raise ValueError(
                f"The first {self.metric} metric is a tensor of {wanted} axes, got "
                f"{list(self.start.shape)}."
            )

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Its arguments, for the record."""
        return {
            "metric": self.metric,
            "target_acceptance": self.target_acceptance,
            "step_size": self.step_size,
            "trajectory_length": self.trajectory_length,
            "pooled": self.pooled,
        }

    @property
    def fewest_chains(self) -> int:
        """Chains that it takes to learn trajectory lengths; 0 where they are given."""
        return _FEWEST_CHAINS if self.trajectory_length == "chees" else 0

    def init(self, position: Tensor, controls: Controls) -> State:
        """The first state."""
        dense, size = self.metric == "dense", position.shape[1]
        zero = position.new_zeros(())
        if self.start is not None:
            check_metric(self.start, position, dense=self.metric == "dense")
        start = self.start
        if start is None:
            start = torch.ones(size) if not dense else torch.eye(size)
        learns = self.trajectory_length == "chees"
        return State(
            begin(zero + self.step_size, 2.0),
            start.to(position),
            no_moments(position, dense),
            zero + math.nan,
            zero,
            zero,
            begin_lengths(zero + self.step_size),
            position.new_full((size if learns else 0,), math.nan),
            zero,
            no_directions(position, self.metric == "low_rank"),
            none_stuck(position),
        )

    def controls(self, state: State) -> Controls:
        """Step size, metric, and trajectory length."""
        step_size = state.averages.log_step.exp()
        found = {"step_size": step_size}
        found["factor" if state.metric.ndim == 2 else "scale"] = state.metric
        found |= state.low_rank.controls
        if self.trajectory_length is not None:
            longest = self._most_steps(state) * step_size
            found["trajectory_length"] = torch.minimum(self._length(state).to(longest), longest)
            found["patience"] = torch.where(state.ended > 0, math.inf, _PATIENCE).to(longest)
        if state.stuck.short and not bool(state.ended):
            for name in {"step_size", "trajectory_length"} & found.keys():
                found[name] = state.stuck.factor * found[name]
        return found

    def _length(self, state: State) -> Tensor:
        if isinstance(self.trajectory_length, str):
            return state.lengths.log_length.exp()
        assert self.trajectory_length is not None
        return torch.full_like(state.ended, min(self.trajectory_length, _LONGEST))

    def _most_steps(self, state: State) -> Tensor:
        """Of a trajectory in the mean; in the warm-up long ones are likely to be wasted."""
        tuning = torch.full_like(state.ended, _MOST_STEPS_TUNING)
        if self.trajectory_length == "chees":
            tuning = (_SHARE_OF_TURN * state.turn).clamp(min=_MOST_STEPS_OF_SHORT)
        return torch.where(state.ended > 0, _MOST_STEPS, tuning)

    def consider(
        self, state: State, proposals: Proposals, progress: Progress, world: World
    ) -> State:
        """The state after a step of the warm-up with these proposals."""
        if state.stuck.short:
            return state
        now = turn(progress.step, self._ends(progress, proposals.time, world), progress.num_warmup)
        used, step = self.controls(state), state.averages.log_step.exp()
        if now.done <= 2 * float(used["trajectory_length"] / step):
            return state
        metric, longest = Metric.of(used), self._most_steps(state) * step
        assert metric is not None
        center = metric.whiten(state.center.unsqueeze(0))
        lengths = climb(state.lengths, proposals, center, step, longest, world)
        return state._replace(lengths=lengths)

    def update(
        self, state: State, position: Tensor, info: Any, progress: Progress, world: World
    ) -> State:
        """The state after a step of the warm-up."""
        acceptance, target = acceptance_of(info, world), self.target_acceptance
        stuck = look_for_stuck(state.stuck, info, world)
        averages, reached = state.averages, state.acceptance
        if not state.stuck.short:
            reached = running_mean(reached, acceptance)
            share = share_of(info, reached, target, world)
            averages = advance(averages, acceptance, target, share)
        ends = self._ends(progress, position[:, 0], world)
        moments, metric, renewed = state.moments, state.metric, state.renewed
        lengths, center, next_turn = state.lengths, state.center, state.turn
        low_rank = state.low_rank
        if self.trajectory_length == "chees":
            center = running_mean(center, mean_of(position, torch.isfinite(info.potential), world))
            coming = turn(progress.step + 1, ends, progress.num_warmup)
            next_turn = torch.full_like(renewed, coming.length)
            if bool(state.turn > 0):
                averages = state.averages
            elif bool(next_turn > 0):
                averages = averages._replace(log_step=averages.log_average)
        if ends and progress.step > progress.num_warmup // 10:
            tested = getattr(info, "tested", torch.ones_like(info.acceptance))
            sound = torch.isfinite(info.potential)
            moments = add(moments, position, tested * sound, world)
            known = torch.where(sound.unsqueeze(1), position, math.nan)
            low_rank = hold(low_rank, known, progress, ends, world)
        if progress.step in ends:
            metric, renewed = regularised(moments, metric), renewed + 1
            moments = no_moments(position, metric.ndim == 2)
            chains = int(world.sum(torch.ones_like(position[:, 0])))
            low_rank = renew(low_rank, metric, chains)
            averages = begin(averages.log_average.exp(), 2.0)
            lengths = begin_lengths(lengths.log_length.exp())
        if progress.step >= progress.num_warmup:
            averages = averages._replace(log_step=averages.log_average)
            lengths = lengths._replace(log_length=lengths.log_average)
        ended = torch.full_like(renewed, float(progress.step >= progress.num_warmup))
        return State(
            averages,
            metric,
            moments,
            reached,
            renewed,
            ended,
            lengths,
            center,
            next_turn,
            low_rank,
            stuck,
        )

    def report(self, state: State) -> Mapping[str, JSON]:
        """Step size, acceptance, and how the metric was found."""
        return {
            "step_size": float(state.averages.log_step.exp()),
            "acceptance": float(state.acceptance),
            "target_acceptance": self.target_acceptance,
            "trajectory_length": self._reported(state),
            "metric": self.metric,
            "metric_renewed": int(state.renewed),
            "short_steps": int(state.stuck.times),
            **state.low_rank.report,
        }

    def _reported(self, state: State) -> float | None:
        if isinstance(self.trajectory_length, str):
            return float(self.controls(state)["trajectory_length"])
        return self.trajectory_length

    def _ends(self, progress: Progress, like: Tensor, world: World) -> list[int]:
        """Steps after which the metric is renewed, with particles ``[P]`` here."""
        pooled = self.pooled
        if pooled is None:
            pooled = int(world.sum(torch.ones_like(like))) >= 8
        return (pooled_windows if pooled else stan_windows)(progress.num_warmup)
