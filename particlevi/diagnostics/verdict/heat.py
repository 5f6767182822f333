"""Temperatures: is the law as wide as it should be, and if not, why?"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from particlevi.data import DataLike
from particlevi.diagnostics import temperatures
from particlevi.diagnostics.temperatures import Temperature, chi_square_interval
from particlevi.diagnostics.verdict.findings import Verdict
from particlevi.drawset import DrawSet

__all__ = ["Expected", "check_heat", "is_off"]

# A temperature is off if it is so by more than both of these.
TEMPERATURE_Z = 4.0
TEMPERATURE_SHARE = 0.03


class Expected(NamedTuple):
    """Where a temperature lies if all is well: between ``low`` and ``high``."""

    low: float
    high: float


def is_off(measured: Temperature, expected: Expected, target: float) -> float:
    """By how much a temperature is off, in units of ``target``; 0 if it is not.

    It is off by more than 3 % and 4 standard errors; or a chain's median is beyond the 99 %
    interval of a single draw, whatever the error.
    """
    beyond = max(measured.mean - expected.high, 0.0) - max(expected.low - measured.mean, 0.0)
    if abs(beyond) > max(TEMPERATURE_SHARE * target, TEMPERATURE_Z * measured.mcse):
        return beyond / target
    if beyond <= 0:
        return 0.0
    _, high = chi_square_interval(expected.high, measured.size)
    return beyond / target if measured.hottest > high else 0.0


def check_heat(draws: DrawSet, data: DataLike, thin: int, verdict: Verdict) -> None:
    """Kinetic temperature, and the configurational one where the gradient can be taken."""
    target = 1.0
    if "temperature" in draws.stats:
        target = float(draws.stats["temperature"].mean())
    if target <= 0:
        return
    squares: Tensor | None = None
    model = draws.potential
    if model is not None and draws.complete and (data is not None or model.num_data is None):
        found = temperatures.slopes(draws, data, thin=thin)
        set_to = temperatures.temperature_set(draws)[..., ::thin]
        measured = temperatures.of_slopes(draws, found, set_to)["all"]
        squares = found.squares
        verdict.note("configurational temperature", measured.mean, measured.mcse)
        if math.isnan(measured.mean):
            verdict.add(
                "not stationary",
                "wrong",
                "Not stationary: the gradient of the potential is not finite at some draws.",
                "Start from other points (initial=), or in coordinates where it does not overflow.",
            )
        _judge(draws, "configurational", measured, Expected(target, target), target, verdict)
    if "kinetic_temperature" in draws.stats and draws.facts.kinetic != "held":
        _check_kinetic(draws, squares, target, verdict)


def _check_kinetic(draws: DrawSet, squares: Tensor | None, target: float, verdict: Verdict) -> None:
    every = temperatures.kinetic(draws)
    verdict.note("kinetic temperature", every["kinetic"].mean, every["kinetic"].mcse)
    where = {"kinetic": slice(None)}
    start = 0
    for name, shape in draws.shapes.items():
        where[f"kinetic[{name}]"] = slice(start, start + math.prod(shape))
        start += math.prod(shape)
    expected = {name: _expected(draws, squares, where[name], target) for name in every}
    off = {name: is_off(each, expected[name], target) for name, each in every.items()}
    off = {name: amount for name, amount in off.items() if amount}
    if off:
        # In total if that is off, or else in the tensor that is off most.
        worst = max(off, key=lambda name: (name == "kinetic", abs(off[name])))
        tensor = "" if worst == "kinetic" else f" of {worst[len('kinetic[') : -1]}"
        _judge(draws, "kinetic", every[worst], expected[worst], target, verdict, tensor)


def _expected(draws: DrawSet, squares: Tensor | None, where: slice, target: float) -> Expected:
    """The kinetic temperature that the sampler's own law has, with exact gradients."""
    law, step, below = draws.facts.kinetic, draws.stats.get("step_size"), Expected(0.0, target)
    if law == "above":
        return Expected(target, math.inf)
    if law == "leapfrog":
        if squares is None or step is None:
            return below
        square = squares[where].mean()
        lower = float(step.double().square().mean() * square / 4)
        # Of the curvature's variation the formula knows the first order only.
        known = 1.1 * lower < target
        return Expected(target - 1.1 * lower, target - 0.9 * lower) if known else below
    if law == "below":
        if step is None or "gradient_noise" not in draws.stats:
            return below
        noise = draws.stats["gradient_noise"].double() * step.double().square()
        return Expected(target - float(noise.mean()), target)
    return Expected(target, target)


def _judge(
    draws: DrawSet,
    kind: str,
    measured: Temperature,
    expected: Expected,
    target: float,
    verdict: Verdict,
    where: str = "",
) -> None:
    off = is_off(measured, expected, target)
    if not off:
        return
    was_set = "temperature" in draws.stats
    wanted = f"set to {target:g}" if was_set else "that of the posterior is 1"
    size = f"{measured.mean:.3g} +- {measured.mcse:.2g}, {wanted}"
    if expected.high < target:
        size += f", where {expected.high:.3g} is the sampler's law at this step"
    what = f"the {kind} temperature{where} is {size}"
    numbers = {"mean": measured.mean, "mcse": measured.mcse, "target": target, "off": off}
    if measured.mean <= 0:
        verdict.add(
            "not stationary",
            "wrong",
            f"Not stationary: {what}, and it cannot be negative.",
            "Raise num_warmup, or start from a trained point.",
            **numbers,
        )
    elif off > 0:
        problem = f"Too hot by {off:.0%}: {what}. {_cause(draws)} widens the draws."
        verdict.add("too hot", "wrong", problem, _cooling(draws, off), **numbers)
    elif not was_set:
        problem = (
            f"Too cold by {-off:.0%}: {what}. Nothing set the temperature of these draws: "
            "iterates of an optimiser that ends near a minimum are as cold as this."
        )
        advice = "Take a sampler, or a rate and a batch size by pvi.sgdvi.plan."
        verdict.add("too cold", "wrong", problem, advice, **numbers)
    else:
        problem = (
            f"Too cold by {-off:.0%}: {what}. The step is large for the curvature, or chains have "
            "not yet spread out."
        )
        verdict.add(
            "too cold", "wrong", problem, "Halve the step size and raise num_warmup.", **numbers
        )


def _cause(draws: DrawSet) -> str:
    if draws.minibatch:
        return "Minibatch noise, or the bias of a large step,"
    return "The bias of a large step, or noise of the gradient,"


def _cooling(draws: DrawSet, off: float) -> str:
    """How much less noise, or how much shorter a step, it takes to come within 3 %."""
    times = off / TEMPERATURE_SHARE
    still = "Chains that are not yet stationary look hot too."
    if not draws.minibatch:
        return (
            f"The heat falls with the step size or its square: try a step about {times**0.5:.2g} "
            f"times smaller, then again. {still}"
        )
    return (
        f"The heat falls as the noise: batches about {times:.2g} times as large, "
        f'pvi.control_variate, gradient_noise="online" or pvi.sgnht. A step {times:.2g} times '
        f"smaller would do too, at as many times the number of steps. {still}"
    )
