"""Step size and friction by the energy error on one batch and a bound on the noise's heat.

For unadjusted methods, with minibatches or without. Now and then in the warm-up, and some times
before the first step, every chain is probed where it is, with a batch of its own:

1. One leapfrog step of fresh momenta *on that same batch* changes the energy by ``dE``, which is
   the integrator's error and not the noise between batches. Its mean square over D grows as ``h^6``
   and gives the longest step ``h*`` of the target, by the law of ``energy_error``.
2. A third gradient on the batch, a tenth of a step along the direction in which the chain's
   potential was found to curve most, tells the curvature l there and turns the direction by the
   power method; ``h* <= 1 / sqrt(l)``, half of the stable range, since one stiff direction among
   many hardly shows in 1.
3. The two halves of the batch tell the gradient noise, and ``heat`` the largest factor k at which
   it shifts the energy of no tensor, of no span of its top directions, and not that of all
   parameters by more than ``tolerance`` of a standard deviation. The log-likelihood of all the data
   at the chains, before the first step and at the ends of windows, tells its standard deviation,
   and it is held to the same tolerance.

Then, with the friction ``f0 = 1 / (c sqrt(mean v))`` that goes with the variances v of the draws::

    momentum      h = h*, f = f0                     if h^2 / (4 tanh(f0 h / 2)) <= k
                  h = h*, f = (2 / h) atanh(h^2 / 4k)  if that has f h <= 3: friction is raised
                  h = sqrt(4 k tanh(1.5)), f = 3 / h   else: the step is shortened too
    overdamped    h = min(h*^2 / 2, 2 k)

In the second and third case a slow mode moves as fast at any ``(h, f)`` with that k, so that
nothing is lost by the friction. Neither k nor the law depends on the step that is in use: there is
one equilibrium, from whatever step the tuner begins. The curvature is watched as long as the
warm-up lasts: a sharper place makes ``dE`` large, and the step follows at the next probe.

For overdamped methods the drift of a step heats as its noise does, by ``h |grad U|^2 / 2`` in the
virial, so that both are held to the bound together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_flag, check_positive, check_positive_int
from particlevi._warning import warn
from particlevi.data import Data, as_data
from particlevi.gradients.control_variate import control_variate
from particlevi.gradients.minibatch import minibatch
from particlevi.samplers._metric import Metric
from particlevi.tuning.dual_averaging import running_mean
from particlevi.tuning.energy_error import StepLaw, follow, no_steps, step_of
from particlevi.tuning.heat import Heat, Subspace, bound, learn, no_heat, shifts
from particlevi.tuning.here import Here
from particlevi.tuning.metric import Moments, add, no_moments
from particlevi.tuning.probes import Prober
from particlevi.tuning.stability import StabilityWarning
from particlevi.tuning.steepest import Steepest, no_curvature, turn
from particlevi.tuning.windows import pooled_windows
from particlevi.typing import JSON, Controls, GradientEstimator, Progress, Sampler, World

__all__ = ["Dynamics", "bounded_for", "bounded_heat", "step_and_friction"]

Dynamics = Literal["momentum", "overdamped"]

_MOST_TRIALS = 40
_MEMORY = 10.0
_MOST_FRICTION = 3.0
_LEAST_FRICTION = 0.01
_SHARPER = 5.0


def step_and_friction(longest: float, friction: float, factor: float) -> tuple[float, float]:
    """Step size and friction of a momentum method whose noise may heat by the factor k.

    Args:
        longest: the step size ``h*`` that the integrator stands.
        friction: ``f0``, without noise.
        factor: k.

    >>> step_and_friction(0.5, 1.0, math.inf)
    (0.5, 1.0)
    >>> h, f = step_and_friction(0.5, 1.0, 0.1)
    >>> round(h, 3), round(h**2 / (4 * math.tanh(f * h / 2)), 3)
    (0.5, 0.1)
    >>> h, f = step_and_friction(0.5, 1.0, 1e-4)
    >>> round(f * h, 3), round(h**2 / (4 * math.tanh(f * h / 2)), 6)
    (3.0, 0.0001)
    """
    square = longest * longest
    if square <= 4 * factor * math.tanh(0.5 * friction * longest):
        return longest, friction
    share = square / (4 * factor)
    most = math.tanh(0.5 * _MOST_FRICTION)
    if share <= most:
        return longest, max(friction, 2 * math.atanh(share) / longest)
    step = math.sqrt(4 * factor * most)
    return step, max(friction, _MOST_FRICTION / step)


def bounded_for(
    sampler: Sampler, metric: Tensor | None, data: Data, batch_size: int | None
) -> bounded_heat | None:
    """The tuner of a sampler, by what it declares; None where it has no rule.

    Args:
        sampler: its estimate must have no memory but fixed centres.
        metric: a factor ``[D, D]`` or scale ``[D]``, None for the identity.
        data: of the potential.
        batch_size: of the run.
    """
    estimator, bound = sampler.estimator, sampler.max_step_size
    fixed = isinstance(estimator, (minibatch, control_variate)) and not getattr(
        estimator, "refresh", None
    )
    if not fixed or bound is None or "temperature" not in sampler.schedules:
        return None
    momentum = "friction" in sampler.tunable
    if not momentum and bound(4.0) > 0.3 * bound(1.0):
        return None
    known = sampler.settings.get("gradient_noise")
    if metric is not None and metric.ndim == 2 and known and known != "online":
        # A known variance of each coordinate needs a diagonal metric.
        metric = metric.square().sum(1).sqrt()
    return bounded_heat(
        estimator,
        data,
        batch_size,
        dynamics="momentum" if momentum else "overdamped",
        compensated=bool(known),
        start=metric,
        decoherence=2.0 if metric is not None else 4.0,
    )


class State(NamedTuple):
    """The tuner's state; 0-d tensors in float64 where not said otherwise.

    Attributes:
        law: of the longest step.
        heat: of the gradient noise.
        moments: of the window's draws.
        spread: root mean variance of the draws, in the coordinates of the method.
        error: a running mean of ``dE^2 / D`` of the probes.
        factor: k.
        step_size: h.
        friction: f.
        steepest: the largest curvature.
        longest: the longest ``h*`` since the run began.
        probes: made so far.
        likelihood_sd: standard deviation over chains of the log-likelihood of all the data.
        temperature: T.
    """

    law: StepLaw
    heat: Heat
    moments: Moments
    spread: Tensor
    error: Tensor
    factor: Tensor
    step_size: Tensor
    friction: Tensor
    steepest: Steepest
    longest: Tensor
    probes: Tensor
    likelihood_sd: Tensor
    temperature: Tensor


@dataclass(frozen=True, eq=False)
class bounded_heat:
    """Step size and friction at a bound on what gradient noise and integration bend.

    For ``sghmc``, ``baoab``, ``sgld`` and ``leimkuhler_matthews``, with minibatches or without.
    A probe takes three gradients of a batch per chain; there are 40 and some before the first step,
    and one every ``every`` steps of the warm-up.

    Source: the module's documentation, where the bound is derived.

    Args:
        estimator: of the gradient, as the sampler has it, or a potential's ``minibatch``.
        data: as given to ``sample``.
        batch_size: B of the run; all the data if absent, and then there is no noise.
        dynamics: of the method.
        compensated: whether the method takes the noise of each coordinate out of what it injects.
        tolerance: of the shift of an energy, in its standard deviations.
        target: of the energy error per dimension.
        step_size: the first one; any is found from.
        start: the metric, a factor ``[D, D]`` or a scale ``[D]``; the identity if absent.
        decoherence: c of the friction.
        every: steps between probes.
        first_probes: made before the first step, beside those that look for the step size.
        at: starting points of all processes, for a run in several; the run's own if absent.
        seed: of the probes' batches and momenta.

    Raises:
        ValueError: an argument out of its range; at the start, batches of one datum, which have no
            halves.
    """

    estimator: GradientEstimator
    data: Any = None
    batch_size: int | None = None
    dynamics: Dynamics = "momentum"
    compensated: bool = False
    tolerance: float = 0.1
    target: float = 1e-4
    step_size: float = 0.1
    start: Tensor | None = None
    decoherence: float = 2.0
    every: int = 4
    first_probes: int = 40
    at: Tensor | None = None
    seed: int = 0
    name: str = field(default="bounded_heat", init=False)

    def __post_init__(self) -> None:
        check_flag("compensated", self.compensated)
        for each in ("tolerance", "target", "step_size", "decoherence"):
            check_positive(each, getattr(self, each))
        check_choice("dynamics", self.dynamics, ["momentum", "overdamped"])
        check_positive_int("every", self.every)
        check_positive_int("first_probes", self.first_probes)
        if self.batch_size is not None:
            check_positive_int("batch_size", self.batch_size, minimum=2)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Its arguments, for the record."""
        names = ("batch_size", "dynamics", "compensated", "tolerance", "target", "step_size")
        more = ("decoherence", "every", "first_probes", "seed")
        return {each: getattr(self, each) for each in (*names, *more)}

    @cached_property
    def _prober(self) -> Prober:
        potential = self.estimator.potential
        metric = None
        if self.start is not None:
            like = self.start.to(potential.device, potential.dtype)
            metric = Metric(scale=like) if like.ndim == 1 else Metric(factor=like)
        data = as_data(self.data, potential).held()
        return Prober(self.estimator, data, self.batch_size, metric, self.seed)

    @cached_property
    def _tensors(self) -> dict[str, slice]:
        found: dict[str, slice] = self.estimator.potential.layout.slices()
        if self.start is None or self.start.ndim == 1:
            return found
        # A dense metric mixes the tensors.
        return {"all parameters": slice(0, len(self.start))}

    @property
    def rule(self) -> str:
        """What is tuned to what, in words."""
        text = (
            f"The step size is at most that of an energy error of {self.target:g} per dimension on "
            "one batch"
        )
        if self.batch_size is None:
            return f"{text}, watched during the whole warm-up."
        return (
            f"{text}, and step size and friction keep the shift that the noise of minibatches of "
            f"{self.batch_size} brings to the energy of every tensor, of the top noise directions "
            f"and of all parameters below {self.tolerance:g} standard deviations."
        )

    def init(self, position: Tensor, controls: Controls) -> State:
        """The first state, after probes at the starting points."""
        if self.at is None or len(self.at) == len(position):
            return self._begun(position, controls)
        # Other processes hold the others: all probe them all, and each goes on with its own.
        state = self._begun(self.at.to(position), controls)
        steepest = no_curvature(position, self.seed)
        level = state.steepest.largest.expand(len(position)).clone()
        steepest = steepest._replace(curvature=level, largest=state.steepest.largest)
        return state._replace(steepest=steepest)

    def _begun(self, position: Tensor, controls: Controls) -> State:
        zero = torch.zeros((), dtype=torch.float64, device=position.device)
        temperature = zero + float(controls.get("temperature", 1.0))
        state = State(
            law=no_steps(zero + self.step_size),
            heat=no_heat(position, self.seed),
            moments=no_moments(position, dense=False),
            spread=zero + self._first_spread(position),
            error=zero + math.nan,
            factor=zero + math.inf,
            step_size=zero + self.step_size,
            friction=zero + 1 / self.decoherence,
            steepest=no_curvature(position, self.seed),
            longest=zero,
            probes=zero,
            likelihood_sd=self._prober.likelihood_sd(position, Here(), zero + math.inf),
            temperature=temperature,
        )
        for _ in range(_MOST_TRIALS):
            trial = self._probe(state, position, Here())
            ratio = self.target / max(float(trial.error), 1e-300)
            factor = min(max(ratio ** (1 / 6), 1e-2), 1e2) if math.isfinite(ratio) else 1e-1
            law = no_steps(step_of(state.law) * factor)
            state = state._replace(law=law, probes=trial.probes)
            if 0.8 < factor < 1.25:
                break
        for _ in range(self.first_probes):
            state = self._probe(state, position, Here())
        return state._replace(longest=zero + self._longest(state))

    def _first_spread(self, position: Tensor) -> float:
        """1 in a metric; without one that of the starting points, if they differ."""
        if self.start is not None or len(position) < 4:
            return 1.0
        found = float(position.double().var(0).mean().sqrt())
        return found if found > 0 and math.isfinite(found) else 1.0

    def controls(self, state: State) -> Controls:
        """Step size, friction, and the metric."""
        dtype, metric = self.estimator.potential.dtype, self._prober.metric
        found = {"step_size": state.step_size.to(dtype)}
        if self.dynamics == "momentum":
            found["friction"] = state.friction.to(dtype)
        if metric is not None and metric.scale is not None:
            found["scale"] = metric.scale
        if metric is not None and metric.factor is not None:
            found["factor"] = metric.factor
        return found

    def update(
        self, state: State, position: Tensor, info: Any, progress: Progress, world: World
    ) -> State:
        """The state after a step of the warm-up."""
        z = self._prober.whiten(position)
        ends = pooled_windows(progress.num_warmup)
        moments = state.moments
        if ends and progress.step > progress.num_warmup // 10:
            moments = add(moments, z, torch.isfinite(info.potential), world)
        if progress.step in ends:
            spread = moments.covariance.mean().sqrt()
            known = torch.isfinite(spread) & (spread > 0)
            state = state._replace(spread=torch.where(known, spread, state.spread))
            moments = no_moments(position, dense=False)
        state = state._replace(moments=moments)
        last = progress.step == progress.num_warmup
        if progress.step % self.every == 0 or progress.step in ends or last:
            if progress.step in ends or last:
                sd = self._prober.likelihood_sd(position, world, state.likelihood_sd)
                state = state._replace(likelihood_sd=sd)
            state = self._probe(state, position, world)
            longest = torch.full_like(state.longest, self._longest(state))
            state = state._replace(longest=torch.maximum(state.longest, longest))
        if last:
            self._warn(state)
        return state

    def _probe(self, state: State, position: Tensor, world: World) -> State:
        """The state after a probe where the chains are."""
        temperature, size = float(state.temperature), position.shape[1]
        step, directions = float(step_of(state.law)), state.steepest.directions
        streams = self._prober.streams(int(state.probes), position, world)
        found = self._prober.probe(streams, position, step, directions, temperature)
        told = torch.isfinite(found.change)
        square = torch.where(told, found.change, 0.0).square()
        # All that is known where no chain made a step is that the step is too long.
        new = (world.sum(square) / world.sum(told.double()) / size).nan_to_num(nan=torch.inf)
        moving = found.noise if self.dynamics == "momentum" else found.slope
        return self._chosen(
            state._replace(
                law=follow(state.law, found.change, size, self.target, world, _MEMORY),
                error=running_mean(state.error, new),
                heat=learn(state.heat, moving, found.noise, world),
                steepest=turn(state.steepest, found.images, world),
                probes=state.probes + 1,
            )
        )

    def _chosen(self, state: State) -> State:
        """Step size and friction from the law and the bound."""
        longest, temperature = self._longest(state), float(state.temperature)
        factor = bound(
            state.heat,
            self._tensors,
            self.tolerance,
            temperature,
            self.compensated,
            float(state.likelihood_sd),
        )
        friction = max(1 / (self.decoherence * float(state.spread)), _LEAST_FRICTION / longest)
        if self.dynamics == "momentum":
            step, friction = step_and_friction(longest, friction, factor)
        else:
            step = min(0.5 * longest**2, 2 * factor)
        like = state.factor
        return state._replace(
            factor=torch.full_like(like, factor),
            step_size=torch.full_like(like, step),
            friction=torch.full_like(like, friction),
        )

    def _longest(self, state: State) -> float:
        """``h*``."""
        most = 1 / math.sqrt(max(float(state.steepest.largest), 1e-300))
        return min(float(step_of(state.law)), most)

    def factor_in_use(self, state: State) -> float:
        """The factor k at the step size and friction that were chosen."""
        h, f = float(state.step_size), float(state.friction)
        return 0.5 * h if self.dynamics == "overdamped" else h**2 / (4 * math.tanh(0.5 * f * h))

    def hottest(self, state: State) -> Subspace:
        """The subspace that the noise shifts most."""
        found = shifts(
            state.heat,
            self.factor_in_use(state),
            self._tensors,
            float(state.temperature),
            self.compensated,
            float(state.likelihood_sd),
        )
        return max(found, key=lambda each: abs(each.shift))

    def _limited_by(self, state: State) -> Literal["noise", "curvature", "energy error"]:
        if self.factor_in_use(state) > 0.999 * float(state.factor):
            return "noise"
        return "curvature" if self._longest(state) < float(step_of(state.law)) else "energy error"

    def relaxation_steps(self, state: State) -> float:
        """Steps in which a direction as wide as the draws are on average forgets where it was."""
        slowest = float(state.temperature) / float(state.spread) ** 2
        return 1 / max(2 * self.factor_in_use(state) * slowest, 1e-300)

    def _warn(self, state: State) -> None:
        fell = float(state.longest) / self._longest(state)
        if fell > _SHARPER:
            warn(
                f"The curvature rose while the chains warmed up: the longest stable step fell from "
                f"{float(state.longest):.3g} to {self._longest(state):.3g}. The step follows "
                "until the warm-up ends and is frozen then: see that it had come to rest "
                "(a longer num_warmup), or write scales on a log scale.",
                StabilityWarning,
            )

    def report(self, state: State) -> Mapping[str, JSON]:
        """What was chosen, what limits it, and what the noise heats."""
        hottest = self.hottest(state)
        found: dict[str, JSON] = {
            "step_size": float(state.step_size),
            "energy_error": float(state.error),
            "target_energy_error": self.target,
            "curvature": float(state.steepest.largest),
            "limited_by": self._limited_by(state),
            "tolerance": self.tolerance,
            "hottest": hottest.name,
            "heat": hottest.heat,
            "shift": hottest.shift,
            "relaxation_steps": self.relaxation_steps(state),
            "probes": int(state.probes),
        }
        if self.dynamics == "momentum":
            found["friction"] = float(state.friction)
        return found
