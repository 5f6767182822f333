"""What looks at a run while it goes on, and may end it: functions of the user, and a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from particlevi._checks import as_list, check_positive, check_positive_int
from particlevi.data import Data
from particlevi.draws import Draws
from particlevi.typing import Controls

__all__ = [
    "Every",
    "Look",
    "Monitor",
    "Rule",
    "Target",
    "as_monitor",
    "has_grown",
    "max_seconds",
]

_GROWTH = 1.2
_FEWEST_DRAWS = 4


@dataclass(frozen=True, eq=False)
class Look:
    """A run as it stands between two steps.

    Attributes:
        step: steps done.
        num_warmup, num_steps: of the whole run.
        seconds: spent so far, on a start that was looked for too.
        num_draws: draws kept so far, those of the warm-up not counted.
        position: of all particles, ``[P, D]``.
        info: what the last step reported, a NamedTuple of ``[P]`` tensors.
        controls: of the last step.
        draws: gives the draws kept so far.
        data: of the run.
        num_draws_before: ``num_draws`` when this rule was last asked.
    """

    step: int
    num_warmup: int
    num_steps: int
    seconds: float
    num_draws: int
    position: Tensor
    info: Any
    controls: Controls
    draws: Callable[[], Draws]
    data: Data
    num_draws_before: int = 0


Rule: TypeAlias = Callable[[Look], str | bool | None]
"""Looks at a run. A reason in words, or True, ends it; None or False lets it go on.

What stands in an attribute ``seen`` of it, a dictionary of words, is shown in the progress bar.
"""


@runtime_checkable
class Target(Protocol):
    """A rule that can tell, when the run has ended otherwise, what was not reached."""

    def __call__(self, look: Look) -> str | bool | None:
        """As any rule."""
        ...

    def missed(self, look: Look) -> str | None:
        """In words what was not reached, or None."""
        ...


@dataclass(frozen=True)
class Every:
    """A rule that is asked every so many steps.

    Args:
        steps: between two times.
        rule: a function of a ``Look``.

    Raises:
        ValueError: fewer than one step.
        TypeError: a rule that cannot be called.

    Examples:
        >>> path = []
        >>> watch = Every(100, lambda look: path.append(look.step))
        >>> watch.steps
        100
    """

    steps: int
    rule: Rule

    def __post_init__(self) -> None:
        check_positive_int("steps", self.steps)
        _check_callable(self.rule)


@dataclass(frozen=True)
class max_seconds:
    """End the run when it has taken so long.

    The search for a start, the warm-up and earlier parts of a resumed run are included.

    Args:
        seconds: the budget.

    Raises:
        ValueError: no time at all.

    Examples:
        >>> import particlevi as pvi
        >>> normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 1)
        >>> draws = pvi.sample(
        ...     pvi.sgld(normal), step_size=0.1, num_particles=1, num_draws=10**6,
        ...     monitor=max_seconds(0.1), progress=False,
        ... )
        >>> draws.particles.shape[1] < 10**6
        True
    """

    seconds: float

    def __post_init__(self) -> None:
        check_positive("seconds", self.seconds)

    def __call__(self, look: Look) -> str | None:
        """The reason to end, if there is one."""
        if look.seconds < self.seconds:
            return None
        return f"max_seconds({self.seconds:g}): {look.seconds:.1f} s were spent"


@dataclass(frozen=True)
class Monitor:
    """What looks at a run while it goes on.

    Args:
        rules: functions of a ``Look``, each asked every ``every`` steps unless it is an ``Every``;
            one that gives a reason in words, or True, ends the run.
        every: steps between looks at chains that diverge, at the progress and at the rules.

    Raises:
        ValueError: ``every`` below 1.
        TypeError: a rule that cannot be called.

    Examples:
        >>> Monitor([max_seconds(60), lambda look: look.step > 500], every=200).every
        200
    """

    rules: Sequence[Rule | Every] = ()
    every: int = 100
    timed: tuple[Every, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_positive_int("every", self.every)
        as_list("rules", self.rules, "a list of functions of a Look")
        timed = tuple(r if isinstance(r, Every) else Every(self.every, r) for r in self.rules)
        object.__setattr__(self, "timed", timed)

    @property
    def targets(self) -> tuple[Target, ...]:
        """Those of the rules that are targets."""
        return tuple(timed.rule for timed in self.timed if isinstance(timed.rule, Target))

    @property
    def periods(self) -> tuple[int, ...]:
        """Steps between looks, of each kind of look."""
        return (self.every, *(rule.steps for rule in self.timed))


def as_monitor(value: Monitor | Rule | Every | Sequence[Rule | Every] | None) -> Monitor:
    """A monitor itself, or one with the rules given.

    Raises:
        TypeError: something else.
    """
    if isinstance(value, Monitor):
        return value
    if value is None:
        return Monitor()
    if isinstance(value, Every) or callable(value):
        return Monitor((value,))
    rules = as_list("monitor", value, "a Monitor, a function of a Look, or a list of them")
    return Monitor(tuple(rules))


def _check_callable(rule: Any) -> None:
    if not callable(rule):
        raise TypeError(
            "A rule of a monitor is a function of a Look, such as pvi.running.max_seconds(60), "
            f"got {type(rule).__name__}."
        )


def has_grown(before: int, now: int) -> bool:
    """Whether the number of draws has passed a power of 1.2 in between."""

    def power(count: int) -> int:
        return math.floor(math.log(count, _GROWTH))

    if now < _FEWEST_DRAWS:
        return False
    return before < _FEWEST_DRAWS or power(now) > power(before)
