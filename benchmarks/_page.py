"""Tables written into a page of the documentation, between marks."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

from scipy import stats

__all__ = ["interval", "markdown", "write"]


def interval(values: list[float]) -> str:
    """Mean and half the width of Student's 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):.2f} ± {half:.2f}"


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(path: Path, sections: dict[str, str]) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- /name -->``."""
    text = path.read_text()
    for name, body in sections.items():
        head, mark = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(head)
        if not found or mark not in rest:
            raise ValueError(f"{path} has no section {head} ... {mark}.")
        text = before + head + "\n" + body + "\n" + mark + rest.partition(mark)[2]
    path.write_text(text)
