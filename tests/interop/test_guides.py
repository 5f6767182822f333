"""Guides of Pyro as starting points of a run."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

import particlevi as pvi
from particlevi.diagnostics.arviz import mcse

F64 = torch.float64
N, NOISE = 60, 0.5


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 2, generator=generator, dtype=F64)
    x[:, 1] = x[:, 0] + 0.4 * x[:, 1]
    noise = NOISE * torch.randn(N, generator=generator, dtype=F64)
    return x, x @ torch.tensor([1.0, -2.0], dtype=F64) + noise


def line(x, y):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, NOISE), obs=y)


def scaled(x, y):
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, scale), obs=y)


def trained(kind, model, num_steps):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = kind(model, init_scale=0.1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    for _ in range(num_steps):
        svi.step(*data())
    return guide


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_chains_start_at_samples_of_a_guide(kind):
    guide = trained(kind, scaled, 3)
    starts = [guide(*data()) for _ in range(4)]
    potential = pvi.from_pyro(scaled, example_batch=data())
    draws = pvi.sample(
        pvi.sgld(potential), data(), initial=starts, step_size=1e-14, num_draws=1, progress=False
    )
    for name, values in draws.constrained().items():
        expected = torch.stack([start[name].detach() for start in starts])
        torch.testing.assert_close(values[:, 0], expected, rtol=0, atol=1e-5)


def test_the_posterior_after_a_guide_is_the_closed_form():
    guide = trained(AutoNormal, line, 150)
    x, y = data()
    draws = pvi.sample(
        pvi.hmc(pvi.from_pyro(line, example_batch=(x, y)), num_leapfrog=4, jitter=0.3),
        (x, y),
        initial=[guide(x, y) for _ in range(40)],
        step_size=0.08,
        num_warmup=20,
        num_draws=60,
        progress=False,
    )
    found = draws.constrained()["w"].numpy()
    covariance = torch.linalg.inv(x.T @ x / NOISE**2 + torch.eye(2, dtype=F64)).numpy()
    center = covariance @ (x.T @ y).numpy() / NOISE**2
    squares = (found - center) ** 2
    z = (found.mean((0, 1)) - center) / mcse(found)
    of_variances = (squares.mean((0, 1)) - np.diag(covariance)) / mcse(squares)
    assert np.abs(z).max() < 4
    assert np.abs(of_variances).max() < 4
