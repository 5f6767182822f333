"""Minima that no chain sees, and where chains begin when there are some."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.tuning.descent import Dense, Descent, Limited, bfgs
from particlevi.tuning.minima import (
    Minimum,
    far_points,
    in_basin,
    on_the_way,
    search,
    separate,
)
from particlevi.tuning.objective import Objective
from particlevi.tuning.start import find_start
from tests.tuning.test_descent import bowl, normal, rosenbrock

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def modes(weight, width, distance=9.0):
    """``N(0, I)`` and, ``weight`` times as heavy, ``N(distance, width^2 I)``, in two dimensions."""

    def log_density(x):
        height = torch.log(torch.tensor(weight / width**2, dtype=F64))
        other = height - 0.5 * ((x - distance) / width).square().sum(-1)
        return torch.logaddexp(-0.5 * x.square().sum(-1), other)

    return Objective(pvi.from_log_density(log_density, 2, vectorized=True, dtype=F64))


BEST = Minimum(torch.zeros(2, dtype=F64), 0.0, torch.eye(2, dtype=F64))


@pytest.mark.parametrize("width", [1.0, 3.0])
def test_the_log_mass_of_a_gaussian_is_its_weight(width):
    objective = modes(0.2, width)
    (other,) = separate(objective, search(objective, BEST, 16, generator()), BEST)
    torch.testing.assert_close(other.place, torch.full((2,), 9.0, dtype=F64), rtol=1e-3, atol=0)
    assert other.log_mass - BEST.log_mass == pytest.approx(math.log(0.2), abs=0.01)


@pytest.mark.parametrize(("weight", "found"), [(3e-3, 1), (3e-4, 0)])
def test_a_mode_counts_by_its_mass(weight, found):
    objective = modes(weight, 1.0)
    assert len(separate(objective, search(objective, BEST, 16, generator()), BEST)) == found


def test_chains_begin_in_every_mode_that_was_found():
    start = find_start(modes(1.0, 1.0), normal(16, 2), generator())
    there = start.points[:, 0] > 4.5
    assert int(there.sum()) == 8
    assert start.others == 1
    assert torch.equal(start.metric, start.metric.diagonal().diag())


def test_a_mode_that_chains_found_themselves_is_not_told_as_missed():
    given = normal(16, 2) + torch.tensor([0.0, 9.0], dtype=F64).repeat(8)[:, None]
    start = find_start(modes(1.0, 1.0), given, generator(), keep=True)
    assert start.others == 0
    torch.testing.assert_close(start.points, given)


def test_a_mode_in_which_no_chain_begins_is_told():
    given = normal(16, 2)
    assert find_start(modes(1.0, 1.0), given, generator(), keep=True).others == 1


def test_points_far_from_the_only_minimum_leave_none_out():
    """Not all descents from them arrive, but the chains begin in the minimum all the same."""
    rotation = torch.linalg.qr(normal(6, 6)).Q
    inner = torch.linalg.cholesky(
        rotation @ torch.logspace(-1, 1, 6, dtype=F64).diag() @ rotation.mT
    )
    inverse = torch.linalg.inv(torch.logspace(-3, 3, 6, dtype=F64).unsqueeze(1) * inner)
    target = pvi.from_log_density(
        lambda x: -0.5 * (x @ inverse.mT).square().sum(-1), 6, vectorized=True, dtype=F64
    )
    start = find_start(Objective(target), 1e6 * normal(1, 6).repeat(4, 1), generator(), keep=True)
    assert start.others == 0
    assert float((start.points @ inverse.mT).abs().max()) < 10


def test_one_gaussian_has_no_other_minimum():
    scale = torch.logspace(-3, 3, 5, dtype=F64)
    target = pvi.from_log_density(
        lambda x: -0.5 * (x / scale).square().sum(-1), 5, vectorized=True, dtype=F64
    )
    assert find_start(Objective(target), normal(8, 5), generator()).others == 0


def test_far_points_are_spread_in_direction_and_distance():
    points = far_points(BEST, 64, generator()) - BEST.place
    assert bool(((points > 0).double().mean(0) - 0.5).abs().max() < 0.1)
    whitened = torch.linalg.solve_triangular(BEST.factor, points.mT, upper=False).mT
    reach = whitened.square().mean(1).sqrt()
    assert float(reach.min()) > 1.5 and float(reach.max()) > 50
    assert int((reach < 5).sum()) == 48


def test_a_basin_holds_its_minimum_and_no_point_far_out_that_is_as_low():
    low = torch.zeros(1, dtype=F64)
    assert bool(in_basin(BEST.place[None], low, BEST).all())
    assert not bool(in_basin(BEST.place[None] + 30, low, BEST).any())


def test_a_chain_begins_as_wide_as_the_mode_it_is_sent_to():
    start = find_start(modes(0.8, 0.3, distance=3.0), 0.1 * normal(16, 2), generator())
    distances = (start.points - 3).norm(dim=1).sort().values
    assert float(distances[:8].square().mean().sqrt()) < 0.6


def test_a_narrow_mode_four_standard_deviations_away_is_found():
    target = modes(1.0, 0.3, distance=3.0)
    for seed in range(20):
        ends = search(target, BEST, 96, generator(seed)).points
        assert bool(((ends - 3).norm(dim=1) < 0.5).any()), seed


def test_points_without_density_are_replaced_and_told():
    target = pvi.from_log_density(
        lambda x: (2 * x.log() - x).sum(-1), 3, vectorized=True, dtype=F64
    )
    initial = torch.ones(6, 3, dtype=F64)
    initial[1] = -1.0
    start = find_start(Objective(target), initial, generator(), keep=True)
    assert torch.isfinite(Objective(target).gradient_at(start.points).potential).all()
    assert "1 were begun where others were" in start.reason
    with pytest.raises(ValueError, match="for any of the 6 particles"):
        find_start(Objective(target), -initial.abs(), generator())


def test_bfgs_of_limited_memory_minimises_over_two_decades():
    scale = torch.logspace(-1, 1, 40, dtype=F64)
    found = bfgs(bowl(scale), 20 * normal(4, 40) * scale, memory=Limited)
    assert float(found.potential.max()) < 0.1  # nats, of a thousand


def test_a_scale_known_before_makes_it_any_number_of_decades():
    scale = torch.logspace(-3, 3, 40, dtype=F64)

    def memory(like):
        return Limited(like, scale.square())

    found = bfgs(bowl(scale), 20 * normal(4, 40) * scale, 20, tolerance=1e-9, memory=memory)
    assert float(found.potential.max()) < 1e-6


def test_bfgs_of_limited_memory_follows_a_valley():
    found = bfgs(rosenbrock().gradient_at, 2 * normal(8, 2), tolerance=1e-10, memory=Limited)
    torch.testing.assert_close(found.points, torch.ones(8, 2).double(), rtol=1e-3, atol=1e-3)


def test_on_a_quadratic_both_memories_take_the_same_path():
    # Ten pairs hold all that a dense matrix learns in ten steps, from the same first scale.
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    one, other = (
        bfgs(bowl(scale), normal(3, 3), 3, tolerance=0.0, memory=memory)
        for memory in (Limited, Dense)
    )
    torch.testing.assert_close(one.points, other.points, rtol=1e-10, atol=1e-12)


def test_a_hessian_without_second_derivatives_is_that_of_differences():
    objective = modes(1.0, 1.0, distance=60.0)
    found = objective.hessian(torch.zeros(2, dtype=F64))
    torch.testing.assert_close(found, torch.eye(2, dtype=F64), rtol=1e-8, atol=1e-8)


def test_the_diagonal_of_a_diagonal_hessian_is_exact():
    scale = torch.logspace(-2, 2, 30, dtype=F64)
    target = pvi.from_log_density(
        lambda x: -0.5 * (x / scale).square().sum(-1), 30, vectorized=True, dtype=F64
    )
    found = Objective(target).diagonals(normal(4, 30) * scale, 0.1 * scale, generator())
    torch.testing.assert_close(found, (scale**-2).expand(4, 30), rtol=1e-8, atol=0)


def test_many_parameters_have_a_scale_from_the_start():
    scale = torch.logspace(-2, 2, 600, dtype=F64)
    target = pvi.from_log_density(
        lambda x: -0.5 * (x / scale).square().sum(-1), 600, vectorized=True, dtype=F64
    )
    start = find_start(Objective(target), normal(4, 600), generator())
    torch.testing.assert_close(start.metric, scale, rtol=1e-6, atol=0)


def funnel(size=10, scale=3.0):
    def log_density(x):
        v, rest = x[:, 0], x[:, 1:]
        inner = -0.5 * rest.square().sum(-1) * (-v).exp() - 0.5 * (size - 1) * v
        return -0.5 * (v / scale).square() + inner

    return Objective(pvi.from_log_density(log_density, size, vectorized=True, dtype=F64))


def test_chains_begin_where_the_mass_is_and_not_in_a_spike():
    # The mode lies at v = -40.5, thirteen standard deviations below the mean of v.
    start = find_start(funnel(), normal(16, 10), generator())
    assert "which is a spike" in start.reason
    assert float(start.points[:, 0].abs().max()) < 12


def test_the_mass_on_the_way_is_that_of_the_closed_form():
    # With the others at rest H = diag(1 / 9, e^-v, ...): their nine scales cancel their heights.
    path = torch.zeros(5, 1, 10, dtype=F64)
    path[:, 0, 0] = torch.tensor([20.0, 5.0, -1.0, -20.0, -40.5])
    height = funnel().gradient_at(path[-1]).potential
    found = Descent(path[-1], height, 5, tuple(path))
    factor = torch.diag(torch.tensor([3.0, *[math.exp(-20.25)] * 9], dtype=F64))
    mode = Minimum(path[-1, 0], float(height), factor)
    assert mode.log_mass == pytest.approx(math.log(3) - 40.5**2 / 18)
    inside = on_the_way(funnel(), found, mode)
    assert float(inside.place[0]) == -1
    assert inside.log_mass == pytest.approx(math.log(3) - 1 / 18)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_on_the_way_to_a_mode_that_holds_its_mass_there_is_nothing_better(scale):
    def log_density(x):
        return -2 * torch.log1p((x / scale).square() / 3).sum(-1)

    target = Objective(pvi.from_log_density(log_density, 3, vectorized=True, dtype=F64))
    start = find_start(target, 1e3 * scale * normal(8, 3), generator())
    assert "spike" not in start.reason
