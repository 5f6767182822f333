"""ESS, errors and times of parameters, projections, predictions and log-likelihoods."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

import particlevi as pvi
from particlevi.diagnostics import arviz
from particlevi.diagnostics.nested import nested_rhat
from particlevi.streams import ParticleStreams
from tests import registry
from tests.registry import ESTIMATORS, PROBLEMS, SAMPLERS, batch_of
from tests.stationarity.laws import controls_of, quadratic

X = torch.linspace(-1, 1, 12).unsqueeze(1)
DATA = (X, X.sin())


@pytest.fixture(scope="module")
def draws():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    model = pvi.from_module(net, pvi.Gaussian(scale=0.5), pvi.Normal(1.0), num_data=12)
    return pvi.sample(
        pvi.sghmc(model),
        DATA,
        step_size=0.1,
        num_particles=6,
        num_warmup=30,
        num_draws=40,
        thin=2,
        progress=False,
    )


def views(draws):
    """By name, arguments and the values ``[P, T, ...]`` that they stand for."""
    generator = torch.Generator().manual_seed(0)
    size = draws.particles.shape[-1]
    # Coordinates come in blocks of 4096, each with a seed of its own.
    directions = torch.randn(3, 4096, generator=generator)[:, :size] / size**0.5
    return {
        "parameters": ({}, draws.particles),
        "projections": (
            {"num": 3},
            torch.stack([draws.particles @ each for each in directions], -1),
        ),
        "predictions": ({"inputs": X[:4]}, draws.outputs(X[:4])),
        "log_likelihood": ({"inputs": DATA}, draws.log_likelihood(DATA)),
    }


@pytest.mark.parametrize("of", ["parameters", "projections", "predictions", "log_likelihood"])
def test_every_statistic_of_every_view(draws, of):
    options, values = views(draws)[of]

    def same(found, expected):
        assert found.shape == tuple(values.shape[2:])
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    same(draws.ess(of, **options), arviz.ess(values))
    for method, prob in [("tail", None), ("median", None), ("quantile", 0.1)]:
        expected = arviz.ess(values, method, prob)
        same(draws.ess(of, method=method, prob=prob, **options), expected)
    for method, prob in [("mean", None), ("sd", None), ("quantile", 0.9)]:
        expected = arviz.mcse(values, method, prob)
        same(draws.mcse(of, method=method, prob=prob, **options), expected)
    same(draws.rhat(of, **options), arviz.rhat(values))
    same(draws.rhat(of, superchains=3, **options), nested_rhat(values, 3))
    same(draws.autocorrelation_time(of, **options), 6 * 40 / arviz.ess(values, "mean"))


def test_logits_count_up_to_what_the_likelihood_does_not_see():
    """A number added to all logits of a draw changes nothing."""
    net = torch.nn.Linear(1, 3)
    model = pvi.from_module(net, pvi.Categorical(), pvi.Normal(1.0), num_data=12)
    generator = torch.Generator().manual_seed(0)
    particles = torch.randn(2, 50, model.num_params, generator=generator)
    moved = particles.clone()
    moved[..., 3:] += torch.linspace(-9, 9, 50).view(1, 50, 1)
    first, second = (
        pvi.Draws(each, {}, shapes=dict(model.layout.shapes), potential=model).ess(
            "predictions", inputs=X[:2], method="mean"
        )
        for each in (particles, moved)
    )
    np.testing.assert_allclose(first, second, rtol=1e-3)


def test_per_second_and_per_gradient_of_the_whole_run(draws, tmp_path):
    size = draws.ess()
    np.testing.assert_allclose(draws.ess(per="second"), size / draws.seconds)
    steps = 30 + 2 * 40
    np.testing.assert_allclose(draws.ess(per="gradient"), size / (6 * steps))
    draws.save(tmp_path / "draws")
    again = pvi.load(tmp_path / "draws", potential=draws.potential)
    np.testing.assert_allclose(again.ess(per="gradient"), size / (6 * steps))


def test_lost_chains_have_cost_their_gradients():
    start = torch.zeros(8, 1, dtype=torch.float64)
    start[3] = 30.0
    quartic = pvi.from_log_density(
        lambda x: -0.25 * (x**4).sum(-1), 1, vectorized=True, dtype=torch.float64
    )
    with pytest.warns(UserWarning, match="diverged"):
        found = pvi.sample(
            pvi.sgld(quartic), step_size=0.01, initial=start, num_draws=50, progress=False
        )
    assert len(found.particles) == 7
    np.testing.assert_allclose(found.ess(per="gradient"), found.ess() / (8 * 50))


def counted(problem):
    """The potential, and the data evaluated so far, over all particles."""
    count = [0]
    evaluate = problem.potential.log_likelihood_fn

    def counting(particles, batch):
        leaf = pytree.tree_leaves(batch.data)[0]
        count[0] += len(particles) * leaf.shape[1 if batch.per_particle else 0]
        return evaluate(particles, batch)

    return replace(problem, potential=replace(problem.potential, log_likelihood_fn=counting)), count


@pytest.mark.parametrize(
    ("sampler", "estimator"),
    [(s, e) for s, e, problem in registry.grid() if problem == "function" and "svrg" not in e]
    + [("hmc", "minibatch"), ("obabo_metropolis", "minibatch")],
)
def test_gradients_per_step_are_those_that_a_step_takes(sampler, estimator):
    problem, count = counted(PROBLEMS["function"](torch.float64))
    made = SAMPLERS[sampler](ESTIMATORS[estimator].make(problem))
    streams = ParticleStreams(0)
    state = made.init(torch.zeros(3, 4, dtype=torch.float64), streams)
    whole = SAMPLERS[sampler].all_data
    batch = problem.whole() if whole else batch_of(problem, None if made.interacting else 3)
    noise = made.draw_noise(state, streams)
    count[0] = 0
    made.step(state, batch, noise, controls_of(made, 1e-4))
    assert count[0] == made.gradients_per_step * 3 * (20 if whole else 4)


def test_bad_input(draws):
    with pytest.raises(ValueError, match="of must be one of"):
        draws.mcse("weights")
    with pytest.raises(ValueError, match="per must be one of"):
        draws.ess(per="minute")
    with pytest.raises(ValueError, match="needs data"):
        draws.ess("log_likelihood")
    with pytest.raises(ValueError, match="Monte-Carlo error of predictions needs probe inputs"):
        draws.mcse("predictions")
    with pytest.raises(ValueError, match="method='quantile' needs prob"):
        draws.ess(method="quantile")
    with pytest.raises(ValueError, match="must divide the 6 chains"):
        draws.rhat(superchains=4)
    with pytest.raises(ValueError, match="come from no run"):
        pvi.Draws(draws.particles, {}).ess(per="gradient")
    svgd = pvi.sample(
        pvi.svgd(quadratic([[1.0]])), step_size=0.1, num_particles=4, num_draws=9, progress=False
    )
    with pytest.raises(ValueError, match="A Monte-Carlo error is a statement about Markov chains"):
        svgd.mcse()


def test_ess_per_gradient_counts_those_of_the_estimator():
    problem = PROBLEMS["function"](torch.float64)
    estimator = pvi.control_variate(problem.potential, problem.data, problem.center)
    draws = pvi.sample(
        pvi.sgld(estimator),
        problem.data,
        batch_size=5,
        step_size=1e-3,
        num_particles=2,
        num_draws=20,
        progress=False,
    )
    assert estimator.gradients == 2
    np.testing.assert_allclose(draws.ess(per="gradient"), draws.ess() / (2 * 20 * 2))
