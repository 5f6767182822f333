"""The thermostat finds hidden gradient noise where SGHMC is off by 100 %."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import brentq

import particlevi as pvi
from particlevi.streams import ParticleStreams
from tests.stationarity.laws import NoisyGradient, quadratic

LAM, SIZE = 2.0, 500


def wide(s):
    precision = LAM * torch.ones(SIZE, dtype=torch.float64)
    target = pvi.from_log_density(
        lambda x: -0.5 * (precision * x.square()).sum(-1),
        SIZE,
        vectorized=True,
        dtype=torch.float64,
    )
    return NoisyGradient(target, s)


def run(sampler, h, T):
    start = torch.randn(8, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return pvi.sample(
        sampler,
        step_size=h,
        initial=start * math.sqrt(T / LAM),
        num_warmup=round(8 / h),
        num_draws=40,
        thin=round(0.5 / h),
        progress=False,
    )


def rest(h, s, T, diffusion):
    """Where the thermostat of a large system rests, and the variance of theta there."""

    def excess(x):
        c2 = math.exp(-2 * x * h)
        share = 2 * h**2 * s**2 * (1 + c2) / (T * (1 - c2) * (4 - h**2 * LAM))
        return diffusion / x - 1 + share

    x = brentq(excess, diffusion, diffusion + 2 * h * s**2 / T)
    c = math.exp(-x * h)
    return x, T / LAM - h**2 * s**2 * (1 - c) / (LAM * (1 + c) * (4 - h**2 * LAM))


@pytest.mark.parametrize("h, s, T", [(0.01, 10.0, 1.0), (0.02, 10.0, 1.0), (0.05, 8.0, 4.0)])
def test_finds_hidden_noise(h, s, T):
    draws = run(pvi.sgnht(wide(s), temperature=T), h, T)
    x, variance = rest(h, s, T, 1.0)
    assert x == pytest.approx(1 + h * s**2 / (2 * T), rel=0.05)
    found = float(draws.particles.square().mean())
    # D is finite, so the thermostat moves a little: allow 3 / D beside the Monte-Carlo error.
    error = variance * math.sqrt(2 * 3 / draws.particles.numel())
    assert abs(found - variance) < 5 * error + 3 / SIZE * variance
    assert float(draws.stats["thermostat"].mean()) == pytest.approx(x, rel=0.02)
    kinetic = T - 2 * h**2 * s**2 / (4 - h**2 * LAM)
    assert float(draws.stats["kinetic_temperature"].mean()) == pytest.approx(kinetic, rel=0.01)
    assert found == pytest.approx(T / LAM, rel=0.02)


@pytest.mark.parametrize("T", [0.01, 0.25, 1.0, 4.0])
def test_variance_is_linear_in_temperature(T):
    x = run(pvi.sgnht(wide(0.0), temperature=T), 0.1, T).particles
    error = T / LAM * math.sqrt(2 * 3 / x.numel())
    assert abs(float(x.square().mean()) - T / LAM) < 5 * error + T / LAM / SIZE


def test_sghmc_does_not():
    h, s = 0.02, 10.0
    found = float(run(pvi.sghmc(wide(s), integrator="baoa"), h, 1.0).particles.square().mean())
    assert found == pytest.approx(2 * 1 / LAM, rel=0.03)


def test_one_thermostat_for_all_parameters_of_a_chain():
    sampler = pvi.sgnht(quadratic([[1.0, 0.0], [0.0, 3.0]]))
    state = sampler.init(torch.zeros(4, 2, dtype=torch.float64), ParticleStreams(0))
    assert state.memory.thermostat.shape == (4,)


def test_thermostat_at_zero_is_no_special_case():
    """The O step's variance is a smooth function of the thermostat."""
    from particlevi.samplers.sgnht import _decay_mean

    x = torch.tensor([-1e-3, -1.01e-4, -0.99e-4, 0.0, 0.99e-4, 1.01e-4, 1e-3], dtype=torch.float64)
    series = 1 - x / 2 + x**2 / 6 - x**3 / 24
    torch.testing.assert_close(_decay_mean(x), series, rtol=0, atol=2e-9)
