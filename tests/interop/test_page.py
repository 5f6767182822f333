"""The page on other libraries runs in full, also the blocks that CI leaves out."""

from __future__ import annotations

import sys
import types
import warnings

import matplotlib as mpl
import pyro
import pytest

from tests.test_docs import BLOCK, ROOT

PAGE = ROOT / "docs/howto/interoperation.md"


@pytest.mark.slow
def test_every_block_of_the_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    monkeypatch.chdir(tmp_path)
    mpl.use("Agg")
    pyro.clear_param_store()
    module = types.ModuleType("page_in_full")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = PAGE.read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start("code"))
            exec(compile("\n" * line + found["code"], str(PAGE), "exec"), module.__dict__)
