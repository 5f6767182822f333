"""What a notebook and a terminal show of the objects that a user holds."""

from __future__ import annotations

import math
import sys
import types
from html.parser import HTMLParser

import pytest
import torch

import particlevi as pvi
from particlevi import _html
from particlevi.comparison import Score
from particlevi.comparison.estimates import Estimate
from particlevi.comparison.table import Comparison, Row
from particlevi.diagnostics.temperatures import Temperature
from particlevi.diagnostics.verdict import Verdict

NET = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
MODEL = pvi.from_module(NET, pvi.Gaussian(0.5), pvi.Normal(2.0), num_data=30)


class Balanced(HTMLParser):
    """Collects text, and fails where a tag is not closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.words = [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def shown(thing):
    html = thing._repr_html_()
    assert "<script" not in html
    assert "http" not in html
    return Balanced(html).text


def verdict():
    found = Verdict()
    found.add("low ESS", "uncertain", "few <draws>", "draw more")
    found.add("too hot", "wrong", "hot & bothered", "cool down")
    found.note("smallest ESS", 12.0, 3.0)
    return found


def test_a_potential_shows_tensors_sizes_and_laws():
    text = shown(MODEL)
    for each in ("0.weight", "3 x 2", "30", "13", "Gaussian(scale=0.5)", "Normal(scale=2.0"):
        assert each in text


def test_a_density_has_no_data():
    assert "none" in shown(pvi.from_log_density(lambda x: -x.square().sum(), 2))


@pytest.mark.parametrize(
    "name", ["sgld", "sghmc", "baoab", "obabo", "svgd", "mclmc", "hmc", "sgd", "psgld", "sgnht"]
)
def test_a_sampler_shows_its_equation(name):
    sampler = getattr(pvi, name)(MODEL)
    assert sampler.equation
    assert not sampler.equation.startswith(" ")
    assert sampler.equation.splitlines()[0] in shown(sampler)


def test_draws_show_warnings_first():
    draws = pvi.Draws(
        torch.randn(2, 5, 13), {"potential": torch.ones(2, 5)}, diverged={3: 7}, potential=MODEL
    )
    text = shown(draws)
    assert text.index("diverged") < text.index("numbers per draw")
    assert "potential" in text


def test_a_verdict_shows_the_worst_first_and_escapes():
    text = shown(verdict())
    assert text.index("hot & bothered") < text.index("few <draws>")
    assert "&lt;draws&gt;" in verdict()._repr_html_()
    assert repr(verdict()) == "Verdict(too hot, low ESS)"


def test_a_comparison_marks_what_is_within_two_errors_of_the_best():
    scores = (
        Score("nll", "lower is better", lambda a, b: None, best="lowest"),
        Score("ess", "higher is better", lambda a, b: None, best="highest"),
        Score("seconds", "neither", lambda a, b: None),
    )
    values = {
        "a": {"nll": Estimate(1.0, 0.1), "ess": Estimate(5.0, 0.1), "seconds": Estimate(1.0)},
        "b": {"nll": Estimate(1.2, 0.1), "ess": Estimate(50.0, 9.0), "seconds": Estimate(2.0)},
        "c": {"nll": Estimate(2.0, 0.1), "ess": None, "seconds": Estimate(3.0)},
    }
    table = Comparison({name: Row(name, each) for name, each in values.items()}, "c", scores)
    html = table._repr_html_()
    marked = [part.split("</b>")[0] for part in html.split("<b>")[1:]]
    assert marked == ["1 ± 0.1", "1.2 ± 0.1", "50 ± 9"]
    assert "c (reference)" in shown(table)


def test_step_sizes_show_their_reason():
    bowl = pvi.from_log_density(lambda x: -x.square().sum(), 2)
    assert "Largest curvature" in shown(pvi.suggest_step_size(bowl, verbose=False))


BOWL = pvi.from_log_density(lambda x: -x.square().sum(), 2)


@pytest.mark.parametrize(
    "tell",
    [
        lambda: pvi.Draws.from_tensor(torch.randn(8, 50, 2) / 2**0.5, BOWL).diagnose(),
        lambda: pvi.Draws.from_tensor(torch.randn(8, 50, 2) / 2**0.5, BOWL).check_invariance(),
        lambda: pvi.suggest_step_size(BOWL),
    ],
)
def test_a_terminal_that_echoes_a_result_does_not_repeat_what_was_printed(tell, capsys):
    found = tell()
    assert len(repr(found)) < 80 < len(capsys.readouterr().out)


def test_gradient_noise_of_a_loop_is_a_sentence():
    noise = pvi.record.Noise(9.29, 3.1, -1.0, float("inf"))
    assert "9.29 +- 3.1" in shown(noise)


class ZMQInteractiveShell:
    pass


def test_a_notebook_is_not_told_twice(monkeypatch, capsys):
    draws = pvi.Draws.from_tensor(torch.randn(4, 50, 13), MODEL)
    draws.diagnose()
    assert capsys.readouterr().out
    shell = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "IPython", shell)
    assert _html.in_notebook()
    draws.diagnose()
    assert not capsys.readouterr().out


LABELS = torch.randint(2, (30,), generator=torch.Generator().manual_seed(0))
NOISE = pvi.noise.measure(
    torch.nn.Sequential(torch.nn.Linear(2, 40), torch.nn.ReLU(), torch.nn.Linear(40, 2)),
    (torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), LABELS),
    torch.nn.functional.cross_entropy,
    batch_size=5,
)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NOISE,
        NOISE.spectrum,
        lambda: NOISE.gaussianity(30, num_directions=2, num_bootstrap=19),
        lambda: NOISE.tail_index(60, num_coordinates=5, num_null=19),
        NOISE.balance,
        lambda: pvi.sgdvi.circulation(torch.randn(9, 50, 20), 1.0),
        lambda: pvi.sgdvi.stationary_law(
            torch.eye(20), torch.eye(20), learning_rate=0.1, batch_size=1
        ),
    ],
)
def test_a_result_is_shown_in_short_and_in_one_way(make):
    found = make()
    assert repr(found) == str(found)
    assert len(repr(found).splitlines()) < 20 and len(repr(found)) < 1500
    assert "0x" not in repr(found)
    assert type(found).__name__ in shown(found)


def test_what_a_terminal_echoes_is_in_short():
    model = pvi.from_module(NET, pvi.Gaussian("learned"), pvi.Normal(2.0), num_data=30)
    prior = model.prior_predictive(torch.ones(2, 2), num_draws=9)
    assert repr(prior) == (
        "PriorPredictive(particles [9, 14], outputs [9, 2, 1], targets {'y': [9, 2, 1]})"
    )
    heat = Temperature(1.25, 0.031, 256, math.nan)
    assert repr(heat) == "Temperature(1.25 +- 0.031, 256 degrees of freedom)"
    optimizer = torch.optim.SGD(NET.parameters(), lr=0.1)
    status = pvi.record.Recorder(NET, optimizer).status()
    assert repr(status).startswith("Status(0 steps, 0 records")


def test_a_comparison_is_its_table_in_a_terminal():
    table = Comparison({"a": Row("a", {})}, "a", ())
    assert repr(table) == str(table) == table.table()


def test_draws_from_elsewhere_claim_nothing_that_is_not_known():
    draws = pvi.Draws.from_tensor(torch.randn(1, 5, 2))
    assert repr(draws) == "Draws(1 chain x 5 draws x 2)"
    assert all(word not in shown(draws) for word in ("unknown", "nan", "all data"))
