"""One page about draws: complete, small, by itself, and read by a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.__main__ import main
from particlevi.report.charts import Chart, Interval, Line
from tests.browser import browse, needs_browser

VOID = {"meta", "link", "img", "br"}


class Balanced(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.open = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def regression(chains=4, count=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 2, generator=generator)
    y = x.sum(1, keepdim=True)
    net = nn.Linear(2, 1)
    model = pvi.from_module(net, pvi.Gaussian(0.3), pvi.Normal(1.0), num_data=50)
    particles = torch.tensor([1.0, 1.0, 0.0]) + 0.04 * torch.randn(
        chains, count, 3, generator=generator
    )
    stats = {"potential": torch.randn(chains, count, generator=generator)}
    stats["kinetic_temperature"] = 1 + 0.5 * torch.rand(chains, count, generator=generator)
    names = {"sampler": "sghmc", "seed": 0}
    draws = pvi.Draws(
        particles, stats, chains=list(range(chains)), shapes=dict(model.layout.shapes),
        attrs=names, potential=model, seconds=1.0,
    )  # fmt: skip
    return draws, (x, y)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    draws, data = regression()
    path = tmp_path_factory.mktemp("page") / "report.html"
    return draws.report(path, data, test_data=data, title="A <small> run")


def test_a_page_has_its_parts_verdict_first(page):
    html = page.read_text()
    Balanced(html)
    heads = re.findall(r"<h2>(.*?)</h2>", html)
    assert heads == [
        "Verdict", "What was sampled and how", "Convergence", "Temperatures", "Predictions",
        "Settings", "Environment",
    ]  # fmt: skip
    assert "A &lt;small&gt; run" in html


def test_a_page_needs_nothing_else(page):
    html = page.read_text()
    assert "<script" not in html
    assert not re.search(r"""(src|href)=["'](?!data:|\#)""", html)
    assert "url(" not in html
    assert "@import" not in html


def test_scores_are_those_of_the_draws():
    draws, data = regression()
    from particlevi.report.drawing import _predictions

    html = _predictions(draws, data, 1)
    density = draws.log_predictive_density(data).double()
    root = float((draws.predict(data[0]).mean - data[1]).square().mean().sqrt())
    assert f"{-float(density.mean()):.4g}" in html
    assert f"{root:.4g}" in html


def test_labels_have_a_reliability_diagram(tmp_path):
    x = torch.randn(40, 2)
    y = (x[:, 0] > 0).long()
    model = pvi.from_module(nn.Linear(2, 2), pvi.Categorical(), pvi.Normal(1.0), num_data=40)
    draws = pvi.Draws.from_tensor(torch.randn(2, 10, 6), model)
    html = draws.report(tmp_path / "a.html", test_data=(x, y)).read_text()
    assert "Reliability" in html
    assert "share of right labels" in html


@pytest.mark.slow
def test_large_draws_give_a_small_page(tmp_path):
    draws = pvi.Draws.from_tensor(torch.randn(8, 20, 100_000))
    page = draws.report(tmp_path / "a.html")
    assert page.stat().st_size < 5e6
    assert "R-hat of projections" in page.read_text()


def test_particles_that_interact_have_a_page(tmp_path):
    draws = pvi.Draws.from_tensor(torch.randn(8, 20, 3), kind="particles")
    Balanced(draws.report(tmp_path / "a.html").read_text())


def test_pictures_are_put_inside(tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(2, 2))
    figure.subplots().plot([1, 2])
    draws, _ = regression()
    html = draws.report(tmp_path / "a.html", figures={"Mine": figure}).read_text()
    assert "data:image/png;base64," in html
    with pytest.raises(TypeError, match="Mine"):
        draws.report(tmp_path / "b.html", figures={"Mine": 3})


def test_a_comparison_has_a_page(tmp_path):
    draws, data = regression()
    other, _ = regression(count=30)
    table = pvi.compare({"a": draws, "b": other}, data)
    html = table.report(tmp_path / "a.html").read_text()
    Balanced(html)
    assert html.count("<figure>") >= 4
    assert "b (reference)" in html


def test_a_line_goes_through_its_points_in_the_frame():
    svg = Chart("t", "x", "y", [Line("l", [0.0, 1.0], [5.0, 5.0 + 1e-3])]).svg()
    found = re.search(r'class="c0" points="([^"]*)"', svg).group(1)
    places = [tuple(map(float, each.split(","))) for each in found.split()]
    assert all(0 <= x <= 480 and 0 <= y <= 250 for x, y in places)
    assert places[0][0] < places[1][0]
    assert places[0][1] > places[1][1]


def test_what_is_not_finite_is_left_out():
    nan = float("nan")
    assert Chart("t", "x", lines=[Line("l", [0.0, 1.0], [nan, nan])]).svg() == ""
    assert Chart("t", "x", intervals=[Interval("a", nan, nan, nan)]).svg() == ""
    assert "circle" in Chart("t", "x", intervals=[Interval("a", 1.0, nan, nan)]).svg()


def test_the_command_line_tells_versions_and_writes_a_page(tmp_path, capsys):
    assert main([]) == 0
    assert torch.__version__ in capsys.readouterr().out
    draws, _ = regression()
    draws.save(tmp_path / "draws.safetensors")
    assert main(["report", str(tmp_path / "draws.safetensors")]) == 0
    assert (tmp_path / "draws.html").exists()
    assert main(["report", str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_the_store_of_a_run_has_a_page(tmp_path):
    pytest.importorskip("zarr", reason="zarr is not installed")
    normal = pvi.from_log_density(lambda theta: -0.5 * theta.square().sum(), num_params=2)
    store = tmp_path / "draws.zarr"
    pvi.sample(
        pvi.sghmc(normal), step_size=0.5, num_particles=2, num_draws=20, progress=False,
        store=pvi.storage.OnDisk(store),
    )  # fmt: skip
    assert main(["report", str(store)]) == 0
    assert "R-hat of parameters" in (tmp_path / "draws.html").read_text()


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it_without_an_error_and_without_scrolling_sideways(page, tmp_path, width):
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe id="f" src="{page.as_uri()}" width="{width}" height="900" '
        'onload="const d=this.contentDocument;document.title='
        "'wide '+d.documentElement.scrollWidth+' svg '+d.querySelectorAll('svg').length\">"
        "</iframe>"
    )
    done = browse(tmp_path, "--virtual-time-budget=5000", "--dump-dom", outer.as_uri())
    found = re.search(r"<title>wide (\d+) svg (\d+)</title>", done.stdout)
    assert found, done.stderr[-2000:]
    assert int(found.group(1)) <= width
    assert int(found.group(2)) >= 6
    assert "CONSOLE" not in done.stderr


@pytest.mark.slow
@needs_browser
def test_it_prints(page, tmp_path):
    target = tmp_path / "page.pdf"
    browse(tmp_path, f"--print-to-pdf={target}", page.as_uri())
    assert target.read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_the_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "particlevi", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "report" in done.stdout


def test_held_out_data_may_come_from_a_loader(tmp_path):
    x = torch.randn(30, 2)
    model = pvi.from_module(torch.nn.Linear(2, 1), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=30)
    draws = pvi.Draws.from_tensor(torch.randn(2, 8, 3), model)
    held = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :1]), batch_size=8)
    html = draws.report(tmp_path / "a.html", test_data=held).read_text()
    assert "root mean squared error" in html
