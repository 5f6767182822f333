"""Pyro models against densities written by hand, in float64."""

from __future__ import annotations

import functools
import itertools
import json
import math
import threading
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import biject_to, constraints

import particlevi as pvi
from particlevi.potentials.pyro import from_pyro, posterior_predictive
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

N, B, P = 12, 4, 3
CLOSE = {"rtol": 1e-12, "atol": 1e-10}


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.clear_param_store()
    yield
    assert not list(pyro.get_param_store().keys()), "parameters left behind"
    assert not pyro.poutine.runtime._PYRO_STACK, "handlers left behind"
    pyro.clear_param_store()
    torch.set_default_dtype(before)


def rand(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def normal(x, mean, scale):
    z = (x - mean) / scale
    return -0.5 * z**2 - torch.as_tensor(scale).log() - 0.5 * math.log(2 * math.pi)


def line(x, y):
    """Regression with a slope and a constrained scale, the standard case here."""
    slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def line_prior(z):
    return normal(z[:, 0], 0.5, 2.0) + normal(z[:, 1], 0.0, 1.0)


def line_likelihood(z, x, y):
    return normal(y, z[:, :1] * x, z[:, 1:].exp())


X, Y = rand(N, seed=1), rand(N, seed=2)
Z = rand(P, 2, seed=3)


class TestDensity:
    def test_prior_jacobian_and_likelihood_by_hand(self):
        potential = from_pyro(line, N, (X[:5], Y[:5]))
        torch.testing.assert_close(potential.log_prior(Z), line_prior(Z), **CLOSE)
        batch = Batch((X[:B], Y[:B]))
        expected = line_likelihood(Z, X[:B], Y[:B])
        torch.testing.assert_close(potential.log_likelihood(Z, batch), expected, **CLOSE)
        energy = -line_prior(Z) - (N / B) * expected.sum(1)
        torch.testing.assert_close(potential(Z, batch), energy, **CLOSE)
        assert potential.num_data == N and potential.num_params == 2
        assert list(potential.layout.shapes.items()) == [("slope", ()), ("scale", ())]

    def test_each_particle_has_its_own_minibatch(self):
        potential = from_pyro(line, N, (X, Y))
        x, y = rand(P, B, seed=4), rand(P, B, seed=5)
        values = potential.log_likelihood(Z, Batch((x, y), per_particle=True))
        torch.testing.assert_close(values, line_likelihood(Z, x, y), **CLOSE)
        alone = [potential.log_likelihood(Z[i : i + 1], Batch((x[i], y[i]))) for i in range(P)]
        torch.testing.assert_close(values, torch.cat(alone), **CLOSE)

    def test_gradient_by_hand(self):
        potential = from_pyro(line, N, (X, Y))
        a, b = Z.clone().requires_grad_(), Z.clone().requires_grad_()
        (ours,) = torch.autograd.grad(potential(a, Batch((X, Y))).sum(), a)
        energy = -line_prior(b) - line_likelihood(b, X, Y).sum(1)
        torch.testing.assert_close(ours, torch.autograd.grad(energy.sum(), b)[0], **CLOSE)

    @pytest.mark.parametrize(
        ("law", "constrained", "log_density"),
        [
            (
                lambda: dist.HalfNormal(2.0),
                torch.exp,
                lambda v, z: math.log(2) + normal(v, 0.0, 2.0) + z,
            ),
            (
                lambda: dist.Uniform(-1.0, 3.0),
                lambda z: -1 + 4 * z.sigmoid(),
                lambda v, z: z.sigmoid().log() + (-z).sigmoid().log(),
            ),
            (
                lambda: dist.Beta(2.0, 1.0),
                torch.sigmoid,
                lambda v, z: (2 * v * v * (1 - v)).log(),
            ),
            (
                lambda: dist.Exponential(3.0),
                torch.exp,
                lambda v, z: math.log(3) - 3 * v + z,
            ),
            (
                lambda: dist.ImproperUniform(constraints.positive, (), ()),
                torch.exp,
                lambda v, z: z,
            ),
        ],
        ids=["HalfNormal", "Uniform", "Beta", "Exponential", "ImproperUniform"],
    )
    def test_constrained_supports_by_hand(self, law, constrained, log_density):
        potential = from_pyro(lambda: pyro.sample("v", law()))
        z = rand(P, 1)
        value = potential.constrain(z)["v"]
        torch.testing.assert_close(value, constrained(z[:, 0]), **CLOSE)
        torch.testing.assert_close(-potential(z), log_density(value, z[:, 0]), **CLOSE)

    def test_support_that_depends_on_another_site(self):
        def model():
            top = pyro.sample("top", dist.LogNormal(0.0, 1.0))
            pyro.sample("u", dist.Uniform(0.0, top))

        potential = from_pyro(model)
        z = rand(P, 2)
        found = potential.constrain(z)
        torch.testing.assert_close(found["u"], z[:, 0].exp() * z[:, 1].sigmoid(), **CLOSE)
        expected = normal(z[:, 0], 0, torch.ones(())) + (
            z[:, 1].sigmoid().log() + (-z[:, 1]).sigmoid().log()
        )
        torch.testing.assert_close(-potential(z), expected, **CLOSE)

    @pytest.mark.parametrize(
        ("law", "free"),
        [
            (lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])), lambda v: v[:-1]),
            (lambda: dist.LKJCholesky(3, 1.5), lambda v: v[torch.tensor([1, 2, 2]), _COLUMNS]),
            (lambda: dist.LKJ(3, 1.5), lambda v: v[torch.tensor([1, 2, 2]), _COLUMNS]),
        ],
        ids=["Dirichlet", "LKJCholesky", "LKJ"],
    )
    def test_event_supports_against_a_numerical_jacobian(self, law, free):
        potential = from_pyro(lambda: pyro.sample("v", law()))
        z = 0.5 * rand(P, potential.num_params)
        transform = biject_to(law().support)
        for particle, energy in zip(z, potential(z), strict=True):
            jacobian = torch.func.jacrev(lambda point: free(transform(point)))(particle)
            expected = law().log_prob(transform(particle)) + jacobian.slogdet().logabsdet
            torch.testing.assert_close(-energy, expected, rtol=1e-9, atol=1e-9)
        value = potential.constrain(z)["v"]
        assert value.shape == (P, *law().shape())
        torch.testing.assert_close(transform.inv(value), z, rtol=1e-7, atol=1e-7)

    def test_layout_of_batched_and_event_dimensions(self):
        def model():
            pyro.sample("w", dist.Dirichlet(torch.ones(3)).expand([2]).to_event(1))
            with pyro.plate("groups", 4):
                pyro.sample("v", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))

        potential = from_pyro(model)
        assert potential.layout.shapes == {"w": (2, 2), "v": (4, 2)}
        found = potential.constrain(rand(5, potential.num_params))
        assert {k: tuple(v.shape) for k, v in found.items()} == {"w": (5, 2, 3), "v": (5, 4, 2)}
        torch.testing.assert_close(found["w"].sum(-1), torch.ones(5, 2))

    def test_constrain_inverts_in_chunks_too(self):
        whole = from_pyro(line, N, (X, Y))
        parts = from_pyro(line, N, (X, Y), chunk_size=2)
        z = rand(5, 2)
        for potential in (whole, parts):
            found = potential.constrain(z)
            torch.testing.assert_close(found["slope"], z[:, 0])
            torch.testing.assert_close(found["scale"].log(), z[:, 1])


