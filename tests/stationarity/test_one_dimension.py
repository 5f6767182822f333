"""Stationary laws where the step is not affine: transition matrices on a grid, no Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi.streams import ParticleStreams
from tests.stationarity.laws import controls_of, law_on_grid, moment, order

GRID = np.linspace(-9.0, 9.0, 1801)


def normal():
    return pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 1, dtype=torch.float64)


def quartic():
    return pvi.from_log_density(lambda x: -0.25 * (x**4).sum(), 1, dtype=torch.float64)


def extrapolated(values):
    """The limit h -> 0 of values at h, h/2, h/4, to third order."""
    a, b, c = values
    return (a - 6 * b + 8 * c) / 3


def test_sgld_on_a_gaussian():
    density = law_on_grid(pvi.sgld(normal()), 0.1, GRID)
    expected = 1 / (1 - 0.05)
    assert moment(GRID, density, np.square) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("T", [0.25, 1.0])
def test_sgld_bias_is_of_first_order_on_a_quartic(T):
    grid = np.linspace(-4.0, 4.0, 1601)
    sampler = pvi.sgld(quartic(), temperature=T)
    exact = 2 * math.sqrt(T) * math.gamma(0.75) / math.gamma(0.25)
    values = [
        moment(grid, law_on_grid(sampler, h / math.sqrt(T), grid), np.square)
        for h in [0.02, 0.01, 0.005]
    ]
    assert order([v - exact for v in values]) == pytest.approx([1, 1], abs=0.05)
    assert extrapolated(values) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("regularisation", [1.0, 0.5])
def test_psgld_with_a_moving_preconditioner_samples_another_law(regularisation):
    """Without memory G is a function of theta, and the law is ``exp(-U) / G``."""
    sampler = pvi.psgld(normal(), decay=0.0, regularisation=regularisation, freeze=False)
    values = [
        moment(GRID, law_on_grid(sampler, h, GRID), np.square)
        for h in regularisation * np.array([0.04, 0.02, 0.01])
    ]
    shift = regularisation * math.sqrt(2 * math.pi)
    expected = (shift + 4) / (shift + 2)
    if regularisation == 1.0:
        assert expected == pytest.approx(1.4438, abs=5e-5)
    assert extrapolated(values) == pytest.approx(expected, rel=2e-3)


def test_psgld_with_the_divergence_samples_the_target():
    sampler = pvi.psgld(normal(), decay=0.0, regularisation=1.0, freeze=False, divergence=True)
    values = [
        moment(GRID, law_on_grid(sampler, h, GRID), np.square) for h in np.array([0.04, 0.02, 0.01])
    ]
    assert extrapolated(values) == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize(
    "decay, h, expected", [(0.9, 0.025, 1.60), (0.9, 0.1, 1.40), (0.99, 0.025, 1.18)]
)
def test_psgld_with_a_short_memory_is_too_wide(decay, h, expected):
    """The smaller the step, the more the preconditioner is a function of theta alone."""
    sampler = pvi.psgld(normal(), decay=decay, regularisation=0.1, freeze=False)
    draws = pvi.sample(
        sampler, step_size=h, num_particles=8000, num_warmup=400, num_draws=10, thin=40,
        progress=False,
    )  # fmt: skip
    assert float(draws.particles.square().mean()) == pytest.approx(expected, rel=0.03)


def test_psgld_divergence_is_the_derivative_of_the_preconditioner():
    """``d G_i / d theta_i`` by hand, where the Hessian is diagonal and V has a memory."""
    curvature = torch.tensor([1.0, 5.0, 0.3], dtype=torch.float64)
    target = pvi.from_log_density(
        lambda x: -0.5 * (curvature * x**2).sum(-1), 3, vectorized=True, dtype=torch.float64
    )
    a, lam, h, T = 0.9, 0.2, 0.01, 0.7
    theta = torch.tensor([[0.4, -1.3, 2.0]], dtype=torch.float64)
    old = torch.tensor([[0.5, 1.0, 0.2]], dtype=torch.float64)
    noise = (torch.zeros_like(theta), torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64))
    moved = []
    for divergence in (False, True):
        sampler = pvi.psgld(
            target, T, decay=a, regularisation=lam, freeze=False, divergence=divergence
        )
        state = sampler.init(theta, ParticleStreams(0))
        memory = state.memory._replace(second_moment=old, weight=torch.tensor(a))
        state = state._replace(memory=memory)
        xi = noise if divergence else noise[0]
        after, _ = sampler.step(state, None, (xi, ()), controls_of(sampler, h))
        moved.append(after.position)

    def preconditioner(x):
        return 1 / (lam + (a * old + (1 - a) * (curvature * x) ** 2).sqrt())

    _, derivative = torch.func.jvp(preconditioner, (theta,), (torch.ones_like(theta),))
    torch.testing.assert_close(moved[1] - moved[0], h * T * derivative, rtol=1e-6, atol=0)
