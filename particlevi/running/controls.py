"""The controls of each step: what schedules say, and in their place what a tuner chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_nonnegative
from particlevi.samplers.precision import check_step_size
from particlevi.schedules import constant
from particlevi.typing import (
    JSON,
    Controls,
    Progress,
    Proposals,
    ProposalTuner,
    Schedule,
    Tuner,
    World,
)

__all__ = ["ControlRoom", "fewest_proposing"]

_METRIC = ("scale", "factor", "basis", "spread")


class ControlRoom:
    """Schedules and a tuner, as the controls of the next step.

    Args:
        schedules: scalars by name; what the tuner chooses takes the place of those it names.
        tuner: None if there is none.
    """

    def __init__(self, schedules: Mapping[str, Schedule], tuner: Tuner | None):
        self.schedules: dict[str, Schedule] = dict(schedules)
        self.tuner = tuner
        self.looks_at_proposals: bool = fewest_proposing(tuner) > 0
        self.tuner_state: Any = None
        self._scheduled: dict[str, float] = {}
        self._first: int = 0
        self._since: dict[str, list[float]] = {}
        self._controls: dict[str, Tensor] = {}
        self._chosen: dict[str, Tensor] = {}
        self._rows: dict[str, Tensor] = {}
        self._constants: dict[str, float | None] = {}
        self._made: dict[str, float] = {}

    def begin(self, position: Tensor) -> None:
        """The tuner's first state, at the starting points ``[P, D]``.

        Raises:
            ValueError: neither a schedule nor the tuner gives a step size.
        """
        if self.tuner is not None:
            first = self._from_schedules(0, position)
            self.tuner_state = self.tuner.init(position, first)
            self._choose()
        if "step_size" not in {**self.schedules, **self._chosen}:
            raise ValueError(
                "The run has no step size: give step_size, or a tuner that chooses one."
            )

    def restore(self, tuner_state: Any) -> None:
        """Go on with the tuner's state."""
        self.tuner_state = tuner_state
        self._choose()

    def at(self, step: int, like: Tensor) -> Controls:
        """The controls of a step, counted from 0, in the dtype and place of ``like``."""
        self._from_schedules(step, like)
        self._controls.update(self._chosen)
        return self._controls

    def of_block(self, step: int, steps: int, size: int, like: Tensor) -> dict[str, Tensor]:
        """The scheduled controls ``[size]`` of steps from ``step`` on; the first rows count."""
        rows = {}
        self._first = step
        for name, schedule in self.schedules.items():
            if type(schedule) is constant:
                values = [self._value(name, schedule, step, like)]
            else:
                values = [self._value(name, schedule, step + k, like) for k in range(steps)]
            self._since[name] = values
            if name in self._chosen:
                continue
            if len(values) > 1 or self._constants.get(name) != values[0]:
                padded = values + values[-1:] * (size - len(values))
                self._rows[name] = torch.tensor(padded, dtype=like.dtype, device=like.device)
                self._constants[name] = values[0] if type(schedule) is constant else None
            rows[name] = self._rows[name]
        return rows

    @property
    def chosen(self) -> Controls:
        """What the tuner chose."""
        return self._chosen

    def scalars(self, step: int) -> Mapping[str, float]:
        """The 0-d controls of a step of those last asked for, as numbers, for a draw's record."""
        k = step - self._first
        scheduled = {name: each[min(k, len(each) - 1)] for name, each in self._since.items()}
        chosen = {k: float(value) for k, value in self._chosen.items() if not value.ndim}
        return {**scheduled, **chosen}

    def consider(
        self, proposals: Callable[[], Proposals], progress: Progress, world: World
    ) -> None:
        """Let a tuner that looks at proposals learn from those of a step of the warm-up."""
        if self.looks_at_proposals:
            assert isinstance(self.tuner, ProposalTuner)
            self.tuner_state = self.tuner.consider(self.tuner_state, proposals(), progress, world)

    def update(self, position: Tensor, info: Any, progress: Progress, world: World) -> bool:
        """Let the tuner learn from a step of the warm-up; whether it changed the metric."""
        if self.tuner is None:
            return False
        self.tuner_state = self.tuner.update(self.tuner_state, position, info, progress, world)
        before = self._chosen
        self._choose()
        return any(_differ(before.get(name), self._chosen.get(name)) for name in _METRIC)

    def metric(self) -> Tensor | None:
        """Scales ``[D]`` or a factor ``[D, D]`` of the coordinates in which the method moves."""
        return next((self._chosen[name] for name in _METRIC[:2] if name in self._chosen), None)

    def report(self) -> Mapping[str, JSON] | None:
        """What the tuner chose and why, for the record; None without one."""
        if self.tuner is None:
            return None
        return {"tuner": self.tuner.name, **self.tuner.report(self.tuner_state)}

    def _choose(self) -> None:
        if self.tuner is not None:
            self._chosen = dict(self.tuner.controls(self.tuner_state))

    def _from_schedules(self, step: int, like: Tensor) -> Controls:
        self._first = step
        for name, schedule in self.schedules.items():
            value = self._value(name, schedule, step, like)
            self._since[name] = [value]
            if self._made.get(name) != value:
                self._made[name] = value
                self._controls[name] = torch.tensor(value, dtype=like.dtype, device=like.device)
        return self._controls

    def _value(self, name: str, schedule: Schedule, step: int, like: Tensor) -> float:
        """Of a schedule at a step, checked."""
        try:
            value = schedule(step)
        except Exception as error:
            raise ValueError(
                f"The schedule of {name} failed at step {step}: {type(error).__name__}: {error}"
            ) from error
        if type(value) is not float or self._scheduled.get(name) != value:
            check_nonnegative(f"the schedule of {name} at step {step}", value)
            if name == "step_size":
                check_step_size(value, like.dtype)
            self._scheduled[name] = value
        return value


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is not other
    return one is not other and not torch.equal(one, other)


def fewest_proposing(tuner: Tuner | None) -> int:
    """Chains that it takes for a tuner to learn from proposals; 0 if it does not look at them."""
    return tuner.fewest_chains if isinstance(tuner, ProposalTuner) else 0
