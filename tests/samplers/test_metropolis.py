"""HMC and the Metropolis-corrected OBABO through ``sample``."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest

import particlevi as pvi
from particlevi.streams import ParticleStreams
from tests.stationarity.laws import controls_of, quadratic

CONJUGATE = pvi.from_log_likelihood(
    lambda theta: -0.5 * theta.square().sum(),
    lambda theta, x: -0.5 * (x - theta).square(),
    num_params=1,
    num_data=20,
)
DATA = torch.linspace(-1, 2, 20)

THIN = {"hmc": 8, "obabo": 2}

ADJUSTED = {
    "hmc": lambda target, T: pvi.hmc(target, num_leapfrog=3, temperature=T),
    "obabo": lambda target, T: pvi.obabo(target, temperature=T, metropolis_every=4),
}


@pytest.mark.parametrize("name", list(ADJUSTED))
@pytest.mark.parametrize("T", [0.25, 1.0, 4.0])
def test_variance_is_exact_at_a_coarse_step(name, T):
    lam = 1.0
    draws = pvi.sample(
        ADJUSTED[name](quadratic([[lam]]), T),
        step_size=1.2,
        num_particles=2000,
        num_warmup=5 * THIN[name] + 1,
        num_draws=20,
        thin=THIN[name],
        progress=False,
    )
    x = draws.particles
    error = T / lam * math.sqrt(2 * 3 / x.numel())
    assert abs(float(x.square().mean()) - T / lam) < 5 * error
    acceptance = draws.stats["acceptance"]
    assert 0.5 < float(acceptance.mean()) < 0.99
    if name == "obabo":
        kinetic = float(draws.stats["kinetic_temperature"].mean())
        assert abs(kinetic - T) < 5 * T * math.sqrt(2 * 3 / x.numel())


@pytest.mark.parametrize("length", [1, 2, 5])
def test_every_state_of_obabo_has_been_tested(length):
    """Kept as they come: no thin, no multiples to observe."""
    lam, h = 16.0, 0.3
    exact = torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    draws = pvi.sample(
        pvi.obabo(quadratic([[lam]]), metropolis_every=length),
        step_size=h,
        initial=exact / math.sqrt(lam),
        num_warmup=60,
        num_draws=30,
        progress=False,
    )
    means = (lam * draws.particles.square()).mean((1, 2))  # of independent chains
    error = float(means.std()) / math.sqrt(len(means))
    assert abs(float(means.mean()) - 1) < 4 * error < 0.04
    assert draws.attrs["gradients_per_step"] == length


def test_obabo_without_a_test_is_off_at_that_step():
    options = dict(step_size=1.2, num_particles=2000, num_warmup=41, num_draws=20, thin=8)
    draws = pvi.sample(pvi.obabo(quadratic([[1.0]])), progress=False, **options)
    assert float(draws.particles.square().mean()) == pytest.approx(1 / (1 - 0.36), rel=0.05)


def test_obabo_in_a_thousand_dimensions():
    """Gradient-guided Monte Carlo keeps N(1, 4 T) and its temperatures follow chi-square laws."""
    size, T, h = 1000, 0.75, math.sqrt(1 / 32)
    target = quadratic(0.25 * np.eye(size), mean=np.ones(size))
    exact = torch.randn(50, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = pvi.sample(
        pvi.obabo(target, -math.log(0.9) / h, T, metropolis_every=4),
        step_size=h,
        initial=1 + 2 * math.sqrt(T) * exact,
        num_draws=1,
        thin=21,
        progress=False,
    )
    assert float(draws.stats["acceptance"].mean()) > 0.6
    x = (draws.particles[:, 0] - 1) / (2 * math.sqrt(T))
    assert abs(float((x * exact).mean())) < 0.2
    assert kstest(x.flatten(), "norm").pvalue > 1e-3
    assert kstest(x.square().sum(-1), chi2(size).cdf).pvalue > 1e-3
    kinetic = draws.stats["kinetic_temperature"][:, 0] * size / T
    assert kstest(kinetic, chi2(size).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", list(ADJUSTED))
def test_a_minibatch_is_refused(name):
    with pytest.raises(ValueError, match="energy of all 20 data, got a batch of 5"):
        pvi.sample(
            ADJUSTED[name](CONJUGATE, 1.0),
            DATA,
            batch_size=5,
            step_size=0.1,
            num_particles=2,
            num_draws=5,
            progress=False,
        )


@pytest.mark.parametrize("name", list(ADJUSTED))
def test_conjugate_posterior(name):
    draws = pvi.sample(
        ADJUSTED[name](CONJUGATE, 1.0),
        DATA,
        step_size=0.25,
        num_particles=1000,
        num_warmup=5 * THIN[name] + 1,
        num_draws=20,
        thin=THIN[name],
        progress=False,
    )
    x = draws.particles.double()
    precision = 21.0
    mean = float(DATA.sum()) / precision
    assert abs(float(x.mean()) - mean) < 5 * math.sqrt(3 / precision / x.numel())
    assert abs(float(x.var()) * precision - 1) < 5 * math.sqrt(2 * 3 / x.numel())


@pytest.mark.parametrize("name", list(ADJUSTED))
def test_first_step_only_evaluates(name):
    sampler = ADJUSTED[name](quadratic([[1.0]]), 1.0)
    start = torch.tensor([[3.0], [-1.0]], dtype=torch.float64)
    draws = pvi.sample(sampler, step_size=0.3, initial=start, num_draws=1, progress=False)
    assert torch.equal(draws.particles[:, 0], start)
    assert torch.equal(draws.stats["potential"][:, 0], 0.5 * start[:, 0] ** 2)


@pytest.mark.parametrize("name", list(ADJUSTED))
def test_a_path_out_of_the_support_is_rejected_and_told(name):
    """Beyond 1 the density is 0: no chain goes there, and the acceptance is a number."""

    def log_density(x):
        return torch.where(x.abs() < 1, -0.5 * x.square(), -torch.inf).sum(-1)

    target = pvi.from_log_density(log_density, 1, vectorized=True, dtype=torch.float64)
    draws = pvi.sample(
        ADJUSTED[name](target, 1.0),
        step_size=1.0,
        initial=torch.zeros(50, 1, dtype=torch.float64),
        num_draws=40,
        progress=False,
    )
    assert draws.particles.abs().max() < 1
    acceptance, error = draws.stats["acceptance"], draws.stats["energy_error"]
    assert torch.isfinite(acceptance).all()
    assert (acceptance[~torch.isfinite(error)] == 0).all()
    assert bool((acceptance == 0).any()) and 0.02 < float(acceptance.mean()) < 0.9


def test_step_sizes_are_spread_evenly_around_theirs():
    """Without a force a chain moves by h p L: h is uniform in ``1 - jitter ... 1 + jitter``."""
    flat = pvi.from_log_density(lambda x: 0 * x.sum(), 1, dtype=torch.float64)
    jitter, length, num = 0.4, 3, 4001
    sampler = pvi.hmc(flat, num_leapfrog=length, jitter=jitter)
    streams = ParticleStreams(0)
    state = sampler.init(torch.zeros(num, 1, dtype=torch.float64), streams)
    state = state._replace(memory=state.memory._replace(begun=torch.ones(())))
    u = torch.linspace(0, 1, num, dtype=torch.float64)
    noise = (torch.ones(num, 1, dtype=torch.float64), torch.stack([torch.zeros_like(u), u], 1))
    moved, _ = sampler.step(state, None, (noise, ()), controls_of(sampler, 0.1))
    expected = length * 0.1 * (1 - jitter + 2 * jitter * u)
    torch.testing.assert_close(moved.position[:, 0], expected, rtol=1e-12, atol=0)
    drawn, _ = sampler.draw_noise(state, streams)
    assert kstest(drawn[1][:, 1], "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("patience", "ends"), [(10.0, 1.0), (math.inf, 0.0)])
def test_a_trajectory_ends_early_only_where_patience_has_an_end(patience, ends):
    """After the warm-up one that left the support goes on to its length, and is refused there."""
    wall = pvi.from_log_density(
        lambda x: torch.where(x.square().sum(-1) > 0, torch.nan, 0.0 * x.sum(-1)),
        2,
        vectorized=True,
        dtype=torch.float64,
    )
    sampler = pvi.randomized_hmc(wall)
    streams = ParticleStreams(0)
    state = sampler.init(torch.zeros(8, 2, dtype=torch.float64), streams)
    controls = {
        "step_size": torch.tensor(0.1, dtype=torch.float64),
        "trajectory_length": torch.tensor(1e6, dtype=torch.float64),
        "patience": torch.tensor(patience, dtype=torch.float64),
    }
    for _ in range(2):
        state, info = sampler.step(state, None, sampler.draw_noise(state, streams), controls)
    assert info.tested.tolist() == [ends] * 8


@pytest.mark.parametrize(
    "make", [pvi.hmc, pvi.randomized_hmc, pvi.mams], ids=lambda make: make.__name__
)
def test_the_first_step_only_evaluates_and_is_accepted(make):
    """A tuner reads its acceptance, which is a probability."""
    target = pvi.from_log_density(lambda x: -0.5 * x.square().sum(-1), 3, vectorized=True)
    draws = pvi.sample(
        make(target), initial=torch.ones(4, 3), step_size=0.3, num_warmup=0, num_draws=2,
        progress=False,
    )  # fmt: skip
    assert torch.equal(draws.particles[:, 0], torch.ones(4, 3))
    assert draws.stats["acceptance"][:, 0].tolist() == [1.0] * 4
