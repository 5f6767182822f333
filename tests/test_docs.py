"""Every Python block of README.md and of the docs runs, in order, one namespace per page.

A block after a line ``<!-- not run: why -->`` is left out.
"""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import matplotlib as mpl
import pyro
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted({ROOT / "README.md", *ROOT.glob("docs/**/*.md")})
BLOCK = re.compile(
    r"^(?P<skip><!-- not run: [^\n]+ -->\n+)?^```python\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(text: str) -> list[tuple[int, str]]:
    """The line number and code of each block that is to run."""
    return [
        (text.count("\n", 0, found.start("code")), found["code"])
        for found in BLOCK.finditer(text)
        if not found["skip"]
    ]


PAGES_WITH_CODE = [page for page in PAGES if blocks(page.read_text())]


def test_blocks_are_found_with_their_lines_and_marked_ones_left_out():
    text = (
        "a\n```python\nx = 1\n```\n<!-- not run: slow -->\n\n```python\nx = 2\n```\n"
        "```bash\nls\n```\n```python\nx = 3\ny = 4\n```\n"
        "<!-- not run: slow -->\n```python\nx = 5\n```\n"
    )
    assert blocks(text) == [(2, "x = 1\n"), (13, "x = 3\ny = 4\n")]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    torch.manual_seed(0)
    pyro.clear_param_store()
    module = types.ModuleType(f"page_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for line, code in blocks(page.read_text()):
        exec(compile("\n" * line + code, str(page), "exec"), module.__dict__)
