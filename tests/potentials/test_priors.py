"""Priors against densities written by hand, in float64, and their draws against their laws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import nn

import particlevi as pvi
from particlevi.typing import Batch

F64 = torch.float64
P, N = 4, 30


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def net():
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)).double()


def posterior(prior, module=None, likelihood=None):
    return pvi.from_module(module or net(), likelihood or pvi.Gaussian(1.0), prior, num_data=N)


def close(found, expected):
    expected = torch.as_tensor(expected, dtype=F64)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def summed(values):
    return values.reshape(len(values), -1).sum(1)


CENTRE = {"0.weight": rand(2, 3, seed=5), "*.bias": 0.5}


@pytest.mark.parametrize(
    ("prior", "law"),
    [
        (pvi.Normal(0.3, mean=CENTRE), lambda w, m: stats.norm.logpdf(w, m, 0.3)),
        (pvi.Laplace(0.3, mean=CENTRE), lambda w, m: stats.laplace.logpdf(w, m, 0.3)),
        (pvi.StudentT(4.0, 0.3, mean=CENTRE), lambda w, m: stats.t.logpdf(w, 4.0, m, 0.3)),
    ],
    ids=["normal", "laplace", "student"],
)
def test_a_prior_with_a_mean(prior, law):
    potential, theta = posterior(prior), rand(P, 11)
    parts = potential.unravel(theta)
    means = {"0.weight": CENTRE["0.weight"], "0.bias": 0.5, "2.weight": 0.0, "2.bias": 0.5}
    close(potential.log_prior(theta), sum(summed(law(parts[n], m)) for n, m in means.items()))
    points = potential.init(4000, method="prior")
    wide = 6 * float(points.std(0).max()) / math.sqrt(4000)
    assert (points[:, :6].mean(0) - CENTRE["0.weight"].flatten()).abs().max() < wide


def test_a_prior_centred_at_a_trained_net():
    module = net()
    potential = posterior(pvi.Normal(0.1, mean=module.state_dict()), module)
    own = torch.cat([p.detach().flatten() for p in module.parameters()])
    grad = torch.func.grad(lambda theta: potential.log_prior(theta).sum())(own.unsqueeze(0))
    assert torch.equal(grad, torch.zeros(1, 11, dtype=F64))
    moved = net()
    assert potential.fingerprint != posterior(pvi.Normal(0.1, mean=moved.state_dict())).fingerprint


def test_a_flat_prior_is_constant_has_no_draws_and_says_so():
    potential = posterior({"2.*": pvi.Flat(), "*": pvi.Normal(2.0)})
    theta = rand(P, 11)
    close(potential.log_prior(theta), summed(stats.norm.logpdf(theta[:, :8], 0, 2.0)))
    assert "prior" not in potential.starts.methods
    with pytest.raises(ValueError, match="method must be one of"):
        potential.init(2, method="prior")
    data = (rand(N, 3), rand(N, 1, seed=1))
    draws = pvi.sample(
        pvi.sgld(posterior(pvi.Flat())), data, step_size=1e-4, num_particles=2, num_draws=2,
        progress=False,
    )  # fmt: skip
    assert torch.isfinite(draws.particles).all()


def test_a_flat_prior_leaves_maximum_likelihood():
    module = nn.Linear(2, 1, bias=False).double()
    x, y = rand(N, 2), rand(N, 1, seed=1)
    best = torch.linalg.lstsq(x, y).solution.T
    potential = posterior(pvi.Flat(), module)
    gradient = pvi.gradients.minibatch(potential)((), best, Batch((x, y)), ()).gradient
    assert gradient.abs().max() < 1e-12


def test_scales_of_layers_that_are_sampled():
    potential = posterior(pvi.Hierarchical({"*.weight": 0.5, "*": 2.0}, spread=0.7, fan_in=True))
    names = [*net().state_dict(), *(f"prior.{n}.log_scale" for n in net().state_dict())]
    assert list(potential.layout.shapes) == names
    theta = rand(P, 15)
    parts = potential.unravel(theta)
    median = {"0.weight": 0.5 / math.sqrt(3), "2.weight": 0.5 / math.sqrt(2)}
    expected = 0.0
    for name in net().state_dict():
        log_scale = parts[f"prior.{name}.log_scale"]
        lead = (P, *(1,) * (parts[name].ndim - 1))
        expected = expected + summed(stats.norm.logpdf(parts[name], 0, log_scale.exp().view(lead)))
        middle = math.log(median.get(name, 2.0))
        expected = expected + stats.norm.logpdf(log_scale, middle, 0.7)
    close(potential.log_prior(theta), expected)
    shown = potential.constrain(theta)
    close(shown["prior.0.bias.scale"], parts["prior.0.bias.log_scale"].exp())
    assert not potential.factorised_prior


def test_a_horseshoe():
    potential = posterior({"0.weight": pvi.Horseshoe(0.2), "*": pvi.Normal(1.0)})
    theta = rand(P, 11 + 1 + 6)
    parts = potential.unravel(theta)
    tau, local = (parts[f"prior.0.weight.log_{n}"].exp() for n in ("scale", "local"))
    expected = summed(stats.norm.logpdf(parts["0.weight"], 0, tau.view(P, 1, 1) * local))
    expected = expected + summed(stats.halfcauchy.logpdf(local) + local.log().numpy())
    expected = expected + stats.halfcauchy.logpdf(tau, scale=0.2) + tau.log().numpy()
    expected = expected + summed(stats.norm.logpdf(theta[:, 6:11]))
    close(potential.log_prior(theta), expected)
    draws = potential.init(4000, method="prior")
    own = potential.unravel(draws)
    quartiles = stats.halfcauchy.ppf([0.25, 0.5, 0.75])
    found = own["prior.0.weight.log_local"][:, 0, 0].exp()
    below = torch.stack([(found < q).double().mean() for q in quartiles])
    expected = torch.tensor([0.25, 0.5, 0.75], dtype=F64)
    assert (below - expected).abs().max() < 5 * 0.5 / math.sqrt(4000)


COVARIANCE = torch.tensor([[1.0, 0.6, 0.2], [0.6, 1.5, 0.3], [0.2, 0.3, 0.7]], dtype=F64)


@pytest.mark.parametrize("fan_in", [False, True])
def test_rows_that_are_correlated(fan_in):
    prior = {"0.weight": pvi.Correlated(COVARIANCE, fan_in), "*": pvi.Normal(1.0)}
    potential = posterior(prior)
    theta = rand(P, 11)
    width = 1 / 3 if fan_in else 1.0
    rows = theta[:, :6].reshape(P, 2, 3).numpy()
    law = stats.multivariate_normal(torch.zeros(3), width * COVARIANCE.numpy())
    expected = law.logpdf(rows).sum(1) + summed(stats.norm.logpdf(theta[:, 6:]))
    close(potential.log_prior(theta), expected)
    draws = potential.init(20_000, method="prior")[:, :6].reshape(-1, 3)
    found = draws.T.cov() / width
    assert (found - COVARIANCE).abs().max() < 5 * 1.5 * math.sqrt(2 / 40_000)


def test_a_covariance_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\[3, 3\] does not divide the tensor '0.bias' \[2\]"):
        posterior(pvi.Correlated(COVARIANCE))
    with pytest.raises(ValueError, match="symmetric and positive definite"):
        pvi.Correlated(-COVARIANCE)
    with pytest.raises(ValueError, match=r"matrix \[K, K\]"):
        pvi.Correlated(torch.ones(2, 3))


def test_a_mean_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"'0.weight' must have shape \[2, 3\], got \[3\]"):
        posterior(pvi.Normal(mean={"0.weight": torch.zeros(3)}))


def test_with_learned_likelihood_parameters_and_priors_of_all_kinds():
    prior = {"0.*": pvi.Hierarchical(), "2.weight": pvi.Horseshoe(), "*": pvi.Laplace()}
    potential = posterior(prior, likelihood=pvi.Gaussian("learned"))
    theta = potential.init(3, method="prior")
    assert theta.shape == (3, potential.num_params)
    assert potential.num_params == 11 + 1 + 2 + 1 + 2
    data = (rand(N, 3), rand(N, 1, seed=1))
    draws = pvi.sample(
        pvi.sghmc(potential), data, batch_size=10, step_size=1e-3, num_particles=3, num_draws=4,
        progress=False,
    )  # fmt: skip
    assert torch.isfinite(draws.particles).all()
    assert "likelihood.scale" in draws.constrained()
    for method in ("fresh", "current", "jittered"):
        assert potential.init(2, method=method).shape == (2, potential.num_params)


FAN_INS = {
    "linear": (nn.Linear(5, 2), {"weight": 5}),
    "convolution": (nn.Conv2d(4, 6, (3, 2)), {"weight": 24}),
    "grouped convolution": (nn.Conv2d(4, 6, 3, groups=2), {"weight": 18}),
    "depthwise convolution": (nn.Conv1d(4, 4, 3, groups=4), {"weight": 3}),
    "transposed convolution": (nn.ConvTranspose2d(4, 6, 3), {"weight": 36}),
    "grouped transposed convolution": (nn.ConvTranspose1d(4, 6, 3, groups=2), {"weight": 6}),
    "embedding": (nn.Embedding(11, 3), {"weight": 1}),
    "embedding bag": (nn.EmbeddingBag(11, 3), {"weight": 1}),
    "bilinear": (nn.Bilinear(2, 3, 4), {"weight": 6}),
    "gru": (nn.GRU(3, 4), {"weight_ih_l0": 3, "weight_hh_l0": 4}),
}


@pytest.mark.parametrize("name", FAN_INS)
def test_fan_in_is_the_number_of_weights_that_enter_a_unit(name):
    module, expected = FAN_INS[name]
    potential = posterior(pvi.Normal(1.5, fan_in=True), module.double())
    theta = torch.zeros(1, potential.num_params, dtype=F64)
    curvature = torch.func.hessian(lambda t: -potential.log_prior(t.unsqueeze(0))[0])(theta[0])
    precision = potential.unravel(curvature.diagonal().unsqueeze(0))
    for tensor, value in precision.items():
        number = expected.get(tensor, 1) / 2.25
        close(value, torch.full(value.shape, number, dtype=F64))


def test_fan_in_of_a_transposed_convolution_keeps_the_variance_of_outputs():
    module = nn.Sequential(nn.ConvTranspose1d(20, 1, 3, bias=False)).double()
    potential = posterior(pvi.Normal(1.0, fan_in=True), module)
    outputs = potential.outputs(
        potential.init(4000, method="prior"), Batch((torch.ones(1, 20, 9, dtype=F64),))
    )
    assert abs(float(outputs[..., 4].var()) - 1) < 5 * math.sqrt(2 / 4000)


def test_a_tied_embedding_has_the_fan_in_of_its_linear_layer():
    embed, out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    out.weight = embed.weight
    potential = posterior(pvi.Normal(1.0, fan_in=True), nn.Sequential(embed, out).double())
    found = potential.log_prior(torch.ones(1, 28, dtype=F64))
    close(found, torch.as_tensor([28 * stats.norm.logpdf(1.0, 0, 0.5)]))
