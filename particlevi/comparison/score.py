"""A score: a column of the comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from particlevi._checks import check_choice, check_flag, check_function, check_is
from particlevi.comparison.estimates import Estimate
from particlevi.comparison.subject import Subject

__all__ = ["Score"]


@dataclass(frozen=True)
class Score:
    """A column of the comparison.

    Attributes:
        name: its head.
        meaning: one line, with units.
        compute: ``(subject, reference) -> Estimate``, with its standard error, or None where it
            does not apply. In the reference's row the two are one object.
        best: which end is the better one, for the marks in a table; None if neither is.
        rank: whether the column is left out where no set's value exceeds two of its errors.

    Examples:
        >>> from particlevi.comparison import Estimate, Score
        >>> spread = Score(
        ...     "spread",
        ...     "mean standard deviation of the parameters",
        ...     lambda subject, reference: Estimate(float(subject.parameters.std(0).mean())),
        ... )
    """

    name: str
    meaning: str
    compute: Callable[[Subject, Subject], Estimate | None]
    rank: bool = False
    best: Literal["lowest", "highest"] | None = None

    def __post_init__(self) -> None:
        check_is("name", self.name, str, "text, the head of the column")
        check_is("meaning", self.meaning, str, "text, one line")
        check_function("compute", self.compute, "a subject and the reference", takes=2)
        check_flag("rank", self.rank)
        if self.best is not None:
            check_choice("best", self.best, ["lowest", "highest"])
