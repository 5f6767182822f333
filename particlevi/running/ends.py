"""What ends a run before its number of draws does, as the caller said it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from particlevi._checks import check_positive
from particlevi.running.converged import converged
from particlevi.running.monitor import Every, Monitor, Rule, as_monitor, max_seconds

__all__ = ["Ends", "Watcher"]

Watcher: TypeAlias = Monitor | Rule | Every | Sequence[Rule | Every]
"""A monitor, or the rules of one."""


@dataclass(frozen=True, eq=False)
class Ends:
    """Targets and a budget.

    Args:
        ess, rhat: of ``converged``; of one that is absent the default counts if the other is given.
        seconds: the budget.

    Raises:
        ValueError: one that is not positive.
    """

    ess: float | None
    rhat: float | None
    seconds: float | None

    def __post_init__(self) -> None:
        named = {"target_ess": self.ess, "target_rhat": self.rhat, "max_seconds": self.seconds}
        for name, value in named.items():
            if value is not None:
                check_positive(name, value)

    @property
    def has_target(self) -> bool:
        """Whether there is one."""
        return self.ess is not None or self.rhat is not None

    def added_to(self, given: Watcher | None, until_converged: bool) -> Monitor:
        """The monitor given, which also ends a run where these say so.

        Args:
            given: the caller's.
            until_converged: a run that nobody gave an end goes on until it has converged.

        Raises:
            ValueError: a target out of its range, or targets here and in the monitor.
        """
        watcher = as_monitor(given)
        rules = list(watcher.rules)
        if self.has_target or (until_converged and not watcher.targets):
            if watcher.targets:
                raise ValueError(
                    f"The run has two targets, target_ess={self.ess} or target_rhat={self.rhat} "
                    f"and {watcher.targets[0]!r} in monitor, but it ends at one: leave one out."
                )
            target = converged()
            if self.ess is not None:
                target = replace(target, ess=self.ess)
            if self.rhat is not None:
                target = replace(target, rhat=self.rhat)
            rules.append(target)
        if self.seconds is not None:
            rules.append(max_seconds(self.seconds))
        return replace(watcher, rules=tuple(rules))

    def check(self, interacting: bool) -> None:
        """Refuse targets of chains where there are none.

        Raises:
            ValueError: a target for particles that interact.
        """
        if interacting and self.has_target:
            raise ValueError(
                "target_ess and target_rhat are of Markov chains, but particles that interact are "
                "one set of draws: give num_draws or max_seconds, and compare predictions."
            )
