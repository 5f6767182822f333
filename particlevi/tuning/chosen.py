"""Tuners of an automatic run: what is found before it, and the reasons for what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from particlevi.typing import JSON, Controls, Progress, Tuner, World

__all__ = ["because", "constant"]


@dataclass(frozen=True)
class constant:
    """Controls found before the run, the same at every step.

    Args:
        chosen: controls by name.
    """

    chosen: Controls
    name: str = field(default="constant", init=False)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The scalars among them."""
        return {name: float(value) for name, value in self.chosen.items() if not value.ndim}

    def init(self, position: Tensor, controls: Controls) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def controls(self, state: Any) -> Controls:
        """Those chosen."""
        return self.chosen

    def update(
        self, state: Any, position: Tensor, info: Any, progress: Progress, world: World
    ) -> Any:
        """Nothing is learnt."""
        return state

    def report(self, state: Any) -> Mapping[str, JSON]:
        """The scalars among them."""
        return self.settings


@dataclass(frozen=True, eq=False)
class because:
    """A tuner with the reasons for which it was chosen in its report.

    Args:
        tuner: what tunes.
        reasons: in words.
        start_gradients: gradients of one particle that finding the start took.
        start_seconds: that it took.
        sampler_chosen: whether the sampler was chosen too.
        until_converged: whether the run goes on until it has converged.
    """

    tuner: Tuner
    reasons: tuple[str, ...]
    start_gradients: int
    start_seconds: float
    sampler_chosen: bool = False
    until_converged: bool = False

    @property
    def name(self) -> str:
        """That of the tuner."""
        return self.tuner.name

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Those of the tuner."""
        return self.tuner.settings

    def and_because(self, reason: str) -> because:
        """The same with one more reason."""
        return replace(self, reasons=(*self.reasons, reason))

    def init(self, position: Tensor, controls: Controls) -> Any:
        """As the tuner."""
        return self.tuner.init(position, controls)

    def controls(self, state: Any) -> Controls:
        """As the tuner."""
        return self.tuner.controls(state)

    def update(
        self, state: Any, position: Tensor, info: Any, progress: Progress, world: World
    ) -> Any:
        """As the tuner."""
        return self.tuner.update(state, position, info, progress, world)

    def report(self, state: Any) -> Mapping[str, JSON]:
        """What was chosen, why, and what the start took."""
        return {
            **self.tuner.report(state),
            "reasons": list(self.reasons),
            "start_gradients": self.start_gradients,
            "start_seconds": self.start_seconds,
        }
