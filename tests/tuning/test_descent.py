"""Minimising from all starting points at once, and spreading chains from a minimum."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.tuning.descent import adam, bfgs, newton
from particlevi.tuning.objective import Objective
from particlevi.tuning.start import spread
from particlevi.typing import Gradient


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def bowl(scale):
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return lambda x: Gradient(x / scale**2, 0.5 * (x / scale).square().sum(-1))


def rosenbrock():
    def log_density(x):
        return -100 * (x[:, 1] - x[:, 0] ** 2) ** 2 - (1 - x[:, 0]) ** 2

    return Objective(pvi.from_log_density(log_density, 2, vectorized=True, dtype=torch.float64))


def test_bfgs_minimises_over_six_decades_of_scales():
    scale = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)
    found = bfgs(bowl(scale), 20 * normal(8, 3) * scale, tolerance=1e-12)
    assert float(found.potential.max()) < 1e-6


def test_bfgs_follows_a_valley():
    found = bfgs(rosenbrock().gradient_at, 2 * normal(8, 2), tolerance=1e-10)
    torch.testing.assert_close(found.points, torch.ones(8, 2).double(), rtol=1e-3, atol=1e-3)


def test_bfgs_leaves_a_chain_that_has_no_gradient_where_it_is():
    def gradient_at(x):
        value = 0.5 * x.square().sum(-1)
        bad = x[:, 0] > 50
        return Gradient(
            torch.where(bad.unsqueeze(1), torch.nan, x), torch.where(bad, torch.nan, value)
        )

    start = normal(4, 2)
    start[0, 0] = 60.0
    found = bfgs(gradient_at, start)
    assert torch.equal(found.points[0], start[0])
    assert float(found.potential[1:].max()) < 1e-5
    assert torch.equal(found.best, found.points[1 + int(found.potential[1:].argmin())])


def test_newton_finds_the_minimum_of_a_valley_and_its_hessian():
    objective = rosenbrock()
    point, hessian, used = newton(
        objective.gradient_at, objective.hessian, torch.tensor([-1.2, 1.0], dtype=torch.float64)
    )
    torch.testing.assert_close(point, torch.ones(2).double(), rtol=1e-3, atol=1e-3)
    expected = torch.tensor([[802.0, -400.0], [-400.0, 200.0]], dtype=torch.float64)
    torch.testing.assert_close(hessian, expected, rtol=1e-2, atol=1.0)
    assert used == objective.num_gradients


def test_adam_goes_down():
    found = adam(bowl([1.0, 2.0]), normal(5, 2), num_steps=300, learning_rate=0.1)
    assert float(found.potential.max()) < 1e-3
    assert found.num_gradients == 300


def test_spread_points_are_draws_of_the_gaussian_where_it_is_right():
    scale = torch.tensor([0.1, 1.0, 20.0], dtype=torch.float64)
    z = normal(50, 3)
    points = spread(bowl(scale), torch.zeros(50, 3).double(), z * scale, 0.0)
    torch.testing.assert_close(points, z * scale)


def test_spread_points_come_nearer_where_the_potential_is_steeper():
    scale = torch.ones(3, dtype=torch.float64)
    points = spread(bowl(scale), torch.zeros(50, 3).double(), 100 * normal(50, 3), 0.0)
    height = 0.5 * points.square().sum(-1)
    assert float(height.max()) <= 13
    assert float(height.median()) > 0.5


def test_the_objective_is_the_potential_on_all_data_piece_by_piece():
    x = normal(30, 1)
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        lambda theta, batch: -0.5 * (batch[:, 0] - theta.exp().sum()).square(),
        num_params=2,
        num_data=30,
        dtype=torch.float64,
    )
    whole, parts = Objective(target, x), Objective(target, x, chunk_size=7)
    points = 0.3 * normal(4, 2)
    for a, b in zip(whole.gradient_at(points), parts.gradient_at(points), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        whole.hessian(points[0]), parts.hessian(points[0]), rtol=1e-12, atol=1e-12
    )
    step = 1e-5 * torch.eye(2, dtype=torch.float64)
    up, down = (whole.gradient_at(points[0] + sign * step).gradient for sign in (1, -1))
    torch.testing.assert_close(whole.hessian(points[0]), (up - down) / 2e-5, rtol=1e-6, atol=1e-6)


def test_an_objective_needs_its_data():
    target = pvi.from_log_likelihood(lambda t: t.sum(), lambda t, x: x * t, 1, 3)
    with pytest.raises(ValueError, match="needs data, got none"):
        Objective(target)


def test_the_lowest_point_is_never_nan():
    from particlevi.tuning.descent import Descent

    points = normal(3, 2)
    found = Descent(points, torch.tensor([math.nan, 2.0, 1.0]), 1)
    assert torch.equal(found.best, points[2])
