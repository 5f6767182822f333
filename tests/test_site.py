"""The documentation builds without a warning, and every public name is on one of its pages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import pytest

import particlevi
from tests.browser import browse, needs_browser

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))  # families


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; any warning of the build fails."""
    pytest.importorskip("furo", reason="the docs extra is not installed")
    pytest.importorskip("math_core", reason="the docs extra is not installed")
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


def nothing():
    pass


def test_every_public_name_has_a_page_and_a_docstring():
    assert import_module("families").undocumented() == []


def test_a_public_name_without_a_docstring_fails_the_build(monkeypatch):
    sphinx_errors = pytest.importorskip("sphinx.errors", reason="the docs extra is not installed")
    monkeypatch.setattr(particlevi.tuning, "nothing", nothing, raising=False)
    monkeypatch.setattr(particlevi.tuning, "__all__", [*particlevi.tuning.__all__, "nothing"])
    with pytest.raises(sphinx_errors.ExtensionError, match=r"tuning\.nothing"):
        import_module("conf").setup(None)


def test_a_public_name_without_a_page_fails_the_build(monkeypatch):
    sphinx_errors = pytest.importorskip("sphinx.errors", reason="the docs extra is not installed")
    monkeypatch.setattr(particlevi, "__all__", [*particlevi.__all__, "errors"])
    with pytest.raises(sphinx_errors.ExtensionError, match=r"particlevi\.errors"):
        import_module("conf").setup(None)


def test_every_sampler_has_a_paper_to_cite():
    families = import_module("families")
    page = (ROOT / "docs" / "citing.md").read_text()
    samplers = [*families.FAMILIES["langevin"][1], *families.FAMILIES["stein"][1]]
    assert [name for name in samplers if f"`{name}" not in page] == ["check_collapse"]
    assert f"version = {{{particlevi.__version__}}}" in page


def test_examples_are_code_and_not_quotes(site):
    pages = "\n".join(page.read_text() for page in (site / "api").glob("*.html"))
    assert "&gt;&gt;&gt;" in pages
    assert not re.search(r"<blockquote>\s*<div><p>\s*&gt;&gt;&gt;", pages)


def test_formulas_are_set_and_nothing_is_loaded_from_elsewhere(site):
    assert "<math" in (site / "theory" / "target.html").read_text()
    loaded = re.compile(r'<(?:script|link|img)[^>]* (?:src|href)="(?:https?:)?//[^"]*"')
    for page in site.rglob("*.html"):
        assert loaded.findall(page.read_text()) == [], page


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(site):
    """Where a server shows the site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


WALK = """<iframe id="frame" width="{width}" height="900"></iframe><pre id="found"></pre><script>
const pages = {pages}, frame = document.getElementById("frame");
let next = 0;
frame.onload = () => {{
  const wide = frame.contentDocument.documentElement.scrollWidth;
  if (next) document.getElementById("found").textContent += pages[next - 1] + " " + wide + "\\n";
  if (next < pages.length) frame.src = pages[next++];
}};
frame.src = "about:blank";
</script>"""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [400, 1280], ids=["phone", "desktop"])
def test_no_page_has_an_error_or_scrolls_sideways(site, address, tmp_path, width):
    pages = [str(page.relative_to(site)) for page in sorted(site.rglob("*.html"))]
    pages = [page for page in pages if not page.startswith(("_", "walk"))]
    (site / "walk.html").write_text(WALK.format(width=width, pages=json.dumps(pages)))
    done = browse(tmp_path, "--virtual-time-budget=60000", "--dump-dom", f"{address}/walk.html")
    found = dict(re.findall(r"(\S+\.html) (\d+)", done.stdout.split('id="found">', 1)[1]))
    assert sorted(found) == pages
    assert {page: wide for page, wide in found.items() if int(wide) > width} == {}
    assert "CONSOLE" not in done.stderr


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("GPU", "howto/gpu.html"),
        ("callback", "api/record.html"),
        ("prior", "priors.html"),
        ("DataLoader", "howto/dataloader.html"),
        ("missing data", "howto/missing_data.html"),
        ("reproducibility", "howto/reproducibility.html"),
        ("cite", "citing.html"),
    ],
)
def test_search_finds(address, tmp_path, words, page):
    query = f"{address}/search.html?q={words.replace(' ', '+')}"
    done = browse(tmp_path, "--virtual-time-budget=8000", "--dump-dom", query)
    results = done.stdout.split('id="search-results"', 1)[1]
    first = re.findall(r'<li[^>]*><a href="([^"#]+)', results)[:8]
    assert any(each.endswith(page) for each in first), first
