"""Windows of the warm-up, and the metric they find."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import particlevi as pvi
from particlevi.running.world import OneProcess
from particlevi.tuning.metric import add, factor_of_hessian, no_moments, regularised
from particlevi.tuning.windows import pooled_windows, stan_windows, windows
from tests.tuning.world import drive

ROUNDED = 2e-6
"""Deviations are rounded to 20 bits, so that their products add up exactly in any order."""


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gaussian(factor):
    precision = torch.linalg.inv(factor @ factor.T)
    return pvi.from_log_density(
        lambda x: -0.5 * ((x @ precision) * x).sum(-1),
        len(factor),
        vectorized=True,
        dtype=torch.float64,
    )


def test_stan_windows_double():
    ends = [75, *stan_windows(1000)]
    assert [b - a for a, b in itertools.pairwise(ends)] == [25, 50, 100, 200, 500]
    assert ends[-1] == 950


@pytest.mark.parametrize("num_warmup", [20, 100, 149, 150, 151, 400, 1234])
@pytest.mark.parametrize("rule", [stan_windows, pooled_windows])
def test_windows_end_in_order_before_the_last_steps(rule, num_warmup):
    ends = rule(num_warmup)
    assert ends == sorted(set(ends))
    assert ends[0] > 0
    assert ends[-1] < num_warmup


def test_a_short_warmup_has_no_windows():
    assert stan_windows(19) == pooled_windows(19) == []


@pytest.mark.parametrize("dense", [True, False])
def test_moments_of_parts_are_those_of_the_whole(dense):
    draws = normal(30, 4)
    weight = torch.arange(30).double() % 3
    moments = no_moments(draws, dense)
    for part, share in zip(draws.split(7), weight.split(7), strict=True):
        moments = add(moments, part, share, OneProcess())
    repeated = draws.repeat_interleave(weight.long(), 0)
    expected = repeated.T.cov() if dense else repeated.var(0)
    torch.testing.assert_close(moments.mean, repeated.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.covariance, expected, rtol=ROUNDED, atol=ROUNDED)


def test_draws_that_are_not_finite_do_not_count():
    draws = normal(10, 3)
    bad = draws.clone()
    bad[3, 1] = math.nan
    ones = torch.ones(10).double()
    moments = add(no_moments(draws, True), bad, ones, OneProcess())
    rest = draws[torch.arange(10) != 3]
    torch.testing.assert_close(moments.covariance, rest.T.cov(), rtol=ROUNDED, atol=ROUNDED)


def test_the_metric_of_draws_is_shrunk_in_the_coordinates_before():
    before = torch.linalg.cholesky(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
    moments = add(no_moments(before, True), normal(9, 2), torch.ones(9).double(), OneProcess())
    found = regularised(moments, before)
    n = 9
    expected = (n * moments.covariance + 2 * before @ before.T) / (n + 2)
    torch.testing.assert_close(found @ found.T, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, found.tril())


def test_a_window_without_draws_leaves_the_metric():
    before = torch.tensor([[2.0, 0.0], [0.3, 1.0]], dtype=torch.float64)
    found = regularised(no_moments(before, True), before)
    torch.testing.assert_close(found, before, rtol=1e-12, atol=1e-12)


def test_the_factor_of_a_hessian_is_a_root_of_its_inverse():
    root = normal(6, 6) * torch.logspace(-3, 3, 6, dtype=torch.float64)
    hessian = root.T @ root
    factor = factor_of_hessian(hessian)
    assert torch.equal(factor, factor.tril())
    assert bool((factor.diagonal() > 0).all())
    inside = factor.T @ hessian @ factor
    torch.testing.assert_close(inside, torch.eye(6).double(), rtol=1e-6, atol=1e-6)


def test_a_hessian_that_curves_downwards_gives_a_finite_factor():
    factor = factor_of_hessian(torch.diag(torch.tensor([1.0, -4.0, 0.0], dtype=torch.float64)))
    assert torch.isfinite(factor).all()
    assert float(factor[1, 1]) == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["randomized_hmc", "mams"])
def test_a_dense_metric_is_found_and_the_law_is_right(kind):
    factor = torch.tensor([[1e-2, 0.0, 0.0], [3.0, 1.0, 0.0], [40.0, -90.0, 30.0]]).double()
    start = normal(32, 3, seed=2) @ factor.T
    sampler, root = {
        "randomized_hmc": (pvi.randomized_hmc, 1.0),
        "mams": (pvi.mams, math.sqrt(3)),
    }[kind]
    tuner = windows("dense", step_size=root, trajectory_length=root * math.pi / 2)
    draws, infos, state = drive(sampler(gaussian(factor)), tuner, start, 600, 400)
    z = torch.linalg.solve_triangular(factor, draws.mT, upper=False).mT
    square = z.square().mean(1)
    error = square.std(0) / math.sqrt(len(square))
    assert float(((square.mean(0) - 1) / error).abs().max()) < 4
    whitened = torch.linalg.solve_triangular(factor, state.metric, upper=False)
    covariance = whitened @ whitened.T
    assert float((covariance - torch.eye(3)).abs().max()) < 0.35
    reached = torch.stack([info.acceptance for info in infos]).mean()
    assert float(reached) == pytest.approx(0.8, abs=0.06)


def test_a_diagonal_metric_is_found_over_six_decades():
    scale = torch.logspace(-3, 3, 7, dtype=torch.float64)
    tuner = windows("diagonal", trajectory_length=math.pi / 2, start=scale.sqrt())
    start = normal(32, 7) * scale
    _, _, state = drive(pvi.randomized_hmc(gaussian(scale.diag())), tuner, start, 800, 1)
    assert float((state.metric / scale).log().abs().max()) < 0.3


def test_chains_where_the_potential_is_nan_do_not_stop_the_others():
    def log_density(x):
        value = -0.5 * x.square().sum(-1)
        return torch.where(x[:, 0] > 50, torch.nan, value)

    target = pvi.from_log_density(log_density, 3, vectorized=True, dtype=torch.float64)
    start = normal(16, 3)
    start[:2, 0] = 51.0
    tuner = windows("dense", trajectory_length=math.pi / 2)
    draws, _, state = drive(pvi.randomized_hmc(target), tuner, start, 400, 300)
    assert 0.1 < float(state.averages.log_step.exp()) < 2
    assert float(draws[2:].square().mean()) == pytest.approx(1, abs=0.1)


def test_the_first_metric_must_fit_its_kind():
    with pytest.raises(ValueError, match="diagonal metric is a tensor of 1 axes"):
        windows("diagonal", start=torch.eye(2))


def funnel():
    """A scale of ``exp(v)`` in four directions, v normal with standard deviation 1."""
    return pvi.from_log_density(
        lambda x: -0.5 * (x[:, 0] ** 2 + (x[:, 1:] / x[:, :1].exp()).square().sum(1)) - 4 * x[:, 0],
        5,
        vectorized=True,
        dtype=torch.float64,
    )


def test_a_chain_that_begins_where_the_density_is_narrow_gets_away():
    start = normal(16, 5, seed=3)
    start[:, 1:] *= start[:, :1].exp()
    start[5] = torch.tensor([-4.0, 0.3, -0.2, 0.2, -0.3])
    tuner = windows(trajectory_length=math.pi / 2)
    draws, _, state = drive(pvi.randomized_hmc(funnel()), tuner, start, 400, 1)
    assert draws[5, -1, 0] > -3
    assert 1 <= state.stuck.times <= 3
