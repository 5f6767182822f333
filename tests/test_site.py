"""The documentation builds without a warning, and every public name is on one of its pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import particlevi

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))  # families


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; any warning of the build fails."""
    pytest.importorskip("furo", reason="the docs extra is not installed")
    pytest.importorskip("myst_nb", reason="the docs extra is not installed")
    pytest.importorskip("sphinx_copybutton", reason="the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "doctrees"), "docs", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PARTICLEVI_DOCS_EXECUTE": "0"},  # tutorials have tests of their own
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    return folder


def test_every_public_name_is_on_a_page(site):
    import families

    assert set(particlevi.__all__) <= families.names()


def test_every_sampler_has_a_paper_to_cite():
    import families

    page = (ROOT / "docs" / "citing.md").read_text()
    samplers = [*families.FAMILIES["langevin"][1], *families.FAMILIES["stein"][1]]
    assert [name for name in samplers if f"`{name}" not in page] == ["check_collapse"]
    assert f"version = {{{particlevi.__version__}}}" in page


def test_examples_are_code_and_not_quotes(site):
    pages = "\n".join(page.read_text() for page in (site / "api").glob("*.html"))
    assert "&gt;&gt;&gt;" in pages
    assert not re.search(r"<blockquote>\s*<div><p>\s*&gt;&gt;&gt;", pages)
