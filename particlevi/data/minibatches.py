"""How minibatches are drawn, and who shares them, as an argument of ``sample``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from particlevi._checks import check_choice
from particlevi.data.batches import Batching

__all__ = ["Minibatches", "as_minibatches"]


@dataclass(frozen=True)
class Minibatches:
    """How minibatches are drawn, and whether particles share them.

    Args:
        batching: ``"replacement"`` (independent indices), ``"subset"`` (a fresh random subset per
            step) or ``"epoch"`` (random order, reshuffled every epoch).
        shared: one minibatch for all particles. By default each chain draws its own, since sharing
            correlates chains and flatters R-hat and pooled ESS; interacting particles share.

    Raises:
        ValueError: an unknown way to draw, or ``shared`` that is neither a truth value nor None.

    Examples:
        >>> Minibatches("epoch", shared=True)
        Minibatches(batching='epoch', shared=True)
    """

    batching: Batching = "replacement"
    shared: bool | None = None

    def __post_init__(self) -> None:
        check_choice("batching", self.batching, get_args(Batching))
        check_choice("shared", self.shared, [None, True, False])


def as_minibatches(value: Batching | Minibatches) -> Minibatches:
    """The options themselves, or those of a way to draw."""
    return value if isinstance(value, Minibatches) else Minibatches(value)
