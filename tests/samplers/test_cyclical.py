"""Cyclical stochastic-gradient MCMC: the schedule, and the draws it lets through."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from tests.stationarity.laws import NoisyGradient, quadratic


@pytest.mark.parametrize("num_steps, cycles", [(100, 4), (103, 4), (50_000, 30)])
def test_formula(num_steps, cycles):
    """``(a/2) [cos(pi mod(k - 1, ceil(K/M)) / ceil(K/M)) + 1]`` with k from 1."""
    period = math.ceil(num_steps / cycles)
    schedule = pvi.schedules.cyclical(0.7, period=period)
    for k in range(1, min(num_steps, 5 * period) + 1):
        expected = 0.35 * (math.cos(math.pi * ((k - 1) % period) / period) + 1)
        assert schedule(k - 1) == pytest.approx(expected, rel=1e-12)


def test_ends_and_middle_of_a_cycle():
    schedule = pvi.schedules.cyclical(0.7, period=50)
    assert [schedule(k) for k in (0, 25, 50)] == pytest.approx([0.7, 0.35, 0.7], rel=1e-12)
    assert 0 < schedule(49) < 0.002


@pytest.mark.parametrize("constant_step", [False, True])
def test_draws_come_from_the_sampling_part_alone(constant_step):
    schedule = pvi.schedules.cyclical(0.1, period=10, exploration=0.6)
    draws = pvi.sample(
        pvi.sgld(quadratic([[1.0]]), temperature=schedule.temperature()),
        step_size=0.1 if constant_step else schedule,
        num_particles=3,
        num_draws=12,
        progress=False,
    )
    steps = draws.stats["step"] - 1
    assert steps.tolist() == [6, 7, 8, 9, 16, 17, 18, 19, 26, 27, 28, 29]
    assert (draws.stats["temperature"] == 1).all()


def test_no_noise_while_exploring():
    schedule = pvi.schedules.cyclical(0.1, period=10, exploration=0.9)
    start = torch.ones(2, 1, dtype=torch.float64)
    draws = pvi.sample(
        pvi.sgld(quadratic([[1.0]]), temperature=schedule.temperature()),
        step_size=pvi.schedules.constant(0.1),
        initial=start,
        num_warmup=9,
        num_draws=1,
        store=pvi.storage.InMemory(warmup=True),
        progress=False,
    )
    expected = 0.9 ** torch.arange(1, 10, dtype=torch.float64)
    torch.testing.assert_close(draws.warmup[0, :, 0], expected)


@pytest.mark.slow
def test_twenty_five_modes():
    """Zhang and others, 2020: a grid of modes that cycles visit and a small constant step does not.

    Gradient noise N(0, I), compensated; the truth has variance 8.03 in each coordinate. Which mode
    a cycle ends in follows the law of its long steps: 64 chains gave 6.8 and 7.3.
    """
    line = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
    modes = torch.cartesian_prod(line, line)

    def log_density(x):
        return torch.logsumexp(-0.5 * (x[:, None] - modes).square().sum(-1) / 0.03, -1)

    target = pvi.from_log_density(log_density, 2, vectorized=True)
    noisy = NoisyGradient(target, 1.0)
    start = 20 * torch.rand(8, 2, generator=torch.Generator().manual_seed(0)) - 10
    sampler = pvi.sgld(noisy, gradient_noise=1.0)
    options = dict(initial=start, num_draws=12_000, progress=False, num_warmup=1000)
    cycles = pvi.schedules.cyclical(0.07, period=1000, exploration=0.05)
    found = pvi.sample(sampler, step_size=cycles, **options).particles
    small = pvi.sample(sampler, step_size=0.002, **options).particles

    def visited(particles):
        nearest = torch.cdist(particles, modes).argmin(-1)
        return [len(chain.unique()) for chain in nearest]

    assert min(visited(found)) >= 15
    assert max(visited(small)) <= 10
    assert found.mean((0, 1)).abs().max() < 0.5
    assert found.flatten(0, 1).var(0).tolist() == pytest.approx([8.03, 8.03], rel=0.25)
