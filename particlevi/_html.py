"""Small pieces of HTML for what a notebook shows. They carry their own style and no script."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape

__all__ = ["block", "details", "in_notebook", "notes", "pairs", "preformatted", "raw", "table"]

_COLOURS = {"wrong": "#b3261e", "model": "#8a5a00", "uncertain": "#8a5a00", "untold": "#555"}


class raw(str):
    """Text that is HTML already."""

    __slots__ = ()


def _text(value: object) -> str:
    return value if isinstance(value, raw) else escape(str(value))


def block(title: str, *parts: str) -> str:
    """A titled frame around parts that are HTML."""
    return (
        '<div class="particlevi" style="font-family:system-ui,sans-serif;border:1px solid #8886;'
        'border-radius:6px;padding:.6em .9em;max-width:60em;overflow-x:auto">'
        f'<div style="font-weight:600;margin-bottom:.3em">{escape(title)}</div>'
        f"{''.join(part for part in parts if part)}</div>"
    )


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; empty text without rows."""
    body = [list(row) for row in rows]
    if not body:
        return ""
    cell = "padding:.15em .7em;text-align:left;vertical-align:top;border-top:1px solid #8884"
    titled = any(str(each) for each in head)
    first = "".join(f'<th style="{cell}">{_text(each)}</th>' for each in head)
    cells = ["".join(f'<td style="{cell}">{_text(each)}</td>' for each in row) for row in body]
    lines = "".join(f"<tr>{row}</tr>" for row in cells)
    top = f"<thead><tr>{first}</tr></thead>" if titled else ""
    style = "border-collapse:collapse;font-size:.92em"
    return f'<table style="{style}">{top}<tbody>{lines}</tbody></table>'


def details(summary: str, *parts: str) -> str:
    """Parts that are folded away; empty text if there are none."""
    inner = "".join(parts)
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>" if inner else ""


def preformatted(text: str) -> str:
    """Text as it stands, an equation for instance."""
    style = "margin:.3em 0;font-size:.9em;background:none;white-space:pre;overflow-x:auto"
    return f'<pre style="{style}">{escape(text)}</pre>' if text else ""


def notes(found: Iterable[tuple[str, str]]) -> str:
    """What to know first, each of a severity and in words; severities of a verdict have colours."""
    styles = ((_COLOURS.get(kind, "inherit"), text) for kind, text in found)
    items = "".join(
        f'<li style="color:{colour};white-space:pre-line">{escape(text)}</li>'
        for colour, text in styles
    )
    return f'<ul style="margin:.2em 0;padding-left:1.2em">{items}</ul>' if items else ""


def pairs(values: Mapping[str, object]) -> str:
    """Names and values, one under the other."""
    return table(("", ""), ((name, value) for name, value in values.items()))


def in_notebook() -> bool:
    """Whether what a cell ends in is shown as HTML, so that it need not be printed too."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
