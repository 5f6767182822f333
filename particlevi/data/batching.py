"""How minibatches are drawn, as an argument of ``sample``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from particlevi._checks import check_choice

__all__ = ["Batching", "Law", "as_batching"]

Law: TypeAlias = Literal["replacement", "subset", "epoch"]
"""``"replacement"``: independent indices. ``"subset"``: a fresh random subset per step.
``"epoch"``: random order, reshuffled every epoch."""


@dataclass(frozen=True)
class Batching:
    """How minibatches are drawn.

    Args:
        law: ``"replacement"`` (independent indices), ``"subset"`` (a fresh random subset per step)
            or ``"epoch"`` (random order, reshuffled every epoch).
        shared: one minibatch for all particles. By default each chain draws its own, since sharing
            correlates chains and flatters R-hat and pooled ESS; interacting particles share.

    Raises:
        ValueError: an unknown law, or ``shared`` that is neither a truth value nor None.

    Examples:
        >>> Batching("epoch", shared=True)
        Batching(law='epoch', shared=True)
    """

    law: Law = "replacement"
    shared: bool | None = None

    def __post_init__(self) -> None:
        check_choice("batching", self.law, get_args(Law))
        check_choice("shared", self.shared, [None, True, False])


def as_batching(value: Law | Batching) -> Batching:
    """The options themselves, or those of a law's name."""
    return value if isinstance(value, Batching) else Batching(value)
