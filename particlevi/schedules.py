"""How a scalar changes over steps: functions ``int -> float``, the step counted from 0.

Each is a frozen dataclass, so that a checkpoint can write it down and read it back.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from particlevi._checks import (
    check_fraction,
    check_function,
    check_is,
    check_nonnegative,
    check_positive,
    check_positive_int,
)
from particlevi.typing import JSON, Schedule

__all__ = [
    "as_schedule",
    "constant",
    "cosine",
    "cyclical",
    "cyclical_ramp",
    "describe",
    "linear_ramp",
    "polynomial",
    "restore",
    "tanh_ramp",
]


def _plain(schedule: Any) -> None:
    """Make numbers of numpy and integers the numbers that the annotations name."""
    for each in fields(schedule):
        kind = int if each.type == "int" else float
        object.__setattr__(schedule, each.name, kind(getattr(schedule, each.name)))


@dataclass(frozen=True)
class constant:
    """``value`` at every step.

    >>> constant(0.1)(1000)
    0.1
    """

    value: float

    def __post_init__(self) -> None:
        check_nonnegative("value", self.value)
        _plain(self)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return self.value


@dataclass(frozen=True)
class polynomial:
    """``initial * (1 + step / delay) ** -power``.

    With ``power`` in (0.5, 1] and no minibatch bias left in the limit, SGLD with this schedule
    converges to the posterior.

    Source: Welling and Teh, "Bayesian learning via stochastic gradient Langevin dynamics", 2011,
    with ``a (b + t)^-power`` and ``initial = a b^-power``, ``delay = b``.

    >>> polynomial(0.1, delay=10, power=1.0)(10)
    0.05
    """

    initial: float
    delay: float = 1000.0
    power: float = 0.55

    def __post_init__(self) -> None:
        check_positive("initial", self.initial)
        check_positive("delay", self.delay)
        check_nonnegative("power", self.power)
        _plain(self)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return float(self.initial * (1.0 + step / self.delay) ** -self.power)


@dataclass(frozen=True)
class cosine:
    """From ``initial`` to ``final`` over ``num_steps`` by half a cosine wave, then ``final``.

    >>> schedule = cosine(1.0, num_steps=100)
    >>> schedule(0), round(schedule(50), 12), schedule(100), schedule(500)
    (1.0, 0.5, 0.0, 0.0)
    """

    initial: float
    num_steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        check_positive("initial", self.initial)
        check_positive_int("num_steps", self.num_steps)
        check_nonnegative("final", self.final)
        _plain(self)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        if step >= self.num_steps:
            return self.final
        wave = 0.5 * (1.0 + math.cos(math.pi * step / self.num_steps))
        return self.final + (self.initial - self.final) * wave


@dataclass(frozen=True)
class cyclical:
    """``peak/2 (cos(pi r) + 1)`` with ``r`` the fraction of the current cycle that is done.

    The first ``exploration`` of each cycle is for moving: ``keep`` is False there and the loop
    keeps no draws, and the temperature of ``temperature()`` is zero.

    Source: Zhang, Li, Zhang, Chen and Wilson, "Cyclical stochastic gradient MCMC for Bayesian
    deep learning", 2020.

    >>> schedule = cyclical(0.1, period=100, exploration=0.8)
    >>> schedule(0), round(schedule(50), 12), schedule(100)
    (0.1, 0.05, 0.1)
    >>> schedule.keep(79), schedule.keep(80)
    (False, True)
    """

    peak: float
    period: int
    exploration: float = 0.0

    def __post_init__(self) -> None:
        check_positive("peak", self.peak)
        check_positive_int("period", self.period)
        check_fraction("exploration", self.exploration)
        _plain(self)
        if not self.keep(self.period - 1):
            raise ValueError(
                f"exploration={self.exploration} leaves no step of a period of {self.period} for "
                "sampling: lower it, or lengthen the period."
            )

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return 0.5 * self.peak * (math.cos(math.pi * (step % self.period) / self.period) + 1.0)

    def keep(self, step: int) -> bool:
        """Whether ``step`` is in the sampling part of its cycle."""
        return (step % self.period) / self.period >= self.exploration

    def temperature(self, value: float = 1.0) -> Schedule:
        """The temperature to go with it: 0 while exploring, ``value`` while sampling."""
        check_nonnegative("temperature", value)
        return _CyclicalTemperature(float(value), self.period, self.exploration)


@dataclass(frozen=True)
class linear_ramp:
    """``step / num_steps``, then 1: a weight that lets a term in.

    >>> schedule = linear_ramp(num_steps=100)
    >>> schedule(0), schedule(50), schedule(100), schedule(500)
    (0.0, 0.5, 1.0, 1.0)
    """

    num_steps: int

    def __post_init__(self) -> None:
        check_positive_int("num_steps", self.num_steps)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return min(1.0, step / self.num_steps)


@dataclass(frozen=True)
class tanh_ramp:
    """``tanh((1.3 step / num_steps)^power)``, then 1.

    Source: D'Angelo and Fortuin, "Annealed Stein variational gradient descent", 2021.

    >>> schedule = tanh_ramp(num_steps=100)
    >>> round(schedule(77), 4), schedule(100), schedule(500)
    (0.7658, 1.0, 1.0)
    """

    num_steps: int
    power: float = 10.0

    def __post_init__(self) -> None:
        check_positive_int("num_steps", self.num_steps)
        check_positive("power", self.power)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        if step >= self.num_steps:
            return 1.0
        return math.tanh((1.3 * step / self.num_steps) ** self.power)


@dataclass(frozen=True)
class cyclical_ramp:
    """``(step mod period / period)^power`` with ``period = num_steps / num_cycles``, then 1.

    Source: D'Angelo and Fortuin, "Annealed Stein variational gradient descent", 2021.

    >>> schedule = cyclical_ramp(num_steps=100, num_cycles=2, power=1.0)
    >>> schedule(25), schedule(50), schedule(75), schedule(100), schedule(500)
    (0.5, 0.0, 0.5, 1.0, 1.0)
    """

    num_steps: int
    num_cycles: int = 5
    power: float = 10.0

    def __post_init__(self) -> None:
        check_positive_int("num_steps", self.num_steps)
        check_positive_int("num_cycles", self.num_cycles)
        check_positive("power", self.power)

    def __call__(self, step: int) -> float:
        """The value at a step."""
        if step >= self.num_steps:
            return 1.0
        part: float = (step * self.num_cycles / self.num_steps % 1.0) ** self.power
        return part


@dataclass(frozen=True)
class _CyclicalTemperature:
    value: float
    period: int
    exploration: float

    def __call__(self, step: int) -> float:
        """The value at a step."""
        return self.value if self.keep(step) else 0.0

    def keep(self, step: int) -> bool:
        """Whether ``step`` is in the sampling part of its cycle."""
        return (step % self.period) / self.period >= self.exploration


_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        constant,
        polynomial,
        cosine,
        cyclical,
        linear_ramp,
        tanh_ramp,
        cyclical_ramp,
        _CyclicalTemperature,
    )
}


def as_schedule(name: str, value: float | Schedule) -> Schedule:
    """``value`` itself if it is callable, else a constant; only a step size must not be 0."""
    check_is("name", name, str, "text, the name of what changes")
    if callable(value):
        if hasattr(value, "num_params"):
            raise TypeError(f"{name} must be a number or a function of the step, got a potential.")
        check_function(name, value, "the step", takes=1)
        return value
    (check_positive if name == "step_size" else check_nonnegative)(name, value)
    return constant(float(value))


def describe(schedule: Schedule) -> JSON:
    """A schedule as JSON; ``restore`` reads it back unless it is the caller's own function."""
    check_function("schedule", schedule, "the step")
    kind = type(schedule).__name__
    if kind in _KINDS:
        return {"kind": kind, **asdict(schedule)}  # type: ignore[call-overload]
    return {"kind": "custom", "name": getattr(schedule, "__name__", kind)}


def restore(description: dict[str, Any]) -> Schedule | None:
    """The schedule that ``describe`` wrote down, or None for the caller's own function."""
    check_is("description", description, dict, "what describe gives")
    values = dict(description)
    if "kind" not in values:
        raise ValueError(f"description must be what describe gives, got {description!r}.")
    kind = values.pop("kind")
    if kind not in _KINDS:
        return None
    names = {each.name for each in fields(_KINDS[kind])}
    if set(values) - names:
        raise ValueError(f"A {kind} schedule has {sorted(names)}, got {sorted(values)}.")
    return cast("Schedule", _KINDS[kind](**values))