_COLUMNS = torch.tensor([0, 0, 1])

SCHOOLS_Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SCHOOLS_SCALE = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def eight_schools(y=None, scale=None):
    y = torch.tensor(SCHOOLS_Y) if y is None else y
    scale = torch.tensor(SCHOOLS_SCALE) if scale is None else scale
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, scale), obs=y)


class TestWithoutData:
    def test_eight_schools_by_hand(self):
        potential = from_pyro(eight_schools)
        assert potential.num_data is None and potential.log_likelihood_fn is None
        z = rand(P, 10)
        mu, log_tau, eta = z[:, 0], z[:, 1], z[:, 2:]
        tau = log_tau.exp()
        half_cauchy = math.log(2 / (5 * math.pi)) - torch.log1p((tau / 5) ** 2) + log_tau
        theta = mu[:, None] + tau[:, None] * eta
        likelihood = normal(torch.tensor(SCHOOLS_Y), theta, torch.tensor(SCHOOLS_SCALE)).sum(1)
        prior = normal(mu, 0.0, 5.0) + half_cauchy + normal(eta, 0.0, 1.0).sum(1)
        torch.testing.assert_close(-potential(z), prior + likelihood, **CLOSE)
        found = potential.constrain(z)
        assert list(found) == ["mu", "tau", "eta", "theta"]
        torch.testing.assert_close(found["theta"], theta, **CLOSE)

    def test_reparametrised_by_pyro(self):
        from pyro.infer.reparam import LocScaleReparam

        def centred():
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
            tau = pyro.sample("tau", dist.HalfCauchy(5.0))
            with pyro.plate("schools", 8):
                theta = pyro.sample("theta", dist.Normal(mu, tau))
                law = dist.Normal(theta, torch.tensor(SCHOOLS_SCALE))
                pyro.sample("y", law, obs=torch.tensor(SCHOOLS_Y))

        potential = from_pyro(poutine.reparam(centred, config={"theta": LocScaleReparam(0.0)}))
        assert list(potential.layout.shapes) == ["mu", "tau", "theta_decentered"]
        z, plain = rand(P, 10), from_pyro(eight_schools)
        torch.testing.assert_close(potential(z), plain(z), **CLOSE)
        found = potential.constrain(z)["theta"]
        torch.testing.assert_close(found, plain.constrain(z)["theta"], **CLOSE)

    def test_agrees_with_hmc_of_pyro(self):
        from pyro.infer.mcmc.util import initialize_model

        _, energy, _, _ = initialize_model(eight_schools)
        potential = from_pyro(eight_schools)
        z = rand(P, 10)
        tensors = potential.unravel(z)
        for i in range(P):
            one = energy({name: tensor[i] for name, tensor in tensors.items()})
            torch.testing.assert_close(potential(z)[i], one, **CLOSE)

    def test_bound_data_are_a_density_without_batch(self):
        bound = functools.partial(
            eight_schools, torch.tensor(SCHOOLS_Y), scale=torch.tensor(SCHOOLS_SCALE)
        )
        z = rand(P, 10)
        torch.testing.assert_close(from_pyro(bound)(z), from_pyro(eight_schools)(z), **CLOSE)
        assert from_pyro(bound).fingerprint["model"] == "eight_schools"


def schools(scale, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(scale)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, scale), obs=y)


def centred_schools(scale, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, scale), obs=y)


class TestLatentVariablesPerDatum:
    DATA = (torch.tensor(SCHOOLS_SCALE), torch.tensor(SCHOOLS_Y))

    @pytest.mark.parametrize("model", [schools, centred_schools])
    def test_eight_schools_as_people_write_it(self, model):
        data = tuple(leaf.to(torch.get_default_dtype()) for leaf in self.DATA)
        potential = from_pyro(model, example_batch=data)
        assert potential.num_data == 8
        z = rand(P, 10)
        bound = from_pyro(functools.partial(model, *data))
        torch.testing.assert_close(potential(z, Batch(data)), bound(z), **CLOSE)
        theta = potential.constrain(z)["theta"]
        each = normal(data[1], theta, data[0])
        torch.testing.assert_close(potential.log_likelihood(z, Batch(data)), each, **CLOSE)

    @pytest.mark.parametrize("per_particle", [False, True])
    def test_a_batch_is_all_the_data_in_their_order(self, per_particle):
        data = tuple(leaf.to(torch.get_default_dtype()) for leaf in self.DATA)
        potential, z = from_pyro(schools, example_batch=data), rand(P, 10)
        lead = (P,) if per_particle else ()
        whole = Batch(tuple(leaf.expand(*lead, 8) for leaf in data), per_particle)
        assert torch.isfinite(potential(z, whole)).all()
        parts = (slice(4), torch.tensor([1, 0, *range(2, 8)]), torch.zeros(8, dtype=torch.long))
        for part in parts:
            batch = Batch(tuple(leaf[..., part] for leaf in whole.data), per_particle)
            with pytest.raises(ValueError, match=r"\['eta'\].*leave batch_size out"):
                potential(z, batch)

    def test_sampled_scored_and_predicted(self):
        data = tuple(leaf.to(torch.get_default_dtype()) for leaf in self.DATA)
        potential = from_pyro(schools, example_batch=data)
        draws = pvi.sample(
            pvi.sghmc(potential), data, step_size=0.1, num_particles=50, num_warmup=200,
            num_draws=20, thin=10, progress=False,
        )  # fmt: skip
        mu = torch.linspace(-25, 35, 301).view(-1, 1, 1)
        log_tau = torch.linspace(-8, 6, 301).view(1, -1, 1)
        tau = log_tau.exp()
        density = normal(data[1], mu, (data[0] ** 2 + tau**2).sqrt()).sum(-1)
        density = density + normal(mu, 0.0, 5.0)[..., 0]
        density = density + (log_tau - torch.log1p((tau / 5) ** 2))[..., 0]
        exact = float((density.flatten().softmax(0).view(301, 301).sum(1) * mu[:, 0, 0]).sum())
        found = draws.constrained()["mu"]
        error = float(found.mean(1).std()) / math.sqrt(50)
        assert abs(float(found.mean()) - exact) < 5 * error
        assert error < 0.5
        idata = draws.to_arviz(data, log_likelihood=True, posterior_predictive=True)
        assert idata["log_likelihood"]["y"].shape == (50, 20, 8)
        assert idata["posterior_predictive"]["y"].shape == (50, 20, 8)
        assert draws.predict(data[0]).mean.shape == (8,)
        assert torch.isfinite(draws.log_predictive_density(data)).all()
        with pytest.raises(ValueError, match="leave batch_size out"):
            pvi.sample(
                pvi.sghmc(potential), data, batch_size=4, step_size=0.1, num_particles=2,
                progress=False,
            )  # fmt: skip


def plain(x, y, index):
    slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    return slope, scale


