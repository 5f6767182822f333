"""Trajectories of random length with a Metropolis test: ``mams`` and ``randomized_hmc``."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

import particlevi as pvi
from particlevi.samplers._metropolis import momentum_and_test
from particlevi.samplers._trajectories import num_steps

PRECISION = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
TARGET = pvi.from_log_density(
    lambda x: -0.5 * (PRECISION * x.square()).sum(-1), 3, vectorized=True, dtype=torch.float64
)
ADJUSTED = {"mams": (pvi.mams, 0.7, 1.6), "randomized_hmc": (pvi.randomized_hmc, 0.45, 1.0)}

adjusted = pytest.mark.parametrize("name", list(ADJUSTED))


def make(name, target=TARGET, **options):
    factory, _, length = ADJUSTED[name]
    return factory(target, trajectory_length=length, **options)


def exact(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 3, generator=generator, dtype=torch.float64) / PRECISION.sqrt()


@pytest.mark.parametrize("mean", [1.0, 1.3, 2.0, 3.7, 10.2])
def test_numbers_of_steps_have_their_mean(mean):
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    found = num_steps(uniform, torch.tensor(mean, dtype=torch.float64))
    assert float(found.mean()) == pytest.approx(mean, rel=1e-4)
    assert float(found.min()) == 1
    assert float(found.max()) == math.ceil(2 * mean - 1 - 1e-9)


@adjusted
@pytest.mark.parametrize("integrator", ["leapfrog", "minimal_norm", "omelyan"])
def test_the_law_is_exact_at_a_coarse_step(name, integrator):
    wider = {"leapfrog": 1.0, "minimal_norm": 1.6, "omelyan": 3.0}[integrator]
    step_size = wider * ADJUSTED[name][1]
    draws = pvi.sample(
        make(name, integrator=integrator),
        step_size=step_size,
        initial=exact(4000),
        num_warmup=30,
        num_draws=12,
        thin=5,
        progress=False,
    )
    square = (draws.particles.square() * PRECISION).mean(1)
    error = square.std(0) / math.sqrt(len(square))
    assert float(((square.mean(0) - 1) / error).abs().max()) < 4
    tested = draws.stats["tested"].bool()
    assert 0.5 < float(draws.stats["acceptance"][tested].mean()) < 0.98


@adjusted
def test_without_the_test_the_law_is_off_at_that_step(name, monkeypatch):
    """What the test before would see if every trajectory were accepted."""
    module = importlib.import_module(f"particlevi.samplers.{name}")
    monkeypatch.setattr(module, "momentum_and_test", lucky(momentum_and_test))
    draws = pvi.sample(
        make(name, integrator="leapfrog"),
        step_size=ADJUSTED[name][1],
        initial=exact(4000),
        num_warmup=30,
        num_draws=12,
        thin=5,
        progress=False,
    )
    square = (draws.particles.square() * PRECISION).mean(1)
    error = square.std(0) / math.sqrt(len(square))
    assert float(((square.mean(0) - 1) / error).abs().max()) > 6


def lucky(draw_noise):
    """Noise under which every test is passed."""

    def noise(state, streams):
        velocity, uniform = draw_noise(state, streams)
        uniform[:, 1] = 0.0
        return velocity, uniform

    return noise


@adjusted
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_position_has_the_law_after_any_number_of_steps(name, steps):
    """In the middle of trajectories too, since their lengths do not depend on the position."""
    draws = pvi.sample(
        make(name),
        step_size=ADJUSTED[name][1],
        initial=exact(5000, seed=steps),
        num_draws=1,
        thin=steps + 1,
        progress=False,
    )
    z = draws.particles[:, 0] * PRECISION.sqrt()
    assert all(kstest(z[:, k], "norm").pvalue > 1e-3 for k in range(3))


@adjusted
def test_flights_have_the_length_that_is_asked_for_in_the_mean(name):
    step_size, length = 0.3, ADJUSTED[name][2]
    draws = pvi.sample(
        make(name), step_size=step_size, initial=exact(3000), num_draws=14, progress=False
    )
    tested = draws.stats["tested"].double()
    assert bool(tested.any(1).all())
    steps = tested.argmax(1).double()  # the first step only evaluates
    error = float(steps.std()) / math.sqrt(len(steps))
    assert abs(float(steps.mean()) - length / step_size) < 4 * error < 0.3


@adjusted
def test_the_first_step_only_evaluates(name):
    start = exact(5)
    draws = pvi.sample(make(name), step_size=0.3, initial=start, num_draws=1, progress=False)
    assert torch.equal(draws.particles[:, 0], start)
    assert torch.equal(draws.stats["potential"][:, 0], TARGET(start))
    assert float(draws.stats["tested"].sum()) == 0


@adjusted
def test_energy_errors_of_a_trajectory_add_up_to_its_acceptance(name):
    draws = pvi.sample(
        make(name),
        step_size=ADJUSTED[name][1],
        initial=exact(50),
        num_draws=40,
        progress=False,
    )
    stats = {key: value.numpy() for key, value in draws.stats.items()}
    tested = stats["tested"] > 0
    for chain in range(50):
        last = 0
        for end in np.flatnonzero(tested[chain]):
            total = stats["energy_error"][chain, last : end + 1].sum()
            expected = min(1.0, math.exp(-total))
            assert stats["acceptance"][chain, end] == pytest.approx(expected, abs=1e-9)
            last = end + 1


@adjusted
def test_a_flight_out_of_the_support_is_rejected_at_its_end(name):
    """The law inside stays exact: an exponential in each coordinate."""

    def log_density(x):
        return torch.where((x > 0).all(-1), -x.sum(-1), torch.nan)

    target = pvi.from_log_density(log_density, 2, vectorized=True, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    start = -torch.rand(4000, 2, generator=generator, dtype=torch.float64).log()
    draws = pvi.sample(
        make(name, target),
        step_size=0.5,
        initial=start,
        num_warmup=20,
        num_draws=1,
        progress=False,
    )
    assert torch.isfinite(draws.particles).all()
    assert kstest(draws.particles[:, 0].flatten(), "expon").pvalue > 1e-3
    assert not torch.equal(draws.particles[:, 0], start)


@adjusted
def test_a_minibatch_is_refused(name):
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        lambda theta, x: -0.5 * (x - theta[0]).square(),
        num_params=2,
        num_data=20,
    )
    with pytest.raises(ValueError, match="energy of all 20 data, got a batch of 5"):
        pvi.sample(
            make(name, target),
            torch.linspace(-1, 2, 20),
            batch_size=5,
            step_size=0.1,
            num_particles=2,
            num_draws=5,
            progress=False,
        )


def test_one_parameter_is_refused():
    target = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 1)
    with pytest.raises(ValueError, match="at least 2 parameters, got 1"):
        pvi.mams(target)


@pytest.mark.parametrize("size", [2, 9])
def test_a_flight_is_by_default_a_quarter_of_a_period(size):
    """Of a direction of unit length on a standard Gaussian: ``pi / 2 sqrt(D)``."""
    target = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), size)
    length = pvi.mams(target).schedules["trajectory_length"](0)
    assert length == pytest.approx(math.pi / 2 * math.sqrt(size), rel=1e-12)


def test_a_flight_with_momenta_is_by_default_a_quarter_of_a_period():
    length = pvi.randomized_hmc(TARGET).schedules["trajectory_length"](0)
    assert length == pytest.approx(math.pi / 2, rel=1e-12)
