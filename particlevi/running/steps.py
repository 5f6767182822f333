"""One step at a time, and what is told of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from particlevi.data import BatchSource
from particlevi.running.controls import ControlRoom
from particlevi.streams import ParticleStreams
from particlevi.typing import Controls, Sampler, SamplerState

__all__ = ["Block", "Mover", "SingleSteps", "told"]


class Block(NamedTuple):
    """K steps.

    Attributes:
        steps: K.
        state: after the last.
        controls: of the last.
        potentials: watched, ``[K, P]``.
        energy_errors: ``[K, P]``, if the method has them.
        before: positions ``[P, D]`` before the last step, if they are known.
        info_of: of step k, counted from 0, what it reported.
        state_after: of step k, the state after it; of all but the last only if the mover tells
            states, and only until it advances.
    """

    steps: int
    state: SamplerState
    controls: Controls
    potentials: Tensor
    energy_errors: Tensor | None
    before: Tensor | None
    info_of: Callable[[int], Any]
    state_after: Callable[[int], SamplerState]

    @property
    def info(self) -> Any:
        """What the last step reported."""
        return self.info_of(self.steps - 1)


def told(sampler: Sampler, info: Any, controls: Controls) -> tuple[Any, ...]:
    """Of a step: info, the potential that is watched ``[P]``, and any error of the energy."""
    watched = (info, sampler.watched(info, controls))
    return watched if sampler.energy_error is None else (*watched, sampler.energy_error(info))


class Mover(Protocol):
    """Makes steps.

    Attributes:
        tells_states: whether a block tells the states after all its steps.
    """

    tells_states: bool

    def advance(self, state: SamplerState, step: int, most: int) -> Block:
        """Go on from ``step``, counted from 0, for 1 to ``most`` steps."""
        ...


class SingleSteps:
    """Blocks of one step, so that each ends in the only state there is to tell.

    Args:
        sampler: that runs.
        move: its step, compiled or not.
        source: of the batches.
        noise, batches: the streams of the run.
        control_room: of the run.
    """

    def __init__(
        self,
        sampler: Sampler,
        move: Callable[..., Any],
        source: BatchSource,
        noise: ParticleStreams,
        batches: ParticleStreams,
        control_room: ControlRoom,
    ):
        self.sampler = sampler
        self.move = move
        self.source = source
        self.noise = noise
        self.batches = batches
        self.control_room = control_room
        self.tells_states: bool = False

    def advance(self, state: SamplerState, step: int, most: int) -> Block:
        """One step."""
        batch = self.source.next(self.batches)
        noise = self.sampler.draw_noise(state, self.noise)
        controls = self.control_room.at(step, state.position)
        before = state.position
        state, info = self.move(state, batch, noise, controls)
        _, potential, *error = told(self.sampler, info, controls)
        errors = error[0].unsqueeze(0) if error else None
        return Block(
            1,
            state,
            controls,
            potential.unsqueeze(0),
            errors,
            before,
            lambda k: info,
            lambda k: state,
        )