def with_plate(x, y, index):
    slope, scale = plain(x, y, index)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def with_subsample_size(x, y, index):
    slope, scale = plain(x, y, index)
    with pyro.plate("data", N, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def with_own_index(x, y, index):
    slope, scale = plain(x, y, index)
    with pyro.plate("data", N, subsample_size=len(x)) as rows:
        pyro.sample("y", dist.Normal(slope * x[rows], scale), obs=y[rows])


def with_primitive(x, y, index):
    slope, scale = plain(x, y, index)
    with pyro.plate("data", N, subsample_size=len(x)):
        x, y = pyro.subsample(x, event_dim=0), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def with_subsample(x, y, index):
    slope, scale = plain(x, y, index)
    with pyro.plate("data", N, subsample=index):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def with_subsample_of_everything(x, y, index):
    slope, scale = plain(x, y, index)
    with pyro.plate("data", N, subsample=index):
        pyro.sample("y", dist.Normal(slope * X[index], scale), obs=Y[index])


def with_fixed_size(x, y, index):
    slope, scale = plain(x, y, index)
    with pyro.plate("data", N, subsample_size=B):
        pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


def without_plate(x, y, index):
    slope, scale = plain(x, y, index)
    pyro.sample("y", dist.Normal(slope * x, scale), obs=y)


FORMS = [
    with_plate,
    with_subsample_size,
    with_own_index,
    with_primitive,
    with_subsample,
    with_subsample_of_everything,
    with_fixed_size,
    without_plate,
]


class TestMinibatches:
    @pytest.mark.parametrize("model", FORMS)
    def test_rescaled_by_n_over_b_exactly_once(self, model):
        data = (X, Y, torch.arange(N))
        potential = from_pyro(model, N, tuple(leaf[:B] for leaf in data))
        rows = torch.tensor([7, 0, 11, 3])
        batch = Batch(tuple(leaf[rows] for leaf in data))
        expected = line_likelihood(Z, X[rows], Y[rows])
        torch.testing.assert_close(potential.log_likelihood(Z, batch), expected, **CLOSE)
        energy = -line_prior(Z) - (N / B) * expected.sum(1)
        torch.testing.assert_close(potential(Z, batch), energy, **CLOSE)

    @pytest.mark.parametrize("model", FORMS)
    def test_each_particle_has_its_own_minibatch(self, model):
        data = (X, Y, torch.arange(N))
        potential = from_pyro(model, N, tuple(leaf[:B] for leaf in data))
        rows = torch.tensor([[7, 0, 11, 3], [1, 2, 3, 4], [5, 5, 6, 0]])
        batch = Batch(tuple(leaf[rows] for leaf in data), per_particle=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = potential.log_likelihood(Z, batch)
        torch.testing.assert_close(values, line_likelihood(Z, X[rows], Y[rows]), **CLOSE)

    @pytest.mark.parametrize("model", [with_plate, with_subsample_size, with_subsample])
    def test_unbiased_over_all_minibatches(self, model):
        data = (X, Y, torch.arange(N))
        potential = from_pyro(model, N, data)
        batches = list(itertools.combinations(range(N), 3))
        rows = torch.tensor(batches)
        one = Z[:1].expand(len(batches), -1).contiguous()
        batch = Batch(tuple(leaf[rows] for leaf in data), per_particle=True)
        full = potential(Z[:1], Batch(data))
        torch.testing.assert_close(potential(one, batch).mean(), full[0], **CLOSE)

    def test_the_full_data_do_not_need_num_data(self):
        potential = from_pyro(line, example_batch=(X, Y))
        assert potential.num_data == N
        expected = -line_prior(Z) - line_likelihood(Z, X, Y).sum(1)
        torch.testing.assert_close(potential(Z, Batch((X, Y))), expected, **CLOSE)

    def test_structures_of_data(self):
        by_name = from_pyro(line, N, {"y": Y, "x": X})
        positional = from_pyro(line, N, [X, Y])
        a = by_name(Z, Batch({"y": Y[:B], "x": X[:B]}))
        torch.testing.assert_close(a, positional(Z, Batch([X[:B], Y[:B]])), **CLOSE)

        def scaled(x, scale):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(x)):
                pyro.sample("x", dist.Normal(mu, scale), obs=x)

        single = from_pyro(functools.partial(scaled, scale=2.0), N, X)
        expected = normal(X[:B], Z[:, :1], 2.0)
        torch.testing.assert_close(single.log_likelihood(Z[:, :1], Batch(X[:B])), expected, **CLOSE)

    @pytest.mark.parametrize("length", [2, 3, 4, 5, N])
    def test_the_data_dimension_is_found_whatever_the_length_of_the_example(self, length):
        def model(x):  # [3 groups, B data, 2 outputs]
            with pyro.plate("groups", 3, dim=-2):
                mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
                with pyro.plate("data", len(x), dim=-1):
                    law = dist.Normal(mu.unsqueeze(-1), 1.0).expand([3, len(x), 2])
                    pyro.sample("x", law.to_event(1), obs=x.expand(3, -1, -1))

        data = rand(N, 2)
        potential = from_pyro(model, N, data[:length])
        z = rand(P, 3)
        values = potential.log_likelihood(z, Batch(data[:B]))
        expected = normal(data[:B], z[:, :, None, None], 1.0).sum((1, 3))
        torch.testing.assert_close(values, expected, **CLOSE)

    def test_data_plate_to_the_left(self):
        def model(x):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
            with pyro.plate("data", N, subsample_size=len(x), dim=-2), pyro.plate("five", 5):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

        data = rand(N, 5)
        potential = from_pyro(model, N, data[:5])
        z = rand(P, 5)
        values = potential.log_likelihood(z, Batch(data[:B]))
        torch.testing.assert_close(values, normal(data[:B], z[:, None], 1.0).sum(2), **CLOSE)

    def test_a_plate_of_fixed_size_beside_another_of_the_same_size(self):
        def model(x):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([B]).to_event(1))
            with pyro.plate("data", N, subsample_size=B, dim=-2), pyro.plate("more", B, dim=-1):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

        data = rand(N, B)
        potential = from_pyro(model, N, data[:B])
        z = rand(P, B)
        values = potential.log_likelihood(z, Batch(data[4:8]))
        torch.testing.assert_close(values, normal(data[4:8], z[:, None], 1.0).sum(2), **CLOSE)

    def test_two_observed_sites_add_up(self):
        def model(x, y):
            line(x, y)
            with pyro.plate("again", len(x)):
                pyro.sample("x", dist.Normal(1.0, 2.0), obs=x)

        potential = from_pyro(model, N, (X, Y))
        expected = line_likelihood(Z, X, Y) + normal(X, 1.0, 2.0)
        torch.testing.assert_close(potential.log_likelihood(Z, Batch((X, Y))), expected, **CLOSE)

    def test_the_prior_is_evaluated_on_one_row(self):
        lengths = []

        def model(x, y):
            lengths.append(len(x))
            line(x, y)

        potential = from_pyro(model, N, (X, Y))
        lengths.clear()
        potential.log_prior(Z)
        potential.constrain(Z)
        potential.init(2)
        assert lengths == [1, 1, 1, 1]

    def test_the_prior_uses_as_many_rows_as_the_model_needs(self):
        def model(x, y):
            if len(x) < 2:
                raise RuntimeError("two rows at least")
            line(x, y)

        torch.testing.assert_close(from_pyro(model, N, (X, Y)).log_prior(Z), line_prior(Z), **CLOSE)

    def test_groups_looked_up_by_index(self):
        def model(group, y):
            spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
            with pyro.plate("groups", 4):
                mu = pyro.sample("mu", dist.Normal(0.0, spread))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mu[group], 1.0), obs=y)

        group = torch.arange(N) % 4
        potential = from_pyro(model, N, (group[:4], Y[:4]))
        z = rand(P, 5)
        prior = normal(z[:, 0], 0.0, 1.0) + normal(z[:, 1:], 0.0, z[:, :1].exp()).sum(1)
        torch.testing.assert_close(potential.log_prior(z), prior, **CLOSE)
        rows = torch.tensor([[3, 8], [0, 1], [11, 11]])
        values = potential.log_likelihood(z, Batch((group[rows], Y[rows]), True))
        mean = z[:, 1:].gather(1, group[rows])
        torch.testing.assert_close(values, normal(Y[rows], mean, 1.0), **CLOSE)


