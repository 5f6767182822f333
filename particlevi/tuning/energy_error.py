"""Step sizes by the energy change of a step, for methods without a Metropolis test.

An integrator of second order changes the energy by about ``h^3`` in a step, so that the mean square
of the change over D, the energy error E, grows as ``h^6``. With ``x = dE^2 / (D a)`` of each chain,
a the target, and weights ``w = exp(-(log x / 9)^2 / 2)`` that trust steps near the target more, the
step size is that at which the law would give the target::

    X <- r X + sum_chains w x / h^6
    W <- r W + sum_chains w
    h <- (X / W)^(-1/6) (1 + 63 q)^(-1/6)

A step that was taken back as not finite has no energy; q, the share of such steps of late, makes h
shorter by a factor between 1/2 and 1. So chains in a region where no step is possible do not drive
the step size to zero, and it comes back when they have left. Where no chain made a step, X grows by
64, which halves h.

Metric and decoherence length: at the ends of windows the diagonal metric becomes the standard
deviations of the draws of all chains, to which a low-rank one adds a few directions, see
``particlevi.tuning.low_rank``. The decoherence length is ``c sqrt(sum_i v_i)`` with their
variances ``v_i``, which are 1 in the units of the metric. On Gaussians in 50 dimensions, round and
with curvatures from 1 to 100, the effective draws of means and squares at worst are most at c = 2;
on a small net those of its outputs are three times as many at c = 4 as at c = 1.

The first half of the warm-up is for the way to where the mass lies. There c is 1/2 at most: chains
that begin at a minimum are all low; they take up potential together, and at a large c it swings
about its mean like a pendulum: of a net of 3760 parameters, whose potential has a standard
deviation of about 43 nats, the mean over four chains still did so by 671 nats (sd of steps 300 to
400) at c = 4, and by 13 at c = 1/2. And a is 1e-2 at least, so that steps are long: of a model of
stochastic volatility with 2519 parameters, begun where descents ended, far from the mass, R-hat of
projections was 1.21 after 10 900 steps, and 1.61 after 13 700 with a = 1.9e-7 from the first step
on. At a = 0.1 it stayed far off.

Reference: Robnik, De Luca, Silverstein and Seljak, "Microcanonical Hamiltonian Monte Carlo", 2023,
for the law, the weights and the memory; the treatment of steps that are not finite is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_is, check_positive
from particlevi.tuning.dual_averaging import running_mean
from particlevi.tuning.low_rank import LowRank, hold, no_directions, renew
from particlevi.tuning.metric import Moments, add, check_metric, no_moments, regularised
from particlevi.tuning.windows import pooled_windows
from particlevi.typing import JSON, Controls, Progress, World

__all__ = ["StepLaw", "energy_error", "follow", "harmless", "implied_bias", "no_steps", "step_of"]

_MEMORY = 50
_SETTLING, _SETTLING_ERROR, _SETTLED = 0.5, 1e-2, 2
_TRUST = 9.0


class StepLaw(NamedTuple):
    """Where the 1/6 law stands; 0-d float64 tensors.

    Attributes:
        weighted: X.
        weight: W.
        lost: q.
        first: the step size before there is any energy.
    """

    weighted: Tensor
    weight: Tensor
    lost: Tensor
    first: Tensor


def no_steps(step_size: Tensor) -> StepLaw:
    """Before the first step."""
    first = step_size.double()
    zero = torch.zeros_like(first)
    return StepLaw(zero, zero, zero, first)


def step_of(law: StepLaw) -> Tensor:
    """The step size, 0-d."""
    found = (law.weighted / law.weight) ** (-1 / 6)
    step = torch.where(law.weight > 0, found, law.first)
    return step * (1 + 63 * law.lost) ** (-1 / 6)


def follow(
    law: StepLaw,
    change: Tensor,
    num_params: int,
    target: float,
    world: World,
    memory: float = _MEMORY,
) -> StepLaw:
    """The law after a step with energy changes ``[P]``, not finite where a step was taken back.

    ``memory`` is the number of steps that count.
    """
    change = change.double()
    step, decay = step_of(law), (memory - 1) / (memory + 1)
    finite = torch.isfinite(change)
    ratio = torch.where(finite, change, 0.0).square() / (num_params * target) + 1e-8
    # A step that only evaluated changes nothing and tells nothing.
    weight = (finite & (change != 0)) * (-0.5 * (ratio.log() / _TRUST).square()).exp()
    moved = world.mean(finite.double())
    weighted = decay * law.weighted + world.sum(weight * ratio) / step**6
    total = decay * law.weight + world.sum(weight)
    lost = decay * law.lost + (1 - decay) * (1 - moved)
    stuck = moved == 0
    return StepLaw(
        torch.where(stuck, 64 * law.weighted, weighted),
        torch.where(stuck, law.weight, total),
        torch.where(stuck, law.lost, lost),
        torch.where(stuck, 0.5 * law.first, law.first),
    )


def implied_bias(energy_error: float) -> float:
    """Relative bias of second moments that an energy error per dimension implies.

    ``0.013 (E / 1.5e-4)^(1/3)``: the bias is of second order in the step and E of sixth. The
    constant is that of the minimal-norm integrator on the standard Gaussian; on Gaussians with
    curvatures from 1 to 100 the bias is about half of it.

    >>> round(implied_bias(1.5e-4), 3)
    0.013
    """
    check_positive("energy_error", energy_error)
    return 0.013 * math.pow(energy_error / 1.5e-4, 1 / 3)


def harmless(num_params: int) -> float:
    """The energy error at which the potential is off by a twentieth of its standard deviation.

    On the standard Gaussian in D dimensions the potential has the mean ``D / 2`` and the variance
    ``D / 2``, so that a relative bias b of second moments moves it by ``b sqrt(D / 2)`` of its
    standard deviation; see ``implied_bias``. It is 1e-4 at most.

    >>> round(implied_bias(harmless(5000)) * 2500**0.5, 3)
    0.05
    """
    bias = 0.05 / math.sqrt(num_params / 2)
    return min(1e-4, 1.5e-4 * (bias / 0.013) ** 3)


class State(NamedTuple):
    """The tuner's state.

    Attributes:
        law: of the step size.
        scale: the metric ``[D]``.
        moments: of the window's draws.
        length: decoherence length, 0-d.
        error: a running mean of ``dE^2 / D``, 0-d.
        low_rank: directions of a low-rank metric.
    """

    law: StepLaw
    scale: Tensor
    moments: Moments
    length: Tensor
    error: Tensor
    low_rank: LowRank


@dataclass(frozen=True, eq=False)
class energy_error:
    """The step size at a given energy error, a diagonal metric, and the decoherence length.

    For samplers that report the energy change of a step: ``mclmc``.

    Args:
        target: the energy error, mean square energy change of a step over D. At 1e-4 the
            minimal-norm integrator has second moments about 1 % too small on a Gaussian.
        metric: ``"diagonal"``; ``"low_rank"``, which adds the few directions, eight at most, in
            which draws spread much further; or ``"none"``.
        step_size: the first one, in units of the metric's coordinates; ``0.1 sqrt(D)`` if absent.
        decoherence: c.
        start: the first metric ``[D]``; ones if absent.

    Raises:
        ValueError: an argument out of its range.
    """

    target: float = 1e-4
    metric: Literal["diagonal", "low_rank", "none"] = "diagonal"
    step_size: float | None = None
    decoherence: float = 2.0
    start: Tensor | None = None
    name: str = field(default="energy_error", init=False)

    def __post_init__(self) -> None:
        check_positive("target", self.target)
        check_positive("decoherence", self.decoherence)
        check_choice("metric", self.metric, ["diagonal", "low_rank", "none"])
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        if self.start is not None:
            check_is("start", self.start, Tensor, "a tensor [D], the first metric")

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Its arguments, for the record."""
        return {
            "target": self.target,
            "metric": self.metric,
            "step_size": self.step_size,
            "decoherence": self.decoherence,
        }

    def init(self, position: Tensor, controls: Controls) -> State:
        """The first state."""
        if self.start is not None:
            check_metric(self.start, position, dense=False)
        root = math.sqrt(position.shape[1])
        scale = torch.ones_like(position[0]) if self.start is None else self.start.to(position)
        first = position.new_tensor(0.1 * root if self.step_size is None else self.step_size)
        length = position.new_tensor(self._decoherence(settled=False) * root)
        nothing = no_moments(position, dense=False)
        return State(
            no_steps(first),
            scale,
            nothing,
            length,
            torch.full_like(length, math.nan),
            no_directions(position, self.metric == "low_rank"),
        )

    def controls(self, state: State) -> Controls:
        """Step size, decoherence length, and the metric."""
        found = {
            "step_size": step_of(state.law).to(state.length),
            "decoherence_length": state.length,
        }
        if self.metric != "none":
            found["scale"] = state.scale
        return found | dict(state.low_rank.controls)

    def update(
        self, state: State, position: Tensor, info: Any, progress: Progress, world: World
    ) -> State:
        """The state after a step of the warm-up."""
        size, ends = position.shape[1], pooled_windows(progress.num_warmup)
        settled = not ends or progress.step >= ends[_SETTLED]
        target = self.target if settled else max(self.target, _SETTLING_ERROR)
        law = follow(state.law, info.energy_error, size, target, world)
        error, scale, length, moments = state.error, state.scale, state.length, state.moments
        low_rank = state.low_rank
        finite = torch.isfinite(info.energy_error)
        square = torch.where(finite, info.energy_error, 0.0).square()
        error = running_mean(error, world.mean(square) / size)
        if not ends:
            length = torch.full_like(length, self.decoherence * math.sqrt(size))
        elif progress.step > progress.num_warmup // 10:
            moments = add(moments, position, torch.isfinite(info.potential), world)
            low_rank = hold(low_rank, position, progress, ends, world)
        if progress.step in ends:
            if self.metric != "none":
                before, scale = scale, regularised(moments, scale)
                # The same move in the middle of the spectrum: steps in the new units.
                ratio = (scale / before).log().mean().exp().double()
                law = no_steps(step_of(law) / ratio)
                reach = torch.full_like(length, math.sqrt(size))
            else:
                reach = moments.covariance.sum().sqrt()
            low_rank = renew(low_rank, scale)
            wanted = self._decoherence(settled) * reach
            length = torch.where(reach > 0, wanted, length).to(length)
            moments, error = no_moments(position, dense=False), torch.full_like(error, math.nan)
        return State(law, scale, moments, length, error, low_rank)

    def _decoherence(self, settled: bool) -> float:
        """C, while chains still take up potential and after it."""
        return self.decoherence if settled else min(self.decoherence, _SETTLING)

    def report(self, state: State) -> Mapping[str, JSON]:
        """Step size, decoherence length, the energy error reached, and the bias it implies."""
        error = float(state.error)
        return {
            "step_size": float(step_of(state.law)),
            "decoherence_length": float(state.length),
            "energy_error": error,
            "target_energy_error": self.target,
            "implied_bias": implied_bias(error) if error > 0 else None,
            "metric": self.metric,
            **state.low_rank.report,
        }
