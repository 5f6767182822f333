"""The world of a run: which particles are here, and what all processes agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from particlevi.draws import Draws
from particlevi.gradients.sharing import Crew
from particlevi.kernels.exchange import Exchange
from particlevi.storage.team import Alone, Team
from particlevi.tuning.here import Here
from particlevi.typing import World

__all__ = ["OneProcess", "RunWorld"]

Ask = Callable[[Callable[[], Draws]], str | None]
"""Rules of a monitor, as a function of what gives the draws."""


class RunWorld(World, Team, Protocol):
    """A ``World`` with what the loop needs beside the reductions of tuners."""

    @property
    def total(self) -> int:
        """Particles of all processes."""
        ...

    @property
    def mine(self) -> range:
        """The particles of this process."""
        ...

    @property
    def crew(self) -> Crew | None:
        """Who evaluates gradients together."""
        ...

    @property
    def exchange(self) -> Exchange | None:
        """Through whom particles that see each other do so."""
        ...

    @property
    def apart(self) -> bool:
        """Whether each process makes its steps without the others."""
        ...

    def guard(self) -> Any:
        """A context in which an error here ends the run in all processes."""
        ...

    def check_same(self, what: dict[str, Any]) -> None:
        """Refuse a run of which these are not the same in every process."""
        ...

    def agree(self, stop: bool, save: bool, now: bool) -> tuple[bool, bool]:
        """Whether to stop, which any may ask for, and to save, which the leader decides."""
        ...

    def count(self, number: int) -> int:
        """The sum of a number over the processes that hold different particles."""
        ...

    def verdict(self, ask: Ask, draws: Callable[[], Draws]) -> str | None:
        """The answer of the leader's rules, which see the draws of all."""
        ...

    def objects(self, value: Any) -> list[Any]:
        """The values of the processes that hold different particles."""
        ...

    def whole(self, draws: Draws, sharded: bool = False) -> Draws:
        """The draws of all particles for the leader, unless ``sharded``; for others, their own."""
        ...


@dataclass(frozen=True)
class OneProcess(Here, Alone):
    """A ``World`` of one process.

    Attributes:
        total: particles.
    """

    total: int = 0
    crew: Crew | None = None
    exchange: Exchange | None = None
    apart: bool = True

    @property
    def mine(self) -> range:
        """All."""
        return range(self.total)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """There is nobody to tell."""
        yield

    def check_same(self, what: dict[str, Any]) -> None:
        """There is nobody else."""

    def agree(self, stop: bool, save: bool, now: bool) -> tuple[bool, bool]:
        """As it wishes, at any time."""
        return stop, save

    def count(self, number: int) -> int:
        """The number."""
        return number

    def verdict(self, ask: Ask, draws: Callable[[], Draws]) -> str | None:
        """The answer of the rules."""
        return ask(draws)

    def objects(self, value: Any) -> list[Any]:
        """The value."""
        return [value]

    def whole(self, draws: Draws, sharded: bool = False) -> Draws:
        """The draws."""
        return draws
