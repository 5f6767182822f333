"""Steps that are lost to rounding are told, and what cannot be right is refused."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import particlevi as pvi
from particlevi.samplers.precision import rounding_warning, unmoved
from particlevi.streams import ParticleStreams
from tests.stationarity.laws import controls_of, quadratic


def normal(dtype):
    return pvi.from_log_density(
        lambda x: -0.5 * x.square().sum(-1), 50, vectorized=True, dtype=dtype
    )


def run(sampler, step_size, **options):
    options = {"num_particles": 4, "num_draws": 60, "progress": False} | options
    return pvi.sample(sampler, step_size=step_size, **options)


def test_the_share_that_stands_still():
    """``erf(1 / (2 sqrt(2) s))`` for steps of s spacings."""
    for s in (0.5, 1.57, 6.0):
        before = torch.full((100, 1000), 1.5, dtype=torch.bfloat16)
        noise = torch.randn(100, 1000, generator=torch.Generator().manual_seed(0))
        after = (before.float() + s * 2.0**-7 * noise).bfloat16()
        expected = math.erf(1 / (2 * math.sqrt(2) * s))
        assert unmoved(before, after) == pytest.approx(expected, abs=0.005)


def test_a_particle_rejected_in_a_dense_metric_is_no_rounding():
    before = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    after = before + torch.tensor([[0.0, 0.0, 1e-16, 1e-16], [1.0, 1.0, 1.0, 1.0]])
    controls = {"step_size": torch.tensor(0.1), "temperature": torch.tensor(1.0)}
    metric = {**controls, "factor": torch.eye(4, dtype=torch.float64)}
    assert rounding_warning(before, after, controls, may_reject=True) is not None
    assert rounding_warning(before, after, metric, may_reject=True) is None


def test_rejected_particles_are_no_rounding():
    before = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    after = torch.cat([before[:3], before[3:] + 1])
    controls = {"step_size": torch.tensor(0.1), "temperature": torch.tensor(1.0)}
    assert rounding_warning(before, after, controls) is None
    assert rounding_warning(before, before, controls, may_reject=True) is None
    assert "left 100% of the parameters" in rounding_warning(before, before, controls)
    assert rounding_warning(before, before, controls | {"temperature": torch.tensor(0.0)}) is None


def test_a_run_in_bfloat16_with_small_steps_is_warned_of():
    with pytest.warns(pvi.ParticleviWarning, match=r"neighbouring numbers of torch.bfloat16"):
        run(pvi.sgld(normal(torch.bfloat16)), 1e-6)


OVERDAMPED = [pvi.sgld, pvi.leimkuhler_matthews, pvi.psgld, pvi.repulsive_langevin]


@pytest.mark.parametrize("factory", OVERDAMPED, ids=lambda factory: factory.__name__)
def test_a_drift_below_the_spacing_is_kept_beside_noise_above_it(factory):
    """A drift of an eighth of the spacing, the noise four times it, in the mean of many numbers."""
    h, size = 1e-3, 200_000
    bowl = pvi.from_log_density(
        lambda x: -0.5 * x.square().sum(-1), size, vectorized=True, dtype=torch.bfloat16
    )
    sampler, streams = factory(bowl), ParticleStreams(0)
    start = torch.ones(1, size, dtype=torch.bfloat16)
    state = sampler.init(start, streams)
    controls = {name: value.bfloat16() for name, value in controls_of(sampler, h).items()}
    after, _ = sampler.step(state, None, sampler.draw_noise(state, streams), controls)
    moved = float((after.position.double() - 1).mean())
    assert moved == pytest.approx(-h, abs=4 * math.sqrt(2 * h / size))


@pytest.mark.parametrize(
    ("factory", "dtype", "step_size"),
    [
        (pvi.sgld, torch.bfloat16, 0.1),
        (pvi.sgld, torch.float32, 1e-6),
        (pvi.hmc, torch.float32, 0.1),
        (pvi.sgd, torch.float32, 0.5),
    ],
)
def test_sound_runs_are_not(factory, dtype, step_size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(factory(normal(dtype)), step_size)


def test_what_cannot_be_right_is_refused():
    with pytest.raises(ValueError, match="above 65504 nats are infinite"):
        pvi.sgld(normal(torch.float16))
    with pytest.raises(ValueError, match=r"below the smallest number of torch.float32"):
        run(pvi.sgld(normal(torch.float32)), 1e-46)
    with pytest.warns(pvi.ParticleviWarning, match="left 100% of the parameters"):
        run(pvi.sgld(quadratic([[1.0]])), 1e-46, num_draws=2)
