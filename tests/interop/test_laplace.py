"""Priors tuned by laplace-torch are the priors that are sampled, on closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import particlevi as pvi
from particlevi.diagnostics.arviz import mcse
from particlevi.typing import Batch

F64 = torch.float64
N, D, NOISE = 40, 4, 0.7

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def laplace():
    return pytest.importorskip("laplace", reason="laplace-torch is not installed").Laplace


def linear_data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=F64)
    x[:, 1] += x[:, 0]
    truth = torch.tensor([[0.4], [-0.2], [0.3], [0.1]], dtype=F64)
    return x, x @ truth + NOISE * torch.randn(N, 1, generator=generator, dtype=F64)


def mode(precision):
    """A linear net at the mode, and the covariance of its posterior."""
    x, y = linear_data()
    covariance = torch.linalg.inv(x.T @ x / NOISE**2 + precision * torch.eye(D, dtype=F64))
    net = nn.Linear(D, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_((covariance @ x.T @ y / NOISE**2).T)
    return net, covariance


def evidence(precision):
    x, y = (each.numpy() for each in linear_data())
    covariance = NOISE**2 * np.eye(N) + x @ x.T / precision
    return stats.multivariate_normal.logpdf(y[:, 0], np.zeros(N), covariance)


def best_precision():
    found = optimize.minimize_scalar(
        lambda log: -evidence(math.exp(log)), bounds=(-5, 8), method="bounded"
    )
    return math.exp(found.x)


def fitted(laplace, net, data, likelihood, **options):
    found = laplace(net, likelihood, subset_of_weights="all", hessian_structure="full", **options)
    found.fit(DataLoader(TensorDataset(*data), batch_size=len(data[0])))
    return found


def tuned(laplace):
    """The precision at which training and tuning in turn come to rest."""
    precision = 1.0
    for _ in range(50):
        net, _ = mode(precision)
        found = fitted(
            laplace, net, linear_data(), "regression", sigma_noise=NOISE, prior_precision=precision
        )
        found.optimize_prior_precision(
            pred_type="glm",
            method="marglik",
            prior_structure="scalar",
            init_prior_prec=precision,
            n_steps=200,
        )
        before, precision = precision, float(found.prior_precision)
        if abs(precision / before - 1) < 1e-5:
            return precision
    raise AssertionError(f"tuning has not come to rest: {before}, {precision}")


@pytest.mark.parametrize("precision", [0.3, 20.0])
def test_the_marginal_likelihood_at_the_mode_is_the_evidence(laplace, precision):
    net, _ = mode(precision)
    found = fitted(
        laplace, net, linear_data(), "regression", sigma_noise=NOISE, prior_precision=precision
    )
    value = found.log_marginal_likelihood().item()
    assert value == pytest.approx(evidence(precision), abs=1e-6)


def test_training_and_tuning_in_turn_find_the_largest_evidence(laplace):
    assert tuned(laplace) == pytest.approx(best_precision(), rel=1e-3)


def test_the_posterior_under_the_tuned_prior_is_the_closed_form(laplace):
    precision = tuned(laplace)
    net, _ = mode(precision)
    potential = pvi.from_module(net, pvi.Gaussian(NOISE), pvi.Normal(precision**-0.5), num_data=N)
    draws = pvi.sample(
        pvi.hmc(potential, num_leapfrog=5, jitter=0.3),
        linear_data(),
        initial=net.state_dict(),
        num_particles=8,
        step_size=0.08,
        num_warmup=100,
        num_draws=1000,
        progress=False,
    ).particles.numpy()
    best, covariance = mode(best_precision())
    center = best.weight.detach()[0].numpy()
    squares = (draws - center) ** 2
    z = (draws.mean((0, 1)) - center) / mcse(draws)
    of_variances = (squares.mean((0, 1)) - covariance.diagonal().numpy()) / mcse(squares)
    assert np.abs(z).max() < 4
    assert np.abs(of_variances).max() < 4


CASES = {
    "regression": (1, pvi.Gaussian(0.3), {"sigma_noise": 0.3}),
    "classification": (3, pvi.Categorical(), {}),
}


@pytest.mark.parametrize("layerwise", [False, True], ids=["one precision", "layerwise"])
@pytest.mark.parametrize("likelihood", CASES)
def test_the_energy_is_minus_the_log_joint_of_laplace_torch(laplace, likelihood, layerwise):
    outputs, law, options = CASES[likelihood]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, outputs)).double()
    x, y = linear_data()
    y = y if likelihood == "regression" else (y[:, 0] > 0).long() + (x[:, 0] > 1)
    precision = torch.tensor([0.5, 3.0, 2.0, 7.0] if layerwise else [2.5], dtype=F64)
    options = options | {"prior_precision": precision, "prior_mean": 0.2}
    found = fitted(laplace, net, (x, y), likelihood, **options)
    theirs = found.log_likelihood - 0.5 * found.scatter + 0.5 * found.log_det_prior_precision
    theirs = theirs.item() - 0.5 * found.n_params * math.log(2 * math.pi)

    names = [name for name, _ in net.named_parameters()]
    scales = dict(zip(names, precision.rsqrt().expand(len(names)).tolist(), strict=True))
    potential = pvi.from_module(net, law, pvi.Normal(scales, mean=0.2), num_data=N)
    energy = potential(potential.init(1, method="current"), Batch((x, y)))
    assert float(energy) == pytest.approx(-theirs, rel=1e-6)
