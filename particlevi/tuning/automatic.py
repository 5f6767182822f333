"""The choice of what nobody chose: sampler, start, tuner, warm-up.

The rule, with D parameters:

1. All chains are minimised together: by BFGS and Newton steps up to 500 parameters (100 for a
   module, whose hidden units make a Hessian poor), by BFGS of limited memory above, a module by
   Adam. Up to that number minima that the chains did not find are looked for from far outside;
   above it normal laws are fitted to a density, and chains begin in them where they hold far more
   mass than the neighbourhood of the lowest point.
2. Up to that number ``randomized_hmc`` moves, with a dense metric. If at least four in five chains
   lie in the basin of the lowest minimum, it begins with the inverse Hessian there; if they found
   different minima, with its diagonal.
3. With more parameters, ``mclmc`` moves, unadjusted, with a stated energy error; with 64 chains or
   more of a density, these are brought near the posterior together, unadjusted, and ``mams`` goes
   on from there, exact.

Every step takes all the data.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._warning import warn
from particlevi.curvature import largest_curvature
from particlevi.data import Data, DataLike, as_data
from particlevi.gradients.structured import structured, structured_dropout
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential
from particlevi.samplers.mams import mams
from particlevi.samplers.mclmc import mclmc
from particlevi.samplers.randomized_hmc import randomized_hmc
from particlevi.streams import ParticleStreams
from particlevi.tuning.bounded_heat import bounded_for
from particlevi.tuning.chosen import because, constant
from particlevi.tuning.energy_error import energy_error, harmless
from particlevi.tuning.ensemble import approach
from particlevi.tuning.landscape import Surroundings
from particlevi.tuning.objective import Objective
from particlevi.tuning.pilot import seconds_of, taken
from particlevi.tuning.start import Start, find_start
from particlevi.tuning.step_size import suggest_step_size
from particlevi.tuning.windows import windows
from particlevi.typing import Potential, Sampler, Tuner

__all__ = ["Setup", "affordable", "most_draws", "prepare"]

_MOST_BYTES = 2**28
_DECOHERENCE_OF_A_NET = 4.0
_FEWEST_OF_AN_ENSEMBLE = 64
_FRACTION = {"overdamped": 0.1, "momentum": 0.25}
_WARMUP, _CHAINS, _LONGER_OFF_MODE = 400, 8, 4
_SHARE_OF_WARMUP, _FEWEST_STEPS = 0.5, 20
_FEWEST_POOLED = {"trajectories": 8, "steps of trajectories": 4}


@dataclass(frozen=True, eq=False)
class Setup:
    """All that a run needs and nobody gave.

    Attributes:
        sampler, tuner: what moves, and what tunes it.
        initial: starting points ``[P, D]``.
        num_warmup, num_draws, thin: as in ``sample``.
        batch_size: B; None for all data.
    """

    sampler: Sampler
    tuner: because
    initial: Tensor
    num_warmup: int
    num_draws: int
    thin: int
    batch_size: int | None


def prepare(
    what: Potential | Sampler,
    data: DataLike,
    initial: Tensor,
    generator: torch.Generator,
    batch_size: int | None = None,
    keep_start: bool = False,
) -> Setup:
    """Choose what a run needs from the potential and its data.

    Args:
        what: a potential, or a sampler whose step size nobody gave.
        data: as given to ``sample``.
        initial: points ``[P, D]`` to look from.
        generator: of the randomness of the start.
        batch_size: B that was asked for.
        keep_start: begin at ``initial`` itself where draws of the posterior may lie; the minimum is
            looked for all the same.

    Raises:
        ValueError: a sampler for which no rule is known.
    """
    potential = what.potential if isinstance(what, Sampler) else as_potential(what)
    began = time.perf_counter()
    given = as_data(data, potential)
    seen = _batch_size(given, len(initial), batch_size)
    objective = Objective(potential, _held(given, seen))
    start = find_start(objective, initial, generator, keep_start)
    if keep_start and start.others:
        warn(
            f"{start.others} minima were found apart from that in which the chains begin, of a "
            "mass that counts: unless chains pass between them, the draws leave them out. Leave "
            "initial out to begin in all of them.",
        )
    reasons = [start.reason]
    sampler_chosen = not isinstance(what, Sampler)
    what = what if isinstance(what, Sampler) else potential
    chosen = taken(what, start, objective.data, batch_size)
    if chosen is not None:
        what, start = chosen.what, chosen.start
        batch_size = seen = chosen.batch_size
        reasons.append(chosen.reason)
    if isinstance(what, ModelPotential) and _is_ensemble(start):
        start = _approached(objective, start, generator, reasons)
    sampler = what if isinstance(what, Sampler) else _choose(potential, start, reasons)
    tuner, num_warmup, thin = _tuner_of(sampler, start, objective, seen, reasons)
    seconds = time.perf_counter() - began
    told = because(
        tuner,
        tuple(reasons),
        objective.num_gradients,
        seconds,
        sampler_chosen=sampler_chosen,
    )
    return Setup(sampler, told, start.points, num_warmup, most_draws(initial), thin, batch_size)


def _batch_size(data: Data, num_particles: int, batch_size: int | None) -> int | None:
    """B of the run, a loader's own too; None where every step sees all the data."""
    if batch_size is not None or data.loader is None:
        return batch_size
    source = data.batches(num_particles=num_particles)
    return None if source.law == "all" else source.batch_size


