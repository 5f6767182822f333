"""``diagnose`` is silent about right runs: at most one in ten is called wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import particlevi as pvi
from tests.diagnostics.test_agreement import autoregressive
from tests.stationarity.laws import quadratic

RUNS = 30


def normal(size):
    return pvi.from_log_density(
        lambda x: -0.5 * x.square().sum(-1), size, vectorized=True, dtype=torch.float64
    )


@pytest.mark.slow
@pytest.mark.parametrize("chains", [2, 8])
@pytest.mark.parametrize("size", [1, 30])
@pytest.mark.parametrize(("a", "worth"), [(0.0, 420), (0.75, 420), (0.9, 600)])
def test_exact_sets(chains, size, a, worth):
    """Exact AR(1) sets that are worth at least 400 independent draws."""
    length = math.ceil(worth / chains * (1 + a) / (1 - a))
    rng, target = np.random.default_rng(0), normal(size)
    alarms = 0
    for _ in range(RUNS):
        values = torch.from_numpy(autoregressive(a, chains, length, size, rng))
        alarms += not pvi.Draws.from_tensor(values, target).diagnose(verbose=False).ok
    assert alarms <= RUNS // 10


@pytest.mark.slow
def test_many_coordinates_of_chains_with_a_long_memory():
    """10 chains of 42 independent draws each, where estimates of the ESS are at their worst."""
    rng, target = np.random.default_rng(5), normal(150)
    length = math.ceil(42 * (1 + 0.75) / (1 - 0.75))
    alarms = 0
    for _ in range(40):
        values = torch.from_numpy(autoregressive(0.75, 10, length, 150, rng))
        alarms += not pvi.Draws.from_tensor(values, target).diagnose(verbose=False).ok
    assert alarms <= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        pvi.sghmc,
        pvi.baoab,
        lambda target: pvi.obabo(target, metropolis_every=1),
        pvi.sgnht,
        lambda target: pvi.hmc(target, num_leapfrog=5),
        pvi.leimkuhler_matthews,
    ],
    ids=["sghmc", "baoab", "obabo", "sgnht", "hmc", "leimkuhler_matthews"],
)
def test_right_samplers(make):
    """On a Gaussian whose curvatures differ fourfold, at half the stable step."""
    target = quadratic(torch.diag(torch.linspace(0.5, 2.0, 20, dtype=torch.float64)).numpy())
    alarms = 0
    for seed in range(10):
        draws = pvi.sample(
            make(target),
            step_size=0.35,
            num_particles=4,
            num_warmup=200,
            num_draws=400,
            thin=5,
            seed=seed,
            progress=False,
        )
        alarms += not draws.diagnose(verbose=False).ok
    assert alarms <= 1
