"""The tuner of unadjusted samplers: its equilibrium, its bound, and a curvature that moves."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi.data import as_data
from particlevi.gradients.minibatch import minibatch
from particlevi.running.world import OneProcess
from particlevi.tuning.bounded_heat import bounded_for, bounded_heat
from particlevi.tuning.stability import StabilityWarning
from particlevi.typing import Progress
from tests.tuning.noisy import baoa_law, conjugate, data_with_covariance

N, D = 400, 6
CORRELATED = torch.eye(D, dtype=torch.float64) + 8 / D * torch.ones(D, D, dtype=torch.float64)
DATA = data_with_covariance(N, CORRELATED)
TARGET = conjugate(N, torch.eye(D, dtype=torch.float64))


def start(chains=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(chains, D, generator=generator, dtype=torch.float64) / math.sqrt(N)


def tuned(batch_size, **options):
    tuner = bounded_heat(minibatch(TARGET), DATA, batch_size, **options)
    return tuner, tuner.init(start(), {})


@pytest.mark.parametrize("batch_size", [50, None])
@pytest.mark.parametrize("dynamics", ["momentum", "overdamped"])
def test_one_equilibrium_from_any_first_step(dynamics, batch_size):
    """Steps 1e4 times too small and 1e2 times too large end where a good one does.

    Each has probes of its own, whose estimate of the noise has a standard error of about 7 %.
    """
    good = float(tuned(batch_size, dynamics=dynamics, step_size=1e-2)[1].step_size)
    for first in (1e-4 * 1e-2, 1e2 * 1e-2):
        _, state = tuned(batch_size, dynamics=dynamics, step_size=first)
        assert float(state.step_size) == pytest.approx(good, rel=0.2)


@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("batch_size", [20, 200])
def test_every_direction_is_within_the_bound_by_the_exact_law(batch_size, compensated):
    """The heat that was bounded is the heat of the exact stationary law, to what is estimated."""
    tuner, state = tuned(batch_size, compensated=compensated)
    h, friction = float(state.step_size), float(state.friction)
    noise = N**2 / batch_size * CORRELATED.numpy()
    taken = np.diag(noise) if compensated else None
    law = baoa_law(N * np.eye(D), noise, h, friction, taken)[:D, :D]
    heat = np.linalg.eigvalsh(N * law - np.eye(D))
    assert max(abs(heat)) < 1.15 * 0.1 * math.sqrt(2)
    assert abs(heat.mean()) < 1.15 * 0.1 * math.sqrt(2 / D)
    report = tuner.report(state)
    assert report["limited_by"] == "noise"
    assert report["shift"] == pytest.approx(0.1, rel=1e-3)


def test_an_estimate_of_each_coordinate_alone_would_not_do():
    """By the diagonal all noise is taken out, and the top direction is hot."""
    batch_size, h, friction = 50, 8e-3, 275.0
    noise = N**2 / batch_size * CORRELATED.numpy()
    law = baoa_law(N * np.eye(D), noise, h, friction, np.diag(noise))[:D, :D]
    assert np.trace(N * law) / D == pytest.approx(1, abs=0.01)
    assert np.linalg.eigvalsh(N * law).max() > 1 + 2 * 0.1 * math.sqrt(2)


def test_without_noise_the_step_is_that_of_the_energy_error():
    tuner, state = tuned(None)
    report = tuner.report(state)
    assert report["limited_by"] == "energy error"
    assert report["heat"] == 0
    assert report["energy_error"] == pytest.approx(1e-4, rel=0.5)
    # About a third of the stable range.
    assert 0.1 < float(state.step_size) * math.sqrt(N) / 2 < 0.4


def test_larger_batches_allow_more_in_proportion():
    small, large = (float(tuned(size)[1].factor) for size in (20, 80))
    assert large / small == pytest.approx(4, rel=0.1)


def test_a_control_variate_at_the_mode_of_a_gaussian_has_no_noise():
    center = torch.zeros(D, dtype=torch.float64)
    estimator = pvi.control_variate(TARGET, DATA, center)
    tuner = bounded_heat(estimator, DATA, 20)
    state = tuner.init(start(), {})
    assert tuner.report(state)["limited_by"] == "energy error"


def follow(tuner, state, positions, num_warmup):
    step = int(state.probes)
    for k, position in enumerate(positions):
        info = _Info(torch.zeros(len(position)))
        state = tuner.update(state, position, info, Progress(k + 1, num_warmup, 1), OneProcess())
    assert int(state.probes) > step
    return state


class _Info:
    def __init__(self, potential):
        self.potential = potential


QUARTIC = pvi.from_log_density(
    lambda x: -0.25 * x.pow(4).sum(-1), 3, vectorized=True, dtype=torch.float64
)


def test_the_step_follows_a_curvature_that_moves_within_the_warm_up_and_says_so():
    """The curvature is ``3 x^2``: chains that wander from 2 to 40 see it rise 400 times."""
    tuner = bounded_heat(minibatch(QUARTIC))
    near = 2 + 0.1 * torch.randn(
        8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    state = tuner.init(near, {})
    first = float(state.step_size)
    path = [near * (1 + 19 * k / 100) for k in range(100)]
    with pytest.warns(StabilityWarning, match="curvature rose"):
        state = follow(tuner, state, path, 100)
    assert float(state.step_size) < 2 / math.sqrt(3 * 40**2)
    assert float(state.step_size) < 0.1 * first


def test_chains_at_a_place_that_is_not_finite_are_no_ratchet():
    tuner = bounded_heat(minibatch(TARGET), DATA, 50)
    lost = start()
    lost[:8] = math.nan
    state = tuner.init(start(), {})
    before = float(state.factor)
    state = follow(tuner, state, [lost] * 200, 500)
    assert float(state.factor) == pytest.approx(before, rel=0.2)
    assert float(state.step_size) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = follow(tuner, state, [start()] * 200, 500)
    assert float(state.factor) == pytest.approx(before, rel=0.2)


@pytest.mark.parametrize("make", [pvi.sghmc, pvi.baoab, pvi.sgld, pvi.leimkuhler_matthews])
def test_the_tuner_of_a_sampler_is_found_by_what_it_declares(make):
    found = bounded_for(make(TARGET), None, as_data(DATA, TARGET), 10)
    assert found is not None
    momentum = make in (pvi.sghmc, pvi.baoab)
    assert found.dynamics == ("momentum" if momentum else "overdamped")
    assert found.compensated is False


@pytest.mark.parametrize(
    "sampler",
    [
        pvi.hmc(TARGET),
        pvi.obabo(TARGET),
        pvi.sghmc(TARGET, integrator="symplectic"),
        pvi.sghmc(pvi.structured(TARGET, groups=torch.arange(D) // 2)),
    ],
)
def test_methods_without_a_law_of_their_noise_have_none(sampler):
    assert bounded_for(sampler, None, as_data(DATA, TARGET), 10) is None


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="tolerance"):
        bounded_heat(minibatch(TARGET), DATA, 10, tolerance=0.0)
    with pytest.raises(ValueError, match="batch_size"):
        bounded_heat(minibatch(TARGET), DATA, 1)
    with pytest.raises(ValueError, match="dynamics"):
        bounded_heat(minibatch(TARGET), DATA, 10, dynamics="other")


@pytest.mark.slow
def test_a_learned_noise_scale_that_sharpens_the_posterior_loses_no_chain():
    """From far away the curvature rises a thousandfold while the chains warm up."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    y = y + 3e-3 * torch.randn(100, 1, generator=generator, dtype=torch.float64)
    net = torch.nn.Linear(2, 1).double()
    target = pvi.from_module(net, pvi.Gaussian(scale="learned"), pvi.Normal(3.0), num_data=100)
    far = 0.1 * torch.randn(16, 4, generator=generator, dtype=torch.float64)
    with pytest.warns(StabilityWarning, match="curvature rose"):
        draws = pvi.sample(
            pvi.sghmc(target),
            (x, y),
            initial=far,
            tuner=bounded_heat(minibatch(target), (x, y)),
            num_warmup=2000,
            num_draws=100,
            thin=5,
            progress=False,
        )
    assert draws.diverged == {}
    mean = draws.flat().mean(0)
    assert float((mean[:3] - torch.tensor([1.0, -2.0, 0.0]).double()).abs().max()) < 0.01