class TestScalesMasksFactors:
    def test_scales_of_the_user_stay(self):
        def model(x, y):
            with poutine.scale(scale=0.25):
                slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            with poutine.scale(scale=3.0), pyro.plate("data", N, subsample_size=len(x)):
                pyro.sample("y", dist.Normal(slope * x, scale), obs=y)

        potential = from_pyro(model, N, (X, Y))
        prior = 0.25 * normal(Z[:, 0], 0.5, 2.0) + normal(Z[:, 1], 0.0, 1.0)
        torch.testing.assert_close(potential.log_prior(Z), prior, **CLOSE)
        expected = 3 * line_likelihood(Z, X[:B], Y[:B])
        batch = Batch((X[:B], Y[:B]))
        torch.testing.assert_close(potential.log_likelihood(Z, batch), expected, **CLOSE)

    def test_the_jacobian_is_not_scaled(self):
        def model():
            with poutine.scale(scale=0.25):
                pyro.sample("v", dist.Exponential(1.0))

        z = rand(P, 1)
        expected = -0.25 * z[:, 0].exp() + z[:, 0]
        torch.testing.assert_close(-from_pyro(model)(z), expected, **CLOSE)

    def test_weights_and_masks_per_datum(self):
        def model(x, y, weight, seen):
            with poutine.scale(scale=weight), poutine.mask(mask=seen):
                line(x, y)

        def inside(x, y, weight, seen):
            slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            with pyro.plate("data", len(x)), poutine.scale(scale=weight), poutine.mask(mask=seen):
                pyro.sample("y", dist.Normal(slope * x, scale), obs=y)

        weight, seen = rand(N).exp(), torch.arange(N) % 3 > 0
        potential = from_pyro(inside, N, (X, Y, weight, seen))
        values = potential.log_likelihood(Z, Batch((X, Y, weight, seen)))
        expected = line_likelihood(Z, X, Y) * weight * seen
        torch.testing.assert_close(values, expected, **CLOSE)
        torch.testing.assert_close(potential.log_prior(Z), line_prior(Z), **CLOSE)
        with pytest.raises(ValueError, match=r"slope.*depend on the data"):
            from_pyro(model, N, (X, Y, weight, seen))

    def test_values_that_are_masked_may_be_missing(self):
        def model(y, seen):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)), poutine.mask(mask=seen):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        seen = torch.arange(N) % 3 > 0
        potential = from_pyro(model, N, (torch.where(seen, Y, math.nan), seen))
        z = rand(P, 1)
        values = potential.log_likelihood(z, Batch((torch.where(seen, Y, math.nan), seen)))
        torch.testing.assert_close(values, normal(Y, z, 1.0) * seen, **CLOSE)

    def test_masked_latent_site_keeps_its_jacobian(self):
        def model():
            pyro.sample("v", dist.Exponential(1.0).mask(False))

        z = rand(P, 1)
        torch.testing.assert_close(-from_pyro(model)(z), z[:, 0], **CLOSE)

    def test_factors(self):
        def model(x, y):
            slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.factor("once", -(slope**4))
            pyro.sample("pseudo", dist.Normal(scale, 1.0), obs=torch.tensor(0.3))
            with pyro.plate("data", N, subsample_size=len(x)):
                pyro.factor("inside", -slope)
                pyro.factor("vector", normal(y, slope * x, scale))

        potential = from_pyro(model, N, (X[:5], Y[:5]))
        prior = line_prior(Z) - Z[:, 0] ** 4 + normal(Z[:, 1].exp(), 0.3, 1.0)
        torch.testing.assert_close(potential.log_prior(Z), prior, **CLOSE)
        values = potential.log_likelihood(Z, Batch((X[:B], Y[:B])))
        torch.testing.assert_close(values, line_likelihood(Z, X[:B], Y[:B]) - Z[:, :1], **CLOSE)

    def test_deterministic_sites_count_nothing_and_are_exported_if_free_of_data(self):
        def model(x, y):
            slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            pyro.deterministic("double", 2 * slope * torch.ones(2, 3))
            pyro.deterministic("order", torch.tensor([1, 2]))
            with pyro.plate("data", len(x)):
                mean = pyro.deterministic("mean", slope * x, event_dim=0)
                pyro.sample("y", dist.Normal(mean, scale), obs=y)

        potential = from_pyro(model, N, (X, Y))
        expected = -line_prior(Z) - line_likelihood(Z, X, Y).sum(1)
        torch.testing.assert_close(potential(Z, Batch((X, Y))), expected, **CLOSE)
        found = potential.constrain(Z)
        assert list(found) == ["slope", "scale", "double"]
        torch.testing.assert_close(found["double"], 2 * Z[:, :1, None].expand(-1, 2, 3))


class Net(PyroModule):
    """A net under independent normal priors, made while Pyro's validation is on."""

    def __init__(self, likelihood=True):
        super().__init__()
        self.a = PyroModule[nn.Linear](2, 4)
        self.b = PyroModule[nn.Linear](4, 1)
        for layer in (self.a, self.b):
            for name in ("weight", "bias"):
                shape = getattr(layer, name).shape
                prior = dist.Normal(0.0, 0.7).expand(shape).to_event(len(shape))
                setattr(layer, name, PyroSample(prior))

    def forward(self, x, y=None):
        mean = self.b(torch.tanh(self.a(x))).squeeze(-1)
        with pyro.plate("data", N, subsample_size=len(x)):
            pyro.sample("y", dist.Normal(mean, 0.3), obs=y)
        return mean


