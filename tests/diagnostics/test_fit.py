"""A posterior that fits its data badly is told from one that fits."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.diagnostics.verdict.fit import fit

D64 = torch.float64


def exact_regression(scale, seed=0, num=60, size=5, noise=0.5, count=100):
    """Exact draws of a linear regression whose prior has this scale, and its data."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, size, generator=generator, dtype=D64)
    weights = torch.randn(size, generator=generator, dtype=D64)
    y = x @ weights + noise * torch.randn(num, generator=generator, dtype=D64)
    net = torch.nn.Linear(size, 1, bias=False).double()
    model = pvi.from_module(net, pvi.Gaussian(noise), pvi.Normal(scale), num_data=num)
    precision = x.T @ x / noise**2 + torch.eye(size, dtype=D64) / scale**2
    mean = torch.linalg.solve(precision, x.T @ y / noise**2)
    root = torch.linalg.cholesky(torch.linalg.inv(precision))
    z = torch.randn(4, count, size, generator=generator, dtype=D64)
    return pvi.Draws.from_tensor(mean + z @ root.T, model), (x, y.unsqueeze(1))


def kinds(draws, data):
    return {finding.kind for finding in draws.diagnose(data, verbose=False).findings}


def test_a_prior_that_is_too_narrow_is_told():
    draws, data = exact_regression(0.02)
    found = draws.diagnose(data, verbose=False)
    (finding,) = [each for each in found.findings if each.kind == "bad fit"]
    assert finding.severity == "model"
    assert finding.numbers["gain"] > 2.5 * finding.numbers["error"]
    assert "trained on half of them predicts the other half better" in finding.problem


def test_the_density_told_is_that_of_all_the_data():
    draws, data = exact_regression(1.0, count=25)
    told = draws.diagnose(data, verbose=False).facts["log density of the training data"]
    expected = float(draws.log_predictive_density(data).mean())
    assert told == pytest.approx(expected)


def test_a_posterior_that_fits_is_not():
    draws, data = exact_regression(1.0)
    assert "bad fit" not in kinds(draws, data)


def told(scale, num, size, number):
    """In how many regressions a fit is called bad."""
    sets = (exact_regression(scale, seed, num, size, count=25) for seed in range(number))
    return sum(fit(draws, data).bad for draws, data in sets)


@pytest.mark.slow
@pytest.mark.parametrize(("num", "size"), [(30, 2), (60, 15), (200, 40), (1000, 10)])
def test_false_alarms(num, size):
    """None in 200 right posteriors of regressions."""
    assert told(1.0, num, size, 200) == 0


@pytest.mark.parametrize(("num", "size", "least"), [(60, 15, 17), (200, 40, 20)])
def test_power(num, size, least):
    """Weights of unit size under a prior of a twentieth of it, in 20 regressions."""
    assert told(0.05, num, size, 20) >= least


def test_classes():
    generator = torch.Generator().manual_seed(0)
    centers = 1.5 * torch.randn(4, 10, generator=generator)
    y = torch.randint(4, (200,), generator=generator)
    x = centers[y] + torch.randn(200, 10, generator=generator)
    for scale, bad in ((0.02, True), (1.0, False)):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
        model = pvi.from_module(net, pvi.Categorical(), pvi.Normal(scale), num_data=200)
        draws = pvi.sample(
            pvi.sghmc(model, friction=2.0),
            (x, y),
            step_size=0.3 * min(scale, 0.3),
            num_particles=4,
            num_warmup=300,
            num_draws=30,
            thin=5,
            progress=False,
        )
        assert ("bad fit" in kinds(draws, (x, y))) == bad, scale
