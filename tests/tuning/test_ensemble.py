"""Many chains brought to the posterior together, against laws with closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.tuning.ensemble import approach, equipartition
from particlevi.typing import Gradient
from tests.tuning.test_descent import bowl, normal

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_equipartition_is_one_on_the_posterior_within_its_error():
    z = normal(4000, 20)
    found = equipartition(z, z)
    assert float((found - 1).abs().max()) < 4 * math.sqrt(2 / 4000)


def test_equipartition_does_not_depend_on_where_the_origin_is():
    z = normal(100, 3)
    torch.testing.assert_close(equipartition(z + 1e3, z), equipartition(z, z), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [0.03, 30.0])
def test_an_ensemble_too_narrow_or_too_wide_gets_the_right_width(width):
    scale = torch.logspace(-1, 1, 20, dtype=F64)
    start = 5 * scale + width * scale * normal(256, 20)
    found = approach(bowl(scale), start, scale, generator())
    assert found.num_steps < 300
    spread = found.points.var(0) / scale.square()
    # 20 coordinates, each with an error of sqrt(2 / 256), and a bias of some per cent
    assert float((spread - 1).abs().max()) < 4 * math.sqrt(2 / 256)
    assert float((found.points.mean(0) / scale).abs().max()) < 4 / 16 + 0.05


def test_a_metric_is_only_units():
    scale = torch.logspace(-2, 2, 10, dtype=F64)
    start = normal(64, 10)
    one = approach(bowl(torch.ones(10)), start, torch.ones(10, dtype=F64), generator(), 20)
    other = approach(bowl(scale), scale * start, scale, generator(), 20)
    torch.testing.assert_close(other.points / scale, one.points, rtol=1e-8, atol=1e-8)


def test_chains_without_density_stay_and_do_not_stop_the_others():
    def half_space(x):
        inner = bowl(1.0)(x)
        bad = (x[:, 0] < -2.5) | (x[:, 0] > 50)
        value = torch.where(bad, torch.nan, inner.potential)
        return Gradient(torch.where(bad.unsqueeze(1), torch.nan, inner.gradient), value)

    start = 0.1 * normal(256, 10)
    found = approach(half_space, start, torch.ones(10, dtype=F64), generator())
    assert torch.isfinite(found.points).all()
    assert float(found.points[:, 1:].var(0).mean()) == pytest.approx(1.0, abs=0.15)


def test_many_chains_of_many_parameters_are_sampled_exactly():
    scale = torch.logspace(-1, 1, 510, dtype=F64)
    target = pvi.from_log_density(
        lambda x: -0.5 * (x / scale).square().sum(-1), 510, vectorized=True, dtype=F64
    )
    draws = pvi.sample(
        target, num_particles=64, num_warmup=150, num_draws=40, thin=5, progress=False
    )
    assert draws.attrs["sampler"] == "mams"
    potential = draws.stats["potential"]
    mean = potential.mean(1)
    error = float(mean.std()) / math.sqrt(len(mean))
    assert float(mean.mean()) == pytest.approx(255, abs=4 * error)
