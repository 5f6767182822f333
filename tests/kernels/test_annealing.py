"""Annealed SVGD."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.schedules import describe, restore
from tests.kernels.common import F64, gaussian, settle


def two_modes():
    def log_density(x):
        return torch.logaddexp(-0.5 * (x - 6).square(), -0.5 * (x + 6).square()).sum(-1)

    return pvi.from_log_density(log_density, 1, vectorized=True, dtype=F64)


@pytest.mark.parametrize(
    ("annealing", "covers"),
    [
        (1.0, False),
        (pvi.schedules.tanh_ramp(1350), True),
        (pvi.schedules.cyclical_ramp(1200), True),
        (pvi.schedules.linear_ramp(1350), True),
    ],
    ids=str,
)
def test_annealing_finds_the_far_mode(annealing, covers):
    """Modes at +-6, all particles at 6: each mode gets 20 % with annealing, none without."""
    generator = torch.Generator().manual_seed(0)
    initial = 6 + 0.5 * torch.randn(50, 1, dtype=F64, generator=generator)
    sampler = pvi.svgd(two_modes(), optimizer="rmsprop", annealing=annealing)
    ends = settle(sampler, initial, 1500, 0.1)
    far = ends[ends < 0]
    if not covers:
        assert len(far) == 0
        return
    assert 10 <= len(far) <= 40
    assert abs(float(far.mean()) + 6) < 0.1
    assert abs(float(ends[ends > 0].mean()) - 6) < 0.1


def test_particles_that_repulsion_spreads_have_not_diverged():
    """Almost free at first, they go where U is thousands of times that of the start, and return."""
    initial = torch.linspace(5.5, 6.5, 20, dtype=F64)[:, None]
    sampler = pvi.svgd(two_modes(), optimizer="rmsprop", annealing=pvi.schedules.tanh_ramp(1000))
    draws = pvi.sample(
        sampler,
        step_size=pvi.schedules.cosine(0.5, num_steps=1200),
        initial=initial,
        num_draws=1200,
        progress=False,
    )
    assert draws.stats["potential"].max() > 5000
    ends = draws.particles[:, -1]
    assert 4 <= int((ends < 0).sum()) <= 16
    assert ends.abs().max() < 9


def test_a_constant_weight_tempers_the_target():
    """At weight c the fixed point is that of exp(-c U): here N(0, 4)."""
    initial = torch.tensor([[-0.3], [1.1]], dtype=F64)
    cooled = settle(pvi.svgd(gaussian([0.0], [[1.0]]), annealing=0.25), initial, 2000, 1.0)
    wide = settle(pvi.svgd(gaussian([0.0], [[0.25]])), initial, 2000, 1.0)
    torch.testing.assert_close(cooled, wide, atol=0, rtol=1e-10)


@pytest.mark.parametrize(
    "ramp",
    [
        pvi.schedules.linear_ramp(90),
        pvi.schedules.tanh_ramp(90, 3.0),
        pvi.schedules.cyclical_ramp(90, 3, 2.0),
    ],
    ids=str,
)
def test_ramps_start_at_0_end_at_1_and_survive_a_checkpoint(ramp):
    assert ramp(0) == 0
    assert all(0 <= ramp(step) <= 1 for step in range(90))
    assert [ramp(step) for step in (90, 91, 10_000)] == [1, 1, 1]
    assert restore(describe(ramp)) == ramp
