"""The page about several sets of draws side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from particlevi.report.charts import Chart, Interval
from particlevi.report.page import Section, environment, figures_of, settings, write_page

__all__ = ["write_comparison"]


class _Estimate(Protocol):
    @property
    def value(self) -> float: ...
    @property
    def error(self) -> float: ...


def write_comparison(
    table: str,
    estimates: Mapping[str, Mapping[str, _Estimate]],
    meanings: Mapping[str, str],
    path: str | Path,
    *,
    figures: Mapping[str, Any] | None = None,
    title: str = "Comparison",
) -> Path:
    """See ``Comparison.report``.

    Args:
        table: as HTML.
        estimates: by score, then by set.
        meanings: of the scores.
        path: of the file.
        figures: matplotlib figures by title.
        title: of the page.
    """
    charts = []
    for score, values in estimates.items():
        rows = [
            Interval(name, each.value, each.value - 2 * each.error, each.value + 2 * each.error)
            for name, each in values.items()
        ]
        charts.append(Chart(f"{score}: {meanings[score]}", score, intervals=rows).svg())
    sections: list[Section] = [
        ("Scores", table),
        ("With two standard errors", f'<div class="charts">{"".join(charts)}</div>'),
        ("More pictures", figures_of(figures)),
        ("Environment", settings(environment())),
    ]
    return write_page(path, title, sections)
