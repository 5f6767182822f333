"""Tables written into a page of the documentation, between marks."""

from __future__ import annotations

from pathlib import Path

__all__ = ["markdown", "write"]


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
