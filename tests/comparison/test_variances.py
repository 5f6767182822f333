"""Variances from short chains, and effective temperatures that rest on them."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.comparison.variances import stationary_variance

D64 = torch.float64


def autoregressive(a, chains, length, size, generator):
    """AR(1) chains of the standard normal, ``[chains, length, size]``."""
    noise = torch.randn(chains, length, size, generator=generator, dtype=D64)
    values = noise.clone()
    for t in range(1, length):
        values[:, t] = a * values[:, t - 1] + math.sqrt(1 - a**2) * noise[:, t]
    return values


def test_the_mean_of_a_chain_does_not_count():
    """The same variance for chains in different modes, to rounding."""
    generator = torch.Generator().manual_seed(0)
    values = autoregressive(0.8, 4, 300, 3, generator)
    apart = values + 100 * torch.arange(4, dtype=D64).view(4, 1, 1)
    one, other = stationary_variance(values), stationary_variance(apart)
    torch.testing.assert_close(one.value, other.value, rtol=1e-9, atol=0)


def test_independent_draws_give_the_usual_variance():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 300, 200, generator=generator, dtype=D64)
    found = stationary_variance(values)
    usual = values.var(1).mean(0)
    assert ((found.value / usual - 1).abs() < 0.02).all()
    assert found.relative_error.mean().item() == pytest.approx(2 / 1200, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("a", "chains", "length"), [(0.98, 4, 2000), (0.98, 8, 500), (0.9, 4, 400), (0.0, 4, 100)]
)
def test_bias_and_error_of_the_variance(a, chains, length):
    """Of 1000 coordinates: the mean is 1 within 5 %, z has a standard deviation of 1 +- .15."""
    generator = torch.Generator().manual_seed(0)
    found = stationary_variance(autoregressive(a, chains, length, 1000, generator))
    assert found.value.mean().item() == pytest.approx(1, abs=0.05)
    z = (found.value - 1) / (found.value * found.relative_error.sqrt())
    assert z.std().item() == pytest.approx(1, abs=0.15)


def one_parameter():
    net = torch.nn.Linear(1, 1, bias=False).double()
    model = pvi.from_module(net, pvi.Gaussian(1.0), pvi.Normal(10.0), num_data=20)
    x = torch.linspace(-1, 1, 20, dtype=D64).unsqueeze(1)
    precision = float(x.square().sum()) + 0.01
    return model, (x, 0 * x), precision


@pytest.mark.slow
@pytest.mark.parametrize("slow_reference", [True, False])
def test_temperature_of_sets_from_the_posterior(slow_reference):
    """AR(.98) against independent draws: 1 on average, and z has a standard deviation of 1."""
    model, data, precision = one_parameter()
    generator = torch.Generator().manual_seed(0)
    slow = autoregressive(0.98, 4, 1000, 150, generator) / math.sqrt(precision)
    free = autoregressive(0.0, 4, 1000, 150, generator) / math.sqrt(precision)
    ratios, z = [], []
    for k in range(150):
        sets = {
            "slow": pvi.Draws(slow[..., k : k + 1], potential=model),
            "free": pvi.Draws(free[..., k : k + 1], potential=model),
        }
        reference, other = ("slow", "free") if slow_reference else ("free", "slow")
        found = pvi.compare(sets, data, train_data=data, reference=reference, scores=[])
        row = found.rows[other]
        ratios.append(row["temperature"])
        z.append((row["temperature"] - 1) / row.error("temperature"))
    values = torch.tensor(ratios)
    assert values.mean().item() == pytest.approx(1, abs=4 * values.std().item() / 150**0.5)
    assert torch.tensor(z).std().item() == pytest.approx(1, abs=0.2)
