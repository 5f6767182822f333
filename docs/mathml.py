"""Formulas as MathML, which browsers set without a script and without a network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

__all__ = ["setup"]

_CONVERTER = LatexToMathML(fancy_error=False)


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node, displaystyle=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{_mathml(node, displaystyle=True)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, *, displaystyle: bool) -> str:
    try:
        return _CONVERTER.convert_with_local_state(node.astext(), displaystyle=displaystyle)
    except LatexError as error:
        logging.getLogger(__name__).warning(f"{error} in {node.astext()!r}", location=node)
        return ""


def setup(app: Any) -> dict[str, Any]:
    """Register the renderer ``"mathml"``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
