"""Dual averaging: its sequence, and where it ends."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.running.world import OneProcess
from particlevi.samplers import _trajectories
from particlevi.tuning.dual_averaging import advance, begin, dual_averaging, share_of
from particlevi.tuning.windows import windows
from tests.tuning.world import drive

ACCEPTANCES = [0.0, 1.0, 0.3, 0.9, 0.75, 0.81, 0.2, 1.0, 0.6, 0.85]


def test_the_sequence_is_that_of_the_equations():
    e0, target = 0.37, 0.8
    mu, h_bar, log_average = math.log(10 * e0), 0.0, math.log(e0)
    state = begin(torch.tensor(e0, dtype=torch.float64))
    for t, acceptance in enumerate(ACCEPTANCES, start=1):
        h_bar = (1 - 1 / (t + 10)) * h_bar + (target - acceptance) / (t + 10)
        log_step = mu - math.sqrt(t) / 0.05 * h_bar
        log_average = t**-0.75 * log_step + (1 - t**-0.75) * log_average
        state = advance(state, torch.tensor(acceptance, dtype=torch.float64), target)
        assert float(state.log_step) == pytest.approx(log_step, abs=1e-12)
        assert float(state.log_average) == pytest.approx(log_average, abs=1e-12)


def test_a_step_that_is_a_share_of_a_trajectory_counts_as_much():
    """The sequence with t = 0.25, 0.5, ..., written out."""
    share, target, e0 = 0.25, 0.8, 0.37
    h_bar, log_average, t = 0.0, math.log(e0), 0.0
    state = begin(torch.tensor(e0, dtype=torch.float64))
    for acceptance in ACCEPTANCES:
        t += share
        h_bar += share / (t + 10) * (target - acceptance - h_bar)
        log_step = math.log(10 * e0) - math.sqrt(t) / 0.05 * h_bar
        log_average += share * max(t, 1.0) ** -0.75 * (log_step - log_average)
        state = advance(state, torch.tensor(acceptance, dtype=torch.float64), target, share)
    assert float(state.log_step) == pytest.approx(log_step, abs=1e-12)
    assert float(state.log_average) == pytest.approx(log_average, abs=1e-12)


@pytest.mark.parametrize(
    ("acceptance", "expected"), [(0.5, 2 / 3), (0.97, 2 / 3), (0.985, 1.0), (1.0, 1.0)]
)
def test_trajectories_count_but_where_the_step_is_far_too_short(acceptance, expected):
    """Of four chains one has no finite potential; two of the others ended a trajectory."""
    told = torch.tensor([1.0, 2.0, 3.0, math.nan])
    info = _trajectories.Info(told, told, told, torch.tensor([1.0, 0.0, 1.0, 1.0]), told)
    found = share_of(info, torch.tensor(acceptance), 0.8, OneProcess())
    assert float(found) == pytest.approx(expected)


def correlated(size, correlation):
    """A Gaussian of unit variances that all correlate as much, and the root of its covariance."""
    covariance = torch.full((size, size), correlation, dtype=torch.float64)
    covariance.fill_diagonal_(1.0)
    precision = torch.linalg.inv(covariance)
    target = pvi.from_log_density(
        lambda x: -0.5 * ((x @ precision) * x).sum(-1), size, vectorized=True, dtype=torch.float64
    )
    return target, torch.linalg.cholesky(covariance)


@pytest.mark.parametrize(("chains", "steps"), [(16, 400), (1, 800)])
def test_trajectories_of_many_steps_reach_the_target_too(chains, steps):
    """A diagonal metric leaves scales of 0.1 and 3: trajectories take a dozen steps or more."""
    target, root = correlated(10, 0.99)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(chains, 10, generator=generator, dtype=torch.float64) @ root.T
    tuner = windows("diagonal", trajectory_length=0.5 * math.pi)
    _, infos, _ = drive(pvi.randomized_hmc(target), tuner, start, steps, 400)
    acceptance, tested = (
        torch.stack([getattr(info, name) for info in infos]) for name in ("acceptance", "tested")
    )
    assert 0.7 < float(acceptance[tested > 0].mean()) < 0.92


def test_an_acceptance_that_is_not_finite_changes_nothing():
    state = advance(begin(torch.tensor(0.1)), torch.tensor(0.3), 0.8)
    after = advance(state, torch.tensor(math.nan), 0.8)
    assert all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


@pytest.mark.parametrize("first", [1e-4, 1e3])
@pytest.mark.parametrize("target", [0.8, 0.9])
def test_the_acceptance_reached_is_the_target(first, target):
    normal = pvi.from_log_density(
        lambda x: -0.5 * x.square().sum(-1), 50, vectorized=True, dtype=torch.float64
    )
    start = torch.randn(32, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = pvi.hmc(normal, num_leapfrog=3)
    _, infos, state = drive(sampler, dual_averaging(target, first), start, 300, 100)
    reached = torch.stack([info.acceptance for info in infos]).mean()
    assert float(reached) == pytest.approx(target, abs=0.04)
    report = dual_averaging(target, first).report(state)
    assert report["acceptance"] == pytest.approx(target, abs=0.05)


def test_the_average_is_used_after_the_warmup():
    normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 2)
    _, _, state = drive(pvi.hmc(normal), dual_averaging(), torch.zeros(4, 2), 20, 1)
    assert torch.equal(state.averages.log_step, state.averages.log_average)


@pytest.mark.parametrize("bad", [{"target_acceptance": 1.0}, {"step_size": 0.0}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        dual_averaging(**bad)
