"""Predictions of Pyro models: against the same model as a module, whose predictive is exact."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import particlevi as pvi

X = torch.linspace(-1, 1, 12, dtype=torch.float64).unsqueeze(1)
Y = torch.sin(3 * X.squeeze(1))
NEW = torch.tensor([[-2.0], [0.0], [1.5]], dtype=torch.float64)
SCALE = 0.3


def line(x, y=None):
    zero = x.new_zeros(())
    weight = pyro.sample("weight", dist.Normal(zero, 1.0).expand([1, 1]).to_event(2))
    bias = pyro.sample("bias", dist.Normal(zero, 1.0).expand([1]).to_event(1))
    mean = pyro.deterministic("mean", (x @ weight.T + bias).squeeze(-1))
    with pyro.plate("data", len(x)):
        return pyro.sample("target", dist.Normal(mean, SCALE), obs=y)


def draws_of(potential, particles, **options):
    fingerprint = dict(potential.fingerprint)
    return pvi.Draws(particles, {}, potential=potential, fingerprint=fingerprint, **options)


@pytest.fixture
def particles():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 500, 2, generator=generator, dtype=torch.float64)


@pytest.fixture
def draws(particles):
    return draws_of(pvi.from_pyro(line, example_batch=(X, Y)), particles)


@pytest.fixture
def exact(particles):
    module = nn.Linear(1, 1).double()
    potential = pvi.from_module(module, pvi.Gaussian(scale=SCALE), pvi.Normal(1.0), num_data=12)
    return draws_of(potential, particles)


def test_mean_std_and_quantiles_are_those_of_the_same_model_as_a_module(draws, exact):
    levels = (0.1, 0.5, 0.9)
    found, wanted = draws.predict(NEW, quantiles=levels), exact.predict(NEW, quantiles=levels)
    count = 2000
    # Given the parameters only the noise is random: the errors are those of its mean and square.
    z = (found.mean - wanted.mean.squeeze(1)) / (SCALE / math.sqrt(count))
    assert z.abs().max() < 5
    error = 2 * SCALE * wanted.std.squeeze(1) / math.sqrt(count)
    variances = found.std.square() - wanted.std.squeeze(1).square()
    assert (variances / error).abs().max() < 5
    assert error.max() < 0.1 * SCALE**2 * 5, "without the noise the variance would be seen"
    spread = wanted.std.squeeze(1) * 1.71 / math.sqrt(count)  # of a normal's 10 % quantile
    difference = found.quantiles - wanted.quantiles.squeeze(-1)
    assert (difference / (math.sqrt(2) * spread)).abs().max() < 5
    assert found.epistemic_std is None and found.probs is None
    assert found.mean.dtype == torch.float64


@pytest.mark.parametrize(
    "inputs",
    [(NEW,), [NEW], {"x": NEW}, NEW.numpy(), (NEW, torch.zeros(3)), {"x": NEW, "y": torch.ones(3)}],
)
def test_arguments_with_or_without_observations(draws, inputs):
    found, wanted = draws.predict(inputs, thin=10), draws.predict(NEW, thin=10)
    assert torch.equal(found.mean, wanted.mean) and torch.equal(found.std, wanted.std)


def test_a_few_draws_still_give_a_thousand_targets(draws):
    few = draws.select([0]).predict(NEW, thin=250)
    assert torch.equal(few.mean, draws.select([0]).predict(NEW, thin=250).mean)
    different = draws.select([0]).predict(NEW, thin=250, seed=1)
    assert not torch.equal(few.mean, different.mean)
    centre = draws.select([0]).constrained()
    weight, bias = (centre[name][0, ::250] for name in ("weight", "bias"))
    mean = (NEW * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)).mean(0).squeeze(1)
    assert ((few.mean - mean) / (SCALE / math.sqrt(1000))).abs().max() < 5


def test_interacting_particles_count_at_their_last_place(particles):
    potential = pvi.from_pyro(line, example_batch=(X, Y))
    cut = draws_of(potential, particles[:, -1:])
    all_of_them = draws_of(potential, particles, facts=pvi.typing.Facts(kind="particles"))
    assert torch.equal(all_of_them.predict(NEW).mean, cut.predict(NEW).mean)
    found = all_of_them.to_arviz((X, Y), posterior_predictive=True, log_likelihood=True)
    assert found["posterior_predictive"]["target"].shape == (1, 4, 12)
    assert found["log_likelihood"]["target"].shape == (1, 4, 12)


@pytest.mark.parametrize("data", [(X, Y), {"y": Y, "x": X}])
def test_arviz_groups_have_the_name_of_the_site(data, particles):
    draws = draws_of(pvi.from_pyro(line, example_batch=data), particles[:, :20])
    found = draws.to_arviz(data, log_likelihood=True, posterior_predictive=True)
    assert set(found["posterior"].data_vars) == {"weight", "bias"}
    targets = torch.from_numpy(found["posterior_predictive"]["target"].values)
    assert targets.shape == (4, 20, 12)
    given = draws.constrained()
    mean = (X @ given["weight"].mT + given["bias"].unsqueeze(-2)).squeeze(-1)
    noise = (targets - mean) / SCALE
    assert noise.mean().abs() * math.sqrt(noise.numel()) < 5
    assert (noise.square().mean() - 1).abs() * math.sqrt(noise.numel() / 2) < 5
    assert torch.equal(torch.from_numpy(found["observed_data"]["target"].values), Y)
    law = torch.distributions.Normal(mean, SCALE)
    torch.testing.assert_close(
        torch.from_numpy(found["log_likelihood"]["target"].values), law.log_prob(Y)
    )


def test_bound_data_are_drawn_anew(particles):
    draws = draws_of(pvi.from_pyro(functools.partial(line, X, Y)), particles[:, :5])
    found = draws.to_arviz(posterior_predictive=True)["posterior_predictive"]["target"]
    assert found.shape == (4, 5, 12) and found.std("draw").min() > 0
    assert draws.predict(None).mean.shape == (12,)
    with pytest.raises(ValueError, match="need the data"):
        draws.to_arviz(log_likelihood=True)


def two(x, y=None, z=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        pyro.sample("z", dist.Normal(slope, 1.0), obs=z)


def classes(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        logits = torch.stack([slope * x, -slope * x], -1)
        pyro.sample("y", dist.Categorical(logits=logits), obs=y)


def test_refusals(exact):
    x = torch.linspace(-1, 1, 6)
    draws = draws_of(pvi.from_pyro(two, example_batch=(x, x, -x)), torch.zeros(2, 4, 1))
    with pytest.raises(ValueError, match=r"observed sites \['y', 'z'\], and predict"):
        draws.predict(x)
    found = draws.to_arviz((x, x, -x), posterior_predictive=True)["posterior_predictive"]
    assert set(found.data_vars) == {"y", "z"}
    labels = (x > 0).long()
    draws = draws_of(pvi.from_pyro(classes, example_batch=(x, labels)), torch.zeros(2, 4, 1))
    with pytest.raises(ValueError, match="'y' has integer targets, class numbers"):
        draws.predict(x)
    density = pvi.from_log_density(lambda t: -0.5 * t.square().sum(), num_params=2)
    draws = draws_of(density, torch.zeros(2, 4, 2))
    with pytest.raises(ValueError, match="from a module or a Pyro model"):
        draws.predict(x)
    with pytest.raises(ValueError, match="from a module or a Pyro model"):
        draws.to_arviz((x,), posterior_predictive=True)


def test_what_the_error_tells_to_do_works():
    x = torch.linspace(-1, 1, 6)
    potential = pvi.from_pyro(classes, example_batch=(x, (x > 0).long()))
    draws = draws_of(potential, torch.full((2, 200, 1), 2.0))
    counts = potential.predictive_fn(potential.constrain(draws.flat()), x, seed=0)["y"]
    found = nn.functional.one_hot(counts, 2).double().mean(0)[:, 0]
    wanted = torch.sigmoid(4 * x).double()
    assert ((found - wanted) / (wanted * (1 - wanted) / 400).sqrt()).abs().max() < 5


def test_only_a_part_of_the_parameters(particles):
    potential = pvi.from_pyro(line, example_batch=(X, Y))
    draws = draws_of(potential, particles[..., :1], coordinates=torch.tensor([0]))
    for call in (
        lambda: draws.predict(NEW),
        lambda: draws.to_arviz((X, Y), posterior_predictive=True),
    ):
        with pytest.raises(ValueError, match="Only a part of the parameters"):
            call()


def test_a_pyro_model_is_not_compiled():
    potential = pvi.from_pyro(line, example_batch=(X, Y))
    with pytest.raises(ValueError, match=r"pyro model runs Python code .* Leave compile out"):
        pvi.sample(pvi.sgld(potential), (X, Y), step_size=1e-3, num_particles=2, compile=True)