class TestModules:
    def test_a_bayesian_net_is_the_same_net_as_from_module(self):
        data = (rand(N, 2), Y)
        ours = from_pyro(Net(), N, data)
        module = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        theirs = pvi.from_module(module, pvi.Gaussian(scale=0.3), pvi.Normal(0.7), N)
        assert list(ours.layout.shapes) == ["a.weight", "a.bias", "b.weight", "b.bias"]
        assert list(ours.layout.shapes.values()) == list(theirs.layout.shapes.values())
        rows = torch.tensor([[0, 3], [4, 4], [1, 2]])
        batch = Batch(tuple(leaf[rows] for leaf in data), True)
        a = rand(P, ours.num_params).requires_grad_()
        b = a.detach().clone().requires_grad_()
        energies = ours(a, batch), theirs(b, batch)
        torch.testing.assert_close(*energies, **CLOSE)
        gradients = [
            torch.autograd.grad(e.sum(), z)[0] for e, z in zip(energies, (a, b), strict=True)
        ]
        torch.testing.assert_close(*gradients, **CLOSE)

    def test_an_invalid_particle_is_data_and_no_exception(self):
        potential = from_pyro(Net(), N, (rand(N, 2), Y))
        z = rand(P, potential.num_params)
        expected = potential(z, Batch((rand(N, 2), Y)))
        z[1] = math.nan
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = potential(z, Batch((rand(N, 2), Y)))
        assert values[1].isnan()
        torch.testing.assert_close(values[::2], expected[::2], **CLOSE)

    def test_parameters_without_prior_stay_and_are_named(self):
        model = Net()
        del model.b.bias
        model.b.bias = nn.Parameter(torch.tensor([0.2]))
        x = rand(N, 2)
        with pytest.warns(UserWarning, match=r"\['b.bias'\] are parameters without a prior"):
            potential = from_pyro(model, N, (x, Y))
        assert list(potential.layout.shapes) == ["a.weight", "a.bias", "b.weight"]
        assert potential.fingerprint["fixed"] == ["b.bias"]
        z = rand(P, potential.num_params)
        full = torch.cat([z, torch.full((P, 1), 0.2)], 1)
        reference = from_pyro(Net(), N, (x, Y))
        likelihood = reference.log_likelihood(full, Batch((x, Y)))
        torch.testing.assert_close(potential.log_likelihood(z, Batch((x, Y))), likelihood, **CLOSE)
        with torch.no_grad():
            model.b.bias.fill_(9.0)
        torch.testing.assert_close(potential.log_likelihood(z, Batch((x, Y))), likelihood, **CLOSE)

    def test_constrained_parameters_of_a_module(self):
        class Scaled(PyroModule):
            def __init__(self):
                super().__init__()
                self.scale = PyroParam(torch.tensor(2.0), constraints.positive)
                self.slope = PyroSample(dist.Normal(0.0, 1.0))

            def forward(self, x, y):
                mean = self.slope * x
                with pyro.plate("data", len(x)):
                    pyro.sample("y", dist.Normal(mean, self.scale), obs=y)

        with pytest.warns(UserWarning, match="'scale'"):
            potential = from_pyro(Scaled(), N, (X, Y))
        values = potential.log_likelihood(Z[:, :1], Batch((X, Y)))
        torch.testing.assert_close(values, normal(Y, Z[:, :1] * X, 2.0), **CLOSE)

    def test_dropout_and_running_statistics_are_off(self):
        class Noisy(Net):
            def forward(self, x, y=None):
                return super().forward(nn.functional.dropout(x, training=self.training), y)

        data = (rand(N, 2), Y)
        z = rand(P, 17)
        model = Noisy()
        expected = from_pyro(Net(), N, data)(z, Batch(data))
        torch.testing.assert_close(from_pyro(model, N, data)(z, Batch(data)), expected, **CLOSE)
        assert model.training


class TestParameters:
    def test_registered_modules_are_fixed_and_stay_as_they_are(self):
        net = nn.Linear(1, 1)
        weights = [p.detach().clone() for p in net.parameters()]

        def model(x, y):
            pyro.module("net", net)
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                mean = slope * net(x[:, None]).squeeze(-1)
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

        with pytest.warns(UserWarning, match=r"\['net\$\$\$weight', 'net\$\$\$bias'\]"):
            potential = from_pyro(model, N, (X, Y))
        values = potential.log_likelihood(Z[:, :1], Batch((X, Y)))
        mean = Z[:, :1] * (X * weights[0][0, 0] + weights[1])
        torch.testing.assert_close(values.detach(), normal(Y, mean, 1.0), **CLOSE)
        for parameter, before in zip(net.parameters(), weights, strict=True):
            assert isinstance(parameter, nn.Parameter) and torch.equal(parameter, before)

    def test_held_at_the_values_of_the_store_which_is_left_alone(self):
        def model(x, y):
            slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            scale = pyro.param("sd", torch.tensor(2.0), constraint=constraints.positive)
            shift = pyro.param("shift", lambda: torch.randn(()))
            fresh = pyro.param("fresh", lambda: torch.randn(()))
            pyro.deterministic("saw", fresh)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(slope * x + shift + fresh, scale), obs=y)

        try:
            pyro.param("sd", torch.tensor(3.0), constraint=constraints.positive)
            pyro.param("shift", torch.tensor(0.4))
            pyro.param("unrelated", torch.tensor(1.0))
            with pytest.warns(UserWarning, match=r"\['sd', 'shift', 'fresh'\]"):
                potential = from_pyro(model, N, (X, Y))
            assert sorted(pyro.get_param_store().keys()) == ["sd", "shift", "unrelated"]
            pyro.get_param_store()["sd"] = torch.tensor(7.0)
            pyro.param("shift").data.fill_(9.0)
            z = Z[:, :1]
            fresh = potential.constrain(z)["saw"][0]
            for _ in range(2):
                values = potential.log_likelihood(z, Batch((X, Y)))
                torch.testing.assert_close(values, normal(Y, z * X + 0.4 + fresh, 3.0), **CLOSE)
            torch.testing.assert_close(pyro.param("sd").detach(), torch.tensor(7.0))
        finally:
            pyro.clear_param_store()


class TestLoop:
    def test_control_flow_on_latent_values_warns_once_and_agrees(self):
        def kinked(x, y):
            slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            mean = slope * x if slope > 0 else slope * x.abs()
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, scale), obs=y)

        potential = from_pyro(kinked, N, (X, Y))
        with pytest.warns(UserWarning, match="Pyro model kinked cannot be vectorised") as caught:
            energy = potential(Z, Batch((X, Y)))
            potential(Z, Batch((X, Y)))
            potential.constrain(Z)
        assert len(caught) == 1
        x = torch.where(Z[:, :1] > 0, X, X.abs())
        expected = -line_prior(Z) - normal(Y, Z[:, :1] * x, Z[:, 1:].exp()).sum(1)
        torch.testing.assert_close(energy, expected, **CLOSE)

    @pytest.mark.parametrize("per_particle", [False, True])
    def test_loop_and_vmap_agree(self, per_particle):
        def stubborn(x, y):
            line(x, y)
            if pyro.sample("extra", dist.Normal(0.0, 1.0)).item() > 1e9:
                raise AssertionError

        def relaxed(x, y):
            line(x, y)
            pyro.sample("extra", dist.Normal(0.0, 1.0))

        data = (rand(P, B), rand(P, B)) if per_particle else (X, Y)
        z = rand(P, 3)
        vmapped = from_pyro(relaxed, N, (X, Y))(z, Batch(data, per_particle))
        with pytest.warns(UserWarning, match="cannot be vectorised"):
            looped = from_pyro(stubborn, N, (X, Y))(z, Batch(data, per_particle))
        torch.testing.assert_close(looped, vmapped, **CLOSE)


