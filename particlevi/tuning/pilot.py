"""All the data or minibatches: a measured choice.

The noise of minibatches allows a factor k (see ``heat``), and a slow mode of curvature l moves by
``2 k l`` of itself in a step, so that ``k`` per second is what a choice is worth. With the longest
step ``h*`` and the friction ``f0`` of all the data, ``k0 = h*^2 / (4 tanh(f0 h* / 2))`` is all that
can be used:

    all data            k0 / s(N)
    minibatches of B    min(k(B), k0) / s(B),     k(B) = k(B0) B / B0
    control variates    the same with their own k and s, the centre at the lowest minimum

where the seconds of a step of all chains ``s(B) = a + b B`` are measured at B0, at 8 B0 or 4096 and
at N, of which the steeper slope b counts, and k(B0) on 40 batches per chain where the chains are. B
goes by doubling from B0 to N / 2. The choice is the worthiest, but

* what was asked for, ``batch_size`` as it was given, is kept unless another is worth 1.5 times as
  much;
* where nothing was asked for, all data are kept unless minibatches are worth twice as much, since
  they have no bias to bound, and without a measurement below 5000 data.

Without control variates k(B) / s(B) hardly depends on N once ``b B`` is above a: noise to the bound
costs as many data as all of them. It is through the centre, near which the noise vanishes, that
minibatches come to cost less than all data as N grows.

Reference for the last: Nagapetyan, Duncan, Hasenclever, Vollmer, Szpruch and Zygalakis, "The true
cost of stochastic gradient Langevin dynamics", 2017; Baker, Fearnhead, Fox and Nemeth, "Control
variates for stochastic gradient MCMC", 2019. The rule is ours.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.data import Data, as_data
from particlevi.gradients.control_variate import control_variate
from particlevi.gradients.minibatch import minibatch
from particlevi.potentials.potential import ModelPotential
from particlevi.samplers.sghmc import sghmc
from particlevi.streams import ParticleStreams
from particlevi.tuning.bounded_heat import bounded_for, bounded_heat
from particlevi.tuning.here import Here
from particlevi.tuning.start import Start
from particlevi.typing import Progress, Sampler

__all__ = ["Option", "Taken", "choose", "options", "seconds_of", "settled", "taken", "told"]

FEWEST_DATA = 5000
FIRST_BATCH = 64
_KEPT, _ALL_DATA_KEPT = 1.5, 2.0
_TIMINGS = 5
_SETTLING = 100
_LARGE_BATCH = 4096


class Option(NamedTuple):
    """A way to take the data.

    Attributes:
        batch_size: B; None for all data.
        sampler: with its estimate of the gradient.
        seconds: of a step of all chains.
        factor: k that it may use.
    """

    batch_size: int | None
    sampler: Sampler
    seconds: float
    factor: float

    @property
    def worth(self) -> float:
        """K per second."""
        return self.factor / self.seconds

    @property
    def words(self) -> str:
        """What it is."""
        if self.batch_size is None:
            return "all data"
        varied = isinstance(self.sampler.estimator, control_variate)
        kind = " with control variates" if varied else ""
        return f"minibatches of {self.batch_size}{kind}"


def seconds_of(sampler: Sampler, data: Data, points: Tensor, batch_size: int | None) -> float:
    """Seconds of one step from all points ``[P, D]``, the least of five."""
    streams = ParticleStreams(0, "timing", device=points.device)
    source = data.batches(num_particles=len(points), batch_size=batch_size)
    state = sampler.init(points, streams)
    controls = {name: points.new_tensor(each(0)) for name, each in sampler.schedules.items()}
    controls["step_size"] = points.new_tensor(1e-30)
    found = []
    for _ in range(_TIMINGS):
        if points.device.type == "cuda":
            torch.cuda.synchronize(points.device)
        began = time.perf_counter()
        batch = source.next(streams)
        _, info = sampler.step(state, batch, sampler.draw_noise(state, streams), controls)
        float(info.potential[0])
        found.append(time.perf_counter() - began)
    return min(found)


def options(
    sampler: Sampler, tuner: bounded_heat, data: Data, points: Tensor, center: Tensor | None
) -> list[Option]:
    """What can be done with the data, all of them first, with what it is worth where chains are.

    Args:
        sampler: as it was given.
        tuner: of the minibatches that begin the list; its batch size is B0.
        data: of the potential.
        points: where chains are, ``[P, D]``.
        center: of control variates, ``[D]``; none are looked at if absent.
    """
    first = tuner.batch_size
    assert first is not None
    whole = dataclasses.replace(tuner, batch_size=None, first_probes=4)
    calm = whole.factor_in_use(whole.init(points, {}))
    found = [Option(None, sampler, seconds_of(sampler, data, points, None), calm)]
    samplers = [sampler]
    if center is not None and sampler.on is not None and isinstance(sampler.estimator, minibatch):
        samplers.append(sampler.on(control_variate(sampler.potential, data, center)))
    for each in samplers:
        noisy = dataclasses.replace(tuner, estimator=each.estimator)
        allowed = float(noisy.init(points, {}).factor)
        large = min(max(8 * first, _LARGE_BATCH), data.num_data)
        few, many = (seconds_of(each, data, points, size) for size in (first, large))
        # Chance in two short times must not make large batches cheap: all data bound the slope.
        whole_slope = (found[0].seconds - few) / max(1, data.num_data - first)
        slope = max(0.0, whole_slope, (many - few) / max(1, large - first))
        size = first
        while size == first or 2 * size <= data.num_data:
            seconds = few + slope * (size - first)
            factor = min(calm, allowed * size / first)
            found.append(Option(size, each, seconds, factor))
            size *= 2
    return found


def choose(found: list[Option], asked: bool) -> Option:
    """The worthiest option, by the rule; the first is all data and the second what was asked for.

    Args:
        found: the options.
        asked: whether the second was asked for; else the first is what is kept.
    """
    best = max(found, key=lambda each: each.worth)
    kept, margin = (found[1], _KEPT) if asked else (found[0], _ALL_DATA_KEPT)
    return best if best.worth >= margin * kept.worth else kept


def told(found: list[Option], chosen: Option, asked: bool) -> str:
    """The choice and what it rests on, in words."""
    other = found[1] if asked else found[0]
    if chosen is other and asked:
        best = max(found, key=lambda each: each.worth)
        why = f"nothing is worth {_KEPT:g} times as much; {best.words} would be worth"
        ratio = best.worth / chosen.worth
    elif chosen is other:
        best = max(found[1:], key=lambda each: each.worth)
        why, ratio = f"{best.words} would be worth", best.worth / chosen.worth
    else:
        why, ratio = f"worth more than {other.words},", chosen.worth / other.worth
    return (
        f"{chosen.words[0].upper()}{chosen.words[1:]}, by a pilot: {why} {ratio:.3g} times as much "
        f"(a step of all chains takes {1e3 * found[0].seconds:.3g} ms on all data, "
        f"{1e3 * found[1].seconds:.3g} ms on {found[1].batch_size}, whose noise allows "
        f"{_percent(found[1].factor / found[0].factor)} of the motion of all data)."
    )


def _percent(share: float) -> str:
    return f"{share:.2g}" if not math.isfinite(share) else f"{100 * share:.2g} %"


class Taken(NamedTuple):
    """How a run takes the data.

    Attributes:
        what: the potential as it was given, for all data; else a sampler.
        batch_size: B; None for all data.
        start: where chains begin.
        reason: in words.
    """

    what: ModelPotential | Sampler
    batch_size: int | None
    start: Start
    reason: str


def taken(
    what: ModelPotential | Sampler, start: Start, data: Data, batch_size: int | None
) -> Taken | None:
    """How a run takes the data, by a pilot; None where there is nothing to choose.

    That is without data, for a sampler on all data, for one without a bound on its noise, for data
    that come in batches of their own, and for a potential with fewer than 5000 data or one that
    takes them all at every step.

    Args:
        what: a potential, or a sampler.
        start: where chains begin.
        data: of the potential.
        batch_size: B that was asked for.
    """
    few = batch_size is None and (
        isinstance(what, Sampler) or data.num_data < FEWEST_DATA or what.evaluation.takes_all_data
    )
    if few or not data.num_data or not data.own_batches:
        return None
    asked = batch_size is not None
    size = FIRST_BATCH if batch_size is None else batch_size
    sampler = what if isinstance(what, Sampler) else sghmc(what, gradient_noise="online")
    tuner = bounded_for(sampler, start.metric, data, size)
    if tuner is None or size < 2 or size > data.num_data:
        return None
    if start.metric is None:
        start = start._replace(points=settled(tuner, start.points))
    center = start.best if start.metric is not None else None
    found = options(sampler, tuner, data, start.points, center)
    chosen = choose(found, asked)
    reason = told(found, chosen, asked)
    if chosen.batch_size is None and not isinstance(what, Sampler):
        return Taken(what, None, start, reason)
    return Taken(chosen.sampler, chosen.batch_size, start, reason)


def settled(tuner: bounded_heat, points: Tensor) -> Tensor:
    """Where 100 steps on all the data lead, so that noise is looked at where draws will lie."""
    sampler = sghmc(tuner.estimator.potential)
    law = dataclasses.replace(tuner, batch_size=None, compensated=False, first_probes=4)
    law = dataclasses.replace(law, dynamics="momentum")
    streams = ParticleStreams(tuner.seed, "settling", device=points.device)
    state = sampler.init(points, streams)
    tuned = law.init(points, {})
    batch = as_data(tuner.data, tuner.estimator.potential).whole()
    for k in range(_SETTLING):
        controls = {"temperature": points.new_ones(()), **law.controls(tuned)}
        state, info = sampler.step(state, batch, sampler.draw_noise(state, streams), controls)
        progress = Progress(k + 1, 2 * _SETTLING, 2 * _SETTLING)
        tuned = law.update(tuned, state.position, info, progress, Here())
    sound = torch.isfinite(state.position).all(-1, keepdim=True)
    return torch.where(sound, state.position, points)
