"""What a prior predicts, against its closed form."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi

X = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, -4.0]])


def linear(likelihood=None, prior=None):
    net = torch.nn.Linear(2, 1)
    return pvi.from_module(net, likelihood or pvi.Gaussian(0.5), prior or pvi.Normal(2.0), 3)


def test_outputs_and_targets_have_the_variance_of_the_closed_form():
    found = linear().prior_predictive(X, num_draws=4000)
    assert found.particles.shape == (4000, 3)
    for values, noise in ((found.outputs, 0.0), (found.targets["y"], 0.25)):
        assert values.shape == (4000, 3, 1)
        variance = 4.0 * (1 + X.square().sum(1)) + noise
        z = (values[..., 0].var(0) / variance - 1) / math.sqrt(2 / 4000)
        assert float(z.abs().max()) < 4
        mean = values[..., 0].mean(0) / (variance / 4000).sqrt()
        assert float(mean.abs().max()) < 4


def test_targets_belong_to_their_outputs():
    found = linear(pvi.Gaussian(1e-4)).prior_predictive(X, num_draws=50)
    torch.testing.assert_close(found.targets["y"], found.outputs, rtol=0, atol=1e-3)


def test_a_learned_scale_is_drawn_with_the_rest():
    likelihood = pvi.Gaussian("learned", log_scale_prior=pvi.Normal(1e-6, mean=math.log(3.0)))
    found = linear(likelihood, pvi.Normal(1e-3)).prior_predictive(X, num_draws=4000)
    assert float(found.targets["y"].std()) == pytest.approx(3.0, rel=0.04)


def test_a_seed_decides_and_torchs_generator_is_left_alone():
    potential = linear()
    state = torch.get_rng_state()
    first, same, other = (potential.prior_predictive(X, 10, seed) for seed in (0, 0, 1))
    assert torch.equal(first.targets["y"], same.targets["y"])
    assert not torch.equal(first.outputs, other.outputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pyro_model_predicts_its_observed_sites():
    pyro = pytest.importorskip("pyro")
    normal = pyro.distributions.Normal

    def model(x, y=None):
        slope = pyro.sample("slope", normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", normal(slope * x, 0.1), obs=y)

    x = torch.tensor([0.0, 1.0, 3.0])
    potential = pvi.from_pyro(model, example_batch=(x, torch.zeros(3)))
    found = potential.prior_predictive(x, num_draws=4000)
    assert found.outputs is None
    spread = found.targets["y"].std(0)
    torch.testing.assert_close(spread, (4 * x.square() + 0.01).sqrt(), rtol=0.06, atol=0)


def test_draws_take_it_along_to_arviz():
    potential = linear()
    y = torch.zeros(3, 1)
    draws = pvi.sample(
        pvi.sgld(potential), (X, y), step_size=1e-3, num_particles=2, num_draws=5, progress=False
    )
    prior = potential.prior_predictive(X, num_draws=7)
    groups = draws.to_arviz((X, y), prior=prior)
    assert groups["prior_predictive"]["y"].shape == (1, 7, 3, 1)
    assert groups["prior"]["weight"].shape == (1, 7, 1, 2)


@pytest.mark.parametrize(
    ("potential", "words"),
    [
        (pvi.from_log_density(lambda x: -x.square().sum(), 1), "predicts nothing"),
        (linear(prior=pvi.Flat()), "improper"),
    ],
)
def test_what_has_no_prior_predictive_says_so(potential, words):
    with pytest.raises(ValueError, match=words):
        potential.prior_predictive(X)
