"""A comparison as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from particlevi import _html
from particlevi.comparison.estimates import Estimate
from particlevi.comparison.score import Score
from particlevi.comparison.temperature_score import Spectrum
from particlevi.report import write_comparison

__all__ = ["Comparison", "Row"]


@dataclass(frozen=True)
class Row(Mapping[str, float | None]):
    """The scores of one set of draws by name: ``row["nll"]``, None where one does not apply.

    Attributes:
        name: of the set.
        estimates: the scores with their errors.
    """

    name: str
    estimates: Mapping[str, Estimate | None]

    def __getitem__(self, score: str) -> float | None:
        estimate = self.estimates[score]
        return None if estimate is None else estimate.value

    def __iter__(self) -> Iterator[str]:
        return iter(self.estimates)

    def __len__(self) -> int:
        return len(self.estimates)

    def error(self, score: str) -> float | None:
        """The standard error of a score; 0 if it is exact, None where the score does not apply."""
        estimate = self.estimates[score]
        return None if estimate is None else estimate.error


@dataclass(frozen=True, eq=False)
class Comparison:
    """One row per set of draws, one column per score.

    Attributes:
        rows: by name.
        reference: the name of the set that the others are compared with.
        scores: the columns, those left out too.
        spectrum: effective temperatures along the eigenvectors of the Hessian.
        notes: what was left out and why.
    """

    rows: dict[str, Row]
    reference: str
    scores: tuple[Score, ...]
    spectrum: Spectrum = field(default_factory=Spectrum)
    notes: tuple[str, ...] = ()

    @property
    def eigenvalues(self) -> Tensor:
        """Of the Hessian, ``[D]``."""
        return self.spectrum.eigenvalues

    @property
    def temperatures(self) -> dict[str, Tensor]:
        """Effective temperatures along its eigenvectors by name, ``[D]``."""
        return self.spectrum.temperatures

    @property
    def temperature_errors(self) -> dict[str, Tensor]:
        """Their standard errors."""
        return self.spectrum.errors

    @property
    def errors(self) -> dict[str, dict[str, float]]:
        """Standard errors of the scores that apply, by set and score."""
        return {
            name: {s: e.error for s, e in row.estimates.items() if e is not None}
            for name, row in self.rows.items()
        }

    def table(self) -> str:
        """The rows as a Markdown table, and what was left out."""
        shown = self._shown()
        lines = [["method", *(score.name for score in shown)], ["---"] * (len(shown) + 1)]
        lines += [[n, *(_cell(row, s) for s in shown)] for n, row in self.rows.items()]
        return "\n".join([_markdown(lines), *(f"\n{note}." for note in self.notes)])

    def explain(self) -> str:
        """The same with the methods side by side, and what each score means."""
        lines = [["", *self.rows, "meaning"], ["---"] * (len(self.rows) + 2)]
        for score in self._shown():
            cells = [_cell(row, score) for row in self.rows.values()]
            lines.append([score.name, *cells, score.meaning])
        return "\n".join([_markdown(lines), *(f"\n{note}." for note in self.notes)])

    def _repr_html_(self) -> str:
        shown = self._shown()
        best = {score.name: self._best(score) for score in shown}
        head = [
            "",
            *(
                _html.raw(f'<span title="{escape(s.meaning)}">{escape(s.name)}</span>')
                for s in shown
            ),
        ]
        rows = [
            [
                f"{name} (reference)" if name == self.reference else name,
                *(_marked(_cell(row, s), name in best[s.name]) for s in shown),
            ]
            for name, row in self.rows.items()
        ]
        return _html.block(
            "Comparison",
            _html.table(head, rows),
            _html.notes(("", f"{note}.") for note in self.notes),
            _html.details(
                "what the columns mean; bold: the best, and what is within two errors of it",
                _html.table(("score", "meaning"), ((s.name, s.meaning) for s in shown)),
            ),
        )

    def report(
        self,
        path: str | Path,
        *,
        figures: Mapping[str, Any] | None = None,
        title: str = "Comparison",
    ) -> Path:
        """Write one HTML page that needs nothing else: the table, and each score with its errors.

        Args:
            path: of the page.
            figures: matplotlib figures or axes by title, such as those of ``pvi.plots``.
            title: of the page.

        Returns:
            The path.
        """
        shown = self._shown()
        estimates = {
            s.name: {n: e for n, row in self.rows.items() if (e := row.estimates.get(s.name))}
            for s in shown
        }
        meanings = {score.name: score.meaning for score in shown}
        return write_comparison(
            self._repr_html_(), estimates, meanings, path, figures=figures, title=title
        )

    def _best(self, score: Score) -> set[str]:
        """The sets with the best value of a score, and those within two errors of it."""
        known = {n: e for n, row in self.rows.items() if (e := row.estimates.get(score.name))}
        if score.best is None or len(known) < 2:
            return set()
        sign = 1.0 if score.best == "lowest" else -1.0
        top = min(known.values(), key=lambda each: sign * each.value)
        return {
            name
            for name, each in known.items()
            if abs(each.value - top.value) <= 2 * math.hypot(_known(each.error), _known(top.error))
        }

    def _shown(self) -> list[Score]:
        return [
            score
            for score in self.scores
            if any(row.estimates.get(score.name) is not None for row in self.rows.values())
        ]

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return self.table()


def _known(error: float) -> float:
    return 0.0 if math.isnan(error) else error


def _marked(text: str, best: bool) -> str:
    return _html.raw(f"<b>{escape(text)}</b>") if best else text


def _cell(row: Row, score: Score) -> str:
    estimate = row.estimates.get(score.name)
    return "-" if estimate is None else str(estimate)


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
