"""What an estimator asks of a run, and what it keeps of one that has not converged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", minversion="1.6", reason="the extra sklearn is missing")

import particlevi as pvi
from particlevi.sklearn import BayesianMLPRegressor, PosteriorWarning, estimator

X = np.linspace(-2, 2, 40)[:, None]
Y = np.sin(X[:, 0])
NET = (8, 8)

pytestmark = pytest.mark.filterwarnings("ignore::particlevi.sklearn.PosteriorWarning")


@pytest.fixture
def asked(monkeypatch):
    """The arguments of the run; its draws are independent but for a drift that is given."""
    found = {"drift": 0.0}

    def run(potential, data, **arguments):
        found.update(arguments)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(4, 100, potential.num_params, generator=generator)
        drift = found["drift"] * torch.arange(100).clamp(max=50)[:, None] / 50
        return pvi.Draws.from_tensor(0.1 * noise + drift, potential)

    monkeypatch.setattr(estimator, "sample", run)
    return found


@pytest.mark.parametrize(("seconds", "compiles"), [(60, False), (200, True), (None, True)])
def test_a_long_run_is_compiled(asked, monkeypatch, seconds, compiles):
    monkeypatch.setattr(estimator.shutil, "which", lambda name: f"/usr/bin/{name}")
    BayesianMLPRegressor(NET, max_seconds=seconds).fit(X, Y)
    assert asked["compile"] == compiles


def test_nothing_is_compiled_without_a_compiler(asked, monkeypatch):
    monkeypatch.setattr(estimator.shutil, "which", lambda name: None)
    BayesianMLPRegressor(NET, max_seconds=None).fit(X, Y)
    assert not asked["compile"]


@pytest.mark.parametrize("given", [True, False])
def test_what_was_asked_for_holds(asked, given):
    BayesianMLPRegressor(NET, max_seconds=200, compile=given).fit(X, Y)
    assert asked["compile"] == given


@pytest.mark.parametrize(("number", "thin"), [(None, 16), (100, None)])
def test_draws_of_a_net_are_far_apart_unless_their_number_is_given(asked, number, thin):
    BayesianMLPRegressor(NET, num_draws=number).fit(X, Y)
    assert asked["thin"] == thin


@pytest.mark.parametrize(("drift", "kept"), [(0.0, 100), (0.5, 50)])
def test_of_a_run_that_drifted_the_second_half_is_kept(asked, drift, kept):
    asked["drift"] = drift
    net = BayesianMLPRegressor(NET).fit(X, Y)
    assert net.draws_.particles.shape[1] == kept


def test_the_verdict_is_that_of_what_is_kept(asked):
    asked["drift"] = 0.5
    net = BayesianMLPRegressor(NET).fit(X, Y)
    assert "not converged" not in {each.kind for each in net.verdict_.findings}


def test_draws_that_were_asked_for_are_all_kept(asked):
    asked["drift"] = 0.5
    with pytest.warns(PosteriorWarning, match="not reached"):
        net = BayesianMLPRegressor(NET, num_draws=100).fit(X, Y)
    assert net.draws_.particles.shape[1] == 100
