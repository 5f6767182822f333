"""What the store of a run asks of the other processes of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

__all__ = ["Alone", "Team"]


class Team(Protocol):
    """The processes of a run. All of them call the same members in the same order."""

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        ...

    @property
    def number(self) -> int:
        """Of this process."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this is the first process, which shows, writes and has the draws at the end."""
        ...

    @property
    def spread(self) -> bool:
        """Whether other processes hold other particles."""
        ...

    @property
    def writes(self) -> bool:
        """Whether the draws of the particles here are written here: one process does of each."""
        ...

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors ``[P, ...]`` of all particles, from those of each process."""
        ...

    def said(self, value: Any) -> Any:
        """What the first process says."""
        ...

    def together(self, act: Callable[[], object]) -> None:
        """Do something in every process; the first error of any is raised in all."""
        ...


class Alone:
    """A ``Team`` of one process."""

    alone: bool = True
    number: int = 0
    leads: bool = True
    spread: bool = False
    writes: bool = True

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors."""
        return list(tensors)

    def said(self, value: Any) -> Any:
        """The value."""
        return value

    def together(self, act: Callable[[], object]) -> None:
        """Do it."""
        act()