def _held(data: Data, batch_size: int | None) -> Data:
    """The data in memory, from which minibatches are drawn as in the run."""
    held = data.held()
    if held.loader is not None and batch_size is not None:
        raise ValueError(
            "The data of the loader take more than 1 GiB, and the noise of minibatches is measured "
            "on data in memory: give step_size (pvi.suggest_step_size proposes one)."
        )
    return held


def most_draws(initial: Tensor) -> int:
    """Of a run that ends when it has reached a target, from starts ``[P, D]``; memory bounds it."""
    size = initial.numel() * initial.element_size()
    return max(100, min(4000, _MOST_BYTES // size))


def affordable(
    sampler: Sampler, data: DataLike, points: Tensor, batch_size: int | None, seconds: float
) -> int:
    """Steps of a warm-up that takes half of so many seconds at the most, but twenty at the least.

    Args:
        sampler: what moves.
        data: as given to ``sample``.
        points: where chains start, ``[P, D]``.
        batch_size: B.
        seconds: that are left of the budget.
    """
    one = seconds_of(sampler, as_data(data, sampler.potential), points, batch_size)
    return max(_FEWEST_STEPS, int(_SHARE_OF_WARMUP * seconds / one))


def _is_ensemble(start: Start) -> bool:
    """Many chains of many parameters with a scale each: means over chains tell all there is."""
    many = len(start.points) >= _FEWEST_OF_AN_ENSEMBLE
    return many and start.metric is not None and start.metric.ndim == 1


def _approached(
    objective: Objective, start: Start, generator: torch.Generator, reasons: list[str]
) -> Start:
    """The ensemble brought near the posterior together, with its own scale."""
    assert start.metric is not None
    found = approach(objective.gradient_at, start.points, start.metric, generator)
    reasons.append(
        f"{found.num_steps} unadjusted steps of all chains together brought them near: the mean "
        f"square deviation from equipartition is {found.bias:.2g}."
    )
    return start._replace(points=found.points, metric=found.scale)


def _choose(potential: ModelPotential, start: Start, reasons: list[str]) -> Sampler:
    dense = start.metric is not None and start.metric.ndim == 2
    if dense or potential.num_params == 1:
        reasons.append(
            "randomized_hmc: Metropolis-adjusted, so exact for any step, and in coordinates scaled "
            "by a metric the fastest for few parameters."
        )
        return randomized_hmc(potential)
    if _is_ensemble(start):
        reasons.append(
            f"mams: {potential.num_params} parameters are too many for a dense metric; it is "
            "adjusted, so exact for any step."
        )
        return mams(potential)
    reasons.append(
        f"mclmc: a dense metric does not pay for a net, nor for {potential.num_params} parameters; "
        "it is not adjusted, and its energy error bounds its bias."
    )
    return mclmc(potential)


def _tuner_of(
    sampler: Sampler,
    start: Start,
    objective: Objective,
    batch_size: int | None,
    reasons: list[str],
) -> tuple[Tuner, int, int]:
    """The tuner of a sampler, its warm-up and its thinning, by what the sampler declares."""
    reported = _reported(sampler, objective, start.points)
    if sampler.requires.energy and "acceptance" in reported:
        chains = len(start.points)
        unit = "steps of trajectories" if "tested" in reported else "trajectories"
        length = sampler.schedules.get("trajectory_length")
        metric = start.metric
        dense = metric is not None and metric.ndim == 2
        first = 0.5 if length is None else length(0) / math.pi
        tuner = windows(
            "dense" if dense else "diagonal",
            target_acceptance=0.9 if sampler.name == "mams" else 0.8,
            step_size=first,
            trajectory_length=None if length is None else length(0),
            start=metric,
            pooled=chains >= _FEWEST_POOLED[unit],
        )
        reasons.append(
            f"The step size is tuned to an acceptance of {tuner.target_acceptance:g}, the "
            f"{tuner.metric} metric to the draws of all chains."
        )
        return tuner, _warmup(unit, chains, start.off_mode), 2
    if "decoherence_length" in sampler.schedules and batch_size is None:
        metric = start.metric
        if metric is None:
            law = energy_error(metric="none", decoherence=_DECOHERENCE_OF_A_NET)
            means = "second moments of a Gaussian are about 1 % too small"
        else:
            scale = metric if metric.ndim == 1 else metric.square().sum(1).sqrt()
            law = energy_error(harmless(len(scale)), metric="low_rank", start=scale)
            means = "the potential of a Gaussian is off by at most a twentieth of its deviation"
        reasons.append(
            f"The step size is tuned to an energy error of {law.target:.2g} per dimension, at "
            f"which {means}."
        )
        return law, 600, 4
    estimator = sampler.estimator
    if isinstance(estimator, (structured, structured_dropout)) and estimator.history.after is None:
        raise ValueError(
            f"The history of {estimator.name} begins with the draws, so that nothing in the "
            "warm-up tells how strongly its composites curve: give step_size, some eighth of what "
            "pvi.suggest_step_size(estimator, data, at=trained_points) proposes, or a history that "
            "begins earlier (history=pvi.gradients.history(after=...)), and look at "
            "draws.diagnose(data)."
        )
    if sampler.step_rule is not None:
        around = Surroundings(objective, estimator, start.points, batch_size)
        step, reason = sampler.step_rule(around)
        reasons.append(reason)
        return constant({"step_size": start.points.new_tensor(step)}), 400, 5
    if sampler.max_step_size is None:
        raise ValueError(
            f"No rule is known for the step size of {sampler.name}"
            f"{'' if batch_size is None else ' on minibatches'}: give step_size "
            "(pvi.suggest_step_size proposes one), or pass the potential in place of the sampler."
        )
    bounded = bounded_for(sampler, start.metric, objective.data, batch_size)
    if bounded is not None:
        reasons.append(bounded.rule)
        return dataclasses.replace(bounded, at=start.points), 400, 5
    return _stable(sampler, start, objective, batch_size, reasons), 400, 5


def _warmup(unit: str, chains: int, off_mode: bool) -> int:
    """Steps of the warm-up: more for few chains of short steps, which tell little of a metric.

    And more where chains begin away from the mode, since no metric of a start is right there.
    """
    if unit == "trajectories":
        return _WARMUP
    return _WARMUP * max(1, round(_CHAINS / chains)) * (_LONGER_OFF_MODE if off_mode else 1)


def _reported(sampler: Sampler, objective: Objective, points: Tensor) -> tuple[str, ...]:
    """What a step reports, found by a step of no length."""
    streams = ParticleStreams(0, "look", device=points.device)
    state = sampler.init(points, streams)
    controls = {name: points.new_tensor(each(0)) for name, each in sampler.schedules.items()}
    controls["step_size"] = points.new_tensor(1e-30)
    batch = objective.data.whole() if objective.data.num_data else None
    _, info = sampler.step(state, batch, sampler.draw_noise(state, streams), controls)
    return tuple(info._fields)


def _stable(
    sampler: Sampler,
    start: Start,
    objective: Objective,
    batch_size: int | None,
    reasons: list[str],
) -> Tuner:
    """A share of the stable range, where the chains start, and less where minibatches heat."""
    bound = sampler.max_step_size
    assert bound is not None
    kind = "momentum" if bound(4.0) > 0.3 * bound(1.0) else "overdamped"
    chosen: dict[str, Tensor] = {}
    points = start.points[:4]
    # With many parameters the largest curvature in a metric would cost as many gradients.
    dense = start.metric is not None and start.metric.ndim == 2
    metric = start.metric if dense and batch_size is None else None
    if metric is not None and metric.ndim == 2 and sampler.settings.get("gradient_noise"):
        # The noise of each coordinate alone needs a diagonal metric.
        metric = metric.square().sum(1).sqrt()
    if metric is None:
        curvature = largest_curvature(objective.potential, points, objective.data)
    else:
        chosen["scale" if metric.ndim == 1 else "factor"] = metric.to(points)
        root = metric.to(points).diag() if metric.ndim == 1 else metric.to(points)
        hessians = [root.mT @ objective.hessian(point) @ root for point in points]
        curvature = max(float(torch.linalg.eigvalsh(each).max()) for each in hessians)
    step = _FRACTION[kind] * bound(curvature)
    reasons.append(
        f"The step size is {_FRACTION[kind]:g} of the stable range at the largest curvature where "
        f"chains start, {curvature:.4g}{' in the metric' if metric is not None else ''}."
    )
    if batch_size is not None and objective.data.num_data:
        found = suggest_step_size(
            sampler.estimator,
            objective.data,
            batch_size=batch_size,
            at=points,
            friction=float(str(sampler.settings.get("friction", 1.0))),
            verbose=False,
        )
        tolerated = found.momentum if kind == "momentum" else found.overdamped
        step = min(step, tolerated)
        reasons.append(f"Minibatches: {found.reason}")
    chosen["step_size"] = points.new_tensor(step)
    return constant(chosen)