class TestRefusals:
    def refuse(self, match, model, *args, **kwargs):
        with pytest.raises(ValueError, match=match):
            from_pyro(model, *args, **kwargs)

    def test_arguments(self):
        self.refuse("num_data must be an integer", line, 0, (X, Y))
        self.refuse("num_data needs an example_batch", line, N)
        self.refuse(r"must hold 2 to 12 \(num_data\) data, got 1", line, N, (X[:1], Y[:1]))
        self.refuse(r"must hold 2 to 6 \(num_data\) data, got 12", line, 6, (X, Y))
        self.refuse("one first dimension B >= 1", line, N, (X, Y[:3]))
        self.refuse("functools.partial", line, N, (X, 1.0))
        self.refuse("one first dimension", line, N, (X, torch.tensor(1.0)))
        self.refuse("one first dimension", line, N, ())
        self.refuse("chunk_size must be an integer", line, N, (X, Y), chunk_size=0)

    def test_nothing_to_sample(self):
        self.refuse("no latent sites", lambda: pyro.factor("f", torch.tensor(1.0)))

    def test_mixed_dtypes(self):
        def model():
            pyro.sample("a", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("b", dist.Normal(torch.tensor(0.0, dtype=torch.float32), 1.0))

        self.refuse("one dtype and device", model)

    def test_sites_that_no_gradient_reaches(self):
        self.refuse("'v' is discrete", lambda: pyro.sample("v", dist.Bernoulli(0.5)))
        self.refuse("'v' is discrete", lambda: pyro.sample("v", dist.Poisson(3.0)))
        law = dist.ProjectedNormal(torch.ones(3))
        self.refuse("no bijection from the real line", lambda: pyro.sample("v", law))

    def test_two_sites_of_one_name(self):
        def model():
            pyro.sample("v", dist.Normal(0.0, 1.0))
            pyro.sample("v", dist.Normal(0.0, 1.0))

        self.refuse("two sample sites named 'v'", model)

    @pytest.mark.parametrize("size", [{}, {"subsample_size": None}, {"subsample": None}])
    def test_latent_variables_per_datum(self, size):
        def model(x):
            known = {
                "subsample_size": {"size": N, "subsample_size": len(x)},
                "subsample": {"size": N, "subsample": torch.arange(len(x))},
            }
            plate = known[next(iter(size))] if size else {"size": len(x)}
            with pyro.plate("data", **plate):
                local = pyro.sample("local", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(local, 1.0), obs=x)
            pyro.sample("global", dist.Normal(0.0, 1.0))

        match = r"\['local'\] have one value per datum.*all the data as example_batch"
        self.refuse(match, model, N, X[:B])
        assert from_pyro(model, N, X).num_data == N

    def test_latent_variables_per_datum_without_a_plate(self):
        def model(x):
            local = pyro.sample("local", dist.Normal(0.0, 1.0).expand([len(x)]).to_event(1))
            pyro.sample("x", dist.Normal(local, 1.0), obs=x)

        self.refuse(r"\['local'\] have one value per datum", model, N, X[:B])

    def test_a_plate_of_fixed_size_with_latent_variables(self):
        def model(x):
            with pyro.plate("data", N, subsample_size=B) as rows:
                local = pyro.sample("local", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(local, 1.0), obs=x[rows])

        self.refuse(r"\['local'\] have one value per datum", model, N, X[:B])

    def test_missing_observations(self):
        def model(x, y=None):
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

        self.refuse(r"\['y'\].*should be observed.*missing from the batch", model, N, X)

        def regardless(x):
            pyro.sample("slope", dist.Normal(0.0, 1.0))

        self.refuse("No observed site of the model regardless depends", regardless, N, X)

    def test_terms_that_are_no_sum_over_data(self):
        def joint(x, y):
            slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            pyro.sample("y", dist.Normal(slope * x, 1.0).to_event(1), obs=y)

        def factor(x, y):
            line(x, y)
            pyro.factor("mean", -pyro.sample("v", dist.Normal(0.0, 1.0)) * x.mean())

        def count(x, y):
            line(x, y)
            pyro.factor("count", -0.1 * len(x) * pyro.sample("v", dist.Normal(0.0, 1.0)))

        def needs_two(x, y):
            if len(x) < 2:
                raise RuntimeError("two rows at least")
            count(x, y)

        def prior(x, y):
            slope = pyro.sample("slope", dist.Normal(y.mean(), y.std()))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

        def one_by_one(x, y):
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            for i in pyro.plate("data", len(x)):
                pyro.sample(f"y{i}", dist.Normal(slope * x[i], 1.0), obs=y[i])

        batch = (X[:B], Y[:B])
        self.refuse(r"\['y'\] depend on the data but have no dimension", joint, N, batch)
        self.refuse(r"\['mean'\] depend on the data", factor, N, batch)
        self.refuse(r"\['count'\] depend on the data", count, N, batch)
        self.refuse(r"\['slope'\] depend on the data", prior, N, batch)
        self.refuse(r"\['y0', 'y1'.*depend on the data", one_by_one, N, batch)
        self.refuse(r"\['count'\] depend on the data", needs_two, N, batch)
        self.refuse(r"\['slope'\] depend on the data.*functools.partial", prior, N, (X, Y))
        bound = from_pyro(functools.partial(prior, X, Y))
        assert bound.num_data is None
        for model in (joint, factor, count, one_by_one, needs_two):
            bound, whole = from_pyro(functools.partial(model, X, Y)), from_pyro(model, N, (X, Y))
            z = rand(P, whole.num_params)
            torch.testing.assert_close(whole(z, Batch((X, Y))), bound(z), **CLOSE)

    def test_dependence_on_data_is_seen_on_a_blank_example(self):
        def model(x):
            v = pyro.sample("v", dist.Normal(0.0, 1.0))
            pyro.factor("mean", -v * x.mean())
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(v, 1.0), obs=x)

        self.refuse(r"\['mean'\] depend on the data", model, N, torch.zeros(B))

    def test_plates_that_subsample_otherwise(self):
        def wrong_total(x):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 100, subsample_size=len(x)):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

        self.refuse(
            "'data' takes 4 of 100, but the batch has 4 of num_data=12", wrong_total, N, X[:B]
        )

        def its_own(x):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x), subsample_size=3) as rows:
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])

        self.refuse("'data' takes 3 of 12, but the batch has 12", its_own, N, X)
        self.refuse("'data' takes 3 of 12, but the batch has no data", lambda: its_own(X))

    def test_another_length_than_a_plate_of_fixed_size(self):
        data = (X, Y, torch.arange(N))
        potential = from_pyro(with_fixed_size, N, tuple(leaf[:B] for leaf in data))
        with pytest.raises(ValueError, match="takes 4 of 12, but the batch has 1 of"):
            potential(Z, Batch(tuple(leaf[:1] for leaf in data)))

    def test_a_batch_that_is_broadcast(self):
        def model(x, y):
            slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            with pyro.plate("data", N):
                pyro.sample("y", dist.Normal(slope * x, scale), obs=y)

        potential = from_pyro(model, N, (X, Y))
        expected = -line_prior(Z) - line_likelihood(Z, X, Y).sum(1)
        torch.testing.assert_close(potential(Z, Batch((X, Y))), expected, **CLOSE)
        with pytest.raises(ValueError, match=r"runs on 12 data only, got \[1\]"):
            potential(Z, Batch((X[:1], Y[:1])))

    def test_a_scale_that_holds_n_over_b_already(self):
        def model(x, y):
            slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            with poutine.scale(scale=N / len(x)), pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

        self.refuse(
            "'y' has a scale that changes.*from 3 to 4.*N/B already", model, N, (X[:B], Y[:B])
        )

    def test_observed_values_outside_their_support(self):
        def model(y):
            logit = pyro.sample("logit", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Bernoulli(logits=logit), obs=y)

        from_pyro(model, N, (X > 0).double())
        self.refuse("'y' has observed values outside its support", model, N, 2.0 * (X > 0))

    def test_observed_values_that_are_nan(self):
        def model(x):
            p = pyro.sample("p", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(p, 1.0), obs=x)

        values = torch.where(X > 0, X, torch.nan)
        self.refuse("'y' has observed values that are NaN.*mask", model, N, values)

    def test_two_dimensions_that_follow_the_batch(self):
        def model(x):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x + x[:, None])

        self.refuse(r"any of its dimensions \[-2, -1\]", model, N, X)

    def test_sites_that_come_and_go(self):
        def model(x, y):
            slope = pyro.sample("slope", dist.Normal(0.5, 2.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
            if len(x) == 5:
                pyro.sample("surprise", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(slope * x, scale), obs=y)

        potential = from_pyro(model, N, (X, Y))
        with pytest.raises(ValueError, match=r"\['surprise'\] are there in some runs of the model"):
            potential(Z, Batch((X[:5], Y[:5])))

    def test_errors_of_the_model_itself_come_through(self):
        def model(x):
            pyro.sample("v", dist.Normal(0.0, 1.0))
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            from_pyro(model, N, X)


class TestGlobalState:
    @pytest.mark.parametrize("ours", [True, False])
    @pytest.mark.parametrize("torchs", [True, False])
    def test_validation_is_restored(self, ours, torchs):
        laws = torch.distributions.Distribution
        before = laws._validate_args
        try:
            with pyro.validation_enabled(ours):
                laws.set_default_validate_args(torchs)
                potential = from_pyro(line, N, (X, Y))
                potential(Z, Batch((X, Y)))
                potential.constrain(Z)
                potential.init(2)
                with pytest.raises(ValueError, match="one first dimension"):
                    potential(Z, Batch((X, Y[:2])))
                assert laws._validate_args is torchs
                assert pyro.distributions.is_validation_enabled() is ours
                assert pyro.infer.is_validation_enabled() is ours
                assert pyro.poutine.is_validation_enabled() is ours
        finally:
            laws.set_default_validate_args(before)

    def test_distributions_of_the_user_keep_their_validation(self):
        law = dist.Normal(0.0, 1.0, validate_args=True).expand([2]).to_event(1)
        potential = from_pyro(lambda: pyro.sample("v", law))
        assert potential(torch.full((1, 2), math.nan)).isnan()
        with pytest.raises(ValueError, match="within the support"):
            law.log_prob(torch.full((2,), math.nan))

    def test_random_numbers_of_the_user_are_left_alone(self):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        potential = from_pyro(with_subsample_size, N, (X, Y, torch.arange(N)))
        potential.init(3)
        potential(Z, Batch((X[:B], Y[:B], torch.arange(B))))
        posterior_predictive(eight_schools, {"mu": torch.zeros(3)})
        assert torch.equal(torch.rand(3), expected)

    def test_threads(self):
        potential = from_pyro(line, N, (X, Y))
        expected = potential(Z, Batch((X, Y)))
        wrong = []

        def work():
            for _ in range(15):
                if not torch.equal(potential(Z, Batch((X, Y))), expected):
                    wrong.append(1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_fingerprint_is_json_and_tells_models_apart(self):
        a = from_pyro(line, N, (X, Y)).fingerprint
        assert json.loads(json.dumps(a)) == a
        assert a["kind"] == "pyro" and a["model"] == "line" and a["num_data"] == N
        assert a["shapes"] == {"slope": [], "scale": []}
        assert a["supports"]["slope"] == "Real()"
        assert a != from_pyro(line, N + 1, (X, Y)).fingerprint
        assert a != from_pyro(eight_schools).fingerprint

    def test_compiled_code_calls_the_model_eagerly(self):
        potential = from_pyro(line, N, (X, Y))
        batch = Batch((X, Y))
        compiled = torch.compile(lambda z: potential(z, batch) * 2, backend="eager")
        torch.testing.assert_close(compiled(Z), 2 * potential(Z, batch), **CLOSE)
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(lambda z: potential(z, batch), backend="eager", fullgraph=True)(Z)


class TestInit:
    def test_prior_is_the_default_and_follows_the_hierarchy(self):
        def model():
            mu = pyro.sample("mu", dist.Normal(3.0, 0.5))
            scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.25))
            with pyro.plate("three", 3):
                pyro.sample("v", dist.Normal(mu, scale))

        potential = from_pyro(model)
        assert list(potential.starts.methods) == ["prior", "uniform"]
        count = 500
        z = potential.init(count, ParticleStreams(0))
        assert z.shape == (count, 5) and z.dtype == torch.float64
        standard = torch.stack(
            [
                (z[:, 0] - 3) / 0.5,
                (z[:, 1] + 1) / 0.25,
                (z[:, 2] - z[:, 0]) / z[:, 1].exp(),
                (z[:, 4] - z[:, 0]) / z[:, 1].exp(),
            ],
            1,
        )
        assert (standard.mean(0).abs() * math.sqrt(count) < 5).all()
        assert ((standard.square().mean(0) - 1).abs() * math.sqrt(count / 2) < 5).all()

    def test_reproducible(self):
        potential = from_pyro(line, N, (X, Y))
        for method in ("prior", "uniform"):
            a, b, c = (potential.init(4, ParticleStreams(seed), method) for seed in (1, 1, 2))
            assert torch.equal(a, b) and not torch.equal(a, c)
            assert len(a.unique()) == a.numel()

    def test_uniform_is_on_minus_two_to_two(self):
        z = from_pyro(line, N, (X, Y)).init(300, method="uniform")
        assert z.abs().max() < 2 and z.abs().max() > 1.9
        assert (z.mean(0).abs() / math.sqrt(16 / 12 / 300) < 5).all()

    def test_improper_priors_start_uniformly(self):
        def model():
            pyro.sample("a", dist.Normal(0.0, 1.0))
            pyro.sample("b", dist.ImproperUniform(constraints.simplex, (2,), (3,)))

        potential = from_pyro(model)
        assert potential.layout.shapes == {"a": (), "b": (2, 2)}
        assert list(potential.starts.methods) == ["uniform"]
        assert potential.init(3).abs().max() < 2

    def test_infinite_coordinates_of_prior_draws_are_replaced(self):
        def model():
            pyro.sample("edge", Edge(torch.ones(2)).to_event(1))

        class Edge(dist.Exponential):
            def sample(self, sample_shape=()):
                return torch.tensor([0.0, math.e])

        z = from_pyro(model).init(50)
        assert (z[:, 0].abs() < 2).all() and len(z[:, 0].unique()) == 50
        torch.testing.assert_close(z[:, 1], torch.ones(50))


class TestPredictive:
    def model(self, x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        shift = pyro.deterministic("shift", slope + 1)
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("mean", slope * x + shift, event_dim=0)
            return pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    def test_law_of_the_draws(self):
        slope = rand(400)
        found = posterior_predictive(self.model, {"slope": slope}, X[:2], seed=1)
        assert {k: tuple(v.shape) for k, v in found.items()} == {
            "shift": (400,),
            "mean": (400, 2),
            "y": (400, 2),
        }
        torch.testing.assert_close(found["shift"], slope + 1)
        torch.testing.assert_close(found["mean"], slope[:, None] * X[:2] + slope[:, None] + 1)
        noise = (found["y"] - found["mean"]) / 0.5
        assert noise.mean().abs() * math.sqrt(noise.numel()) < 5
        assert (noise.square().mean() - 1).abs() * math.sqrt(noise.numel() / 2) < 5

    def test_same_values_as_predictive(self):
        samples = {"slope": rand(6)}
        ours = posterior_predictive(self.model, samples, (X,))
        theirs = Predictive(self.model, samples, parallel=False)(X)
        assert set(ours) == set(theirs)
        torch.testing.assert_close(ours["mean"], theirs["mean"])
        torch.testing.assert_close(ours["shift"], theirs["shift"].squeeze(-1))

    def test_reproducible(self):
        a, b, c = (
            posterior_predictive(self.model, {"slope": rand(6)}, {"x": X}, seed)["y"]
            for seed in (0, 0, 1)
        )
        assert torch.equal(a, b) and not torch.equal(a, c)

    def test_from_draws_of_a_net(self):
        model = Net()
        x = rand(N, 2)
        potential = from_pyro(model, N, (x, Y))
        z = potential.init(5)
        found = posterior_predictive(model, potential.constrain(z), x[:3])
        assert found["y"].shape == (5, 3)

    def test_parameters(self):
        def model():
            shift = pyro.param("shift", torch.tensor(1.0))
            pyro.deterministic("sum", pyro.sample("v", dist.Normal(0.0, 1.0)) + shift)

        samples = {"v": rand(3)}
        found = posterior_predictive(model, samples)["sum"]
        torch.testing.assert_close(found, samples["v"] + 1)
        found = posterior_predictive(model, samples, fixed={"shift": torch.tensor(5.0)})["sum"]
        torch.testing.assert_close(found, samples["v"] + 5)

    def test_sites_in_the_samples_are_not_drawn(self):
        samples = from_pyro(eight_schools).constrain(rand(4, 10))
        assert list(posterior_predictive(eight_schools, samples)) == ["y"]
        partial = {name: samples[name] for name in ("mu", "tau")}
        found = posterior_predictive(eight_schools, partial)
        assert list(found) == ["eta", "theta", "y"]
        expected = samples["mu"][:, None] + samples["tau"][:, None] * found["eta"]
        torch.testing.assert_close(found["theta"], expected)

    def test_refusals(self):
        for samples in ({}, {"slope": rand(0)}, {"slope": rand(3), "other": rand(2)}):
            with pytest.raises(ValueError, match="with one S >= 1, got"):
                posterior_predictive(self.model, samples, X)


def test_sampling_a_conjugate_model():
    """The mean of a normal under a flat prior: the posterior is Normal(mean(x), 1 / N)."""

    def model(x):
        mu = pyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    potential = from_pyro(model, example_batch=X)
    draws = pvi.sample(
        pvi.sghmc(potential),
        data=X,
        step_size=0.1,
        num_particles=20,
        num_warmup=100,
        num_draws=50,
        thin=4,
        progress=False,
    )
    mu = draws.constrained()["mu"]
    assert mu.shape == (20, 50)
    standard = (mu - X.mean()) * math.sqrt(N)
    assert standard.mean().abs() < 0.25
    assert (standard.var() - 1).abs() < 0.35


def test_data_in_the_place_of_their_number_are_told_where_to_go():
    with pytest.raises(TypeError, match=r"example_batch=\(x, y\).*got a Tensor"):
        pvi.from_pyro(lambda x, y: None, torch.zeros(3), torch.zeros(3))


def test_a_model_with_data_says_where_they_go():
    def regression(x, y=None):
        pyro.sample("slope", dist.Normal(0.0, 1.0))

    with pytest.raises(
        TypeError, match=r"missing a required argument: 'x'.*example_batch=\(x, y\)"
    ):
        pvi.from_pyro(regression)


def plate_of_a_number(num):
    """A regression whose plate has a number for its size, and its data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, generator=generator)
    y = 0.5 * x + torch.randn(num, generator=generator)

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    return from_pyro(model, example_batch=(x, y)), (x, y)


def test_a_plate_of_a_number_is_sampled_and_diagnosed_on_all_the_data():
    potential, data = plate_of_a_number(1500)
    draws = pvi.sample(potential, data, num_particles=8, seed=0, progress=False)
    precision = 1 + float(data[0].square().sum())
    exact = float((data[0] * data[1]).sum()) / precision
    error = float(draws.particles.mean()) - exact
    assert abs(error) < 5 * precision**-0.5 / float(draws.ess().min()) ** 0.5
    assert not draws.diagnose(data, verbose=False).findings
    assert draws.log_likelihood(data, thin=20).shape[-1] == 1500


def test_a_plate_of_a_number_takes_no_minibatches():
    potential, data = plate_of_a_number(80)
    with pytest.raises(ValueError, match=r"runs on 80 data only, got \[32\].*len\(batch\)"):
        pvi.sample(
            pvi.sgld(potential), data, step_size=1e-4, batch_size=32, num_particles=2, num_draws=3
        )


def observed_together():
    """A Gaussian process: with its latent variable fixed, exact."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 3, 20)
    y = torch.sin(x) + 0.3 * torch.randn(20, generator=generator)
    kernel = torch.exp(-0.5 * (x[:, None] - x) ** 2) + 0.1 * torch.eye(20)

    def model(x, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.MultivariateNormal(mean * torch.ones(len(x)), kernel), obs=y)

    return from_pyro(model, example_batch=(x, y)), (x, y), kernel


def test_a_vector_observed_as_one_is_sampled_and_diagnosed():
    potential, data, kernel = observed_together()
    draws = pvi.sample(potential, data, num_particles=8, seed=0, progress=False)
    ones = torch.ones(20)
    precision = 1 + float(ones @ torch.linalg.solve(kernel, ones))
    exact = float(ones @ torch.linalg.solve(kernel, data[1])) / precision
    error = float(draws.particles.mean()) - exact
    assert abs(error) < 5 * precision**-0.5 / float(draws.ess().min()) ** 0.5
    assert not draws.diagnose(data, verbose=False).findings


def test_a_vector_observed_as_one_takes_no_minibatches():
    potential, data, _ = observed_together()
    with pytest.raises(ValueError, match=r"runs on 20 data only, got \[5\]"):
        pvi.sample(
            pvi.sgld(potential), data, step_size=1e-4, batch_size=5, num_particles=2, num_draws=3
        )


def test_a_vector_observed_as_one_has_no_log_likelihood_of_single_data():
    potential, data, _ = observed_together()
    draws = pvi.Draws.from_tensor(torch.zeros(2, 5, 1), potential)
    with pytest.raises(ValueError, match="terms of single data"):
        draws.log_likelihood(data)


def test_latent_variables_of_data_are_diagnosed():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, generator=generator)

    def model(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    draws = pvi.sample(from_pyro(model, example_batch=x), x, num_particles=8, progress=False)
    assert not draws.diagnose(x, verbose=False).findings
