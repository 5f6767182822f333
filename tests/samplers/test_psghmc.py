"""The masses that psghmc finds, when it moves them, and what it samples once they stand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import particlevi as pvi
from particlevi.potentials.layout import Layout
from particlevi.streams import ParticleStreams
from particlevi.typing import Progress
from tests.stationarity.laws import controls_of, quadratic

CURVATURE = torch.tensor([1.0] * 40 + [100.0] * 40, dtype=torch.float64)


def two_tensors():
    target = quadratic(torch.diag(CURVATURE).numpy())
    return replace(target, layout=Layout({"a": (40,), "b": (8, 5)}))


def test_masses_follow_gradients_rarely_and_stand_after_warm_up():
    sampler = pvi.psghmc(two_tensors(), update_every=5, decay=0.5, regularisation=1e-7)
    streams = ParticleStreams(0)
    state = sampler.init(torch.ones(3, 80, dtype=torch.float64), streams)
    controls = controls_of(sampler, 0.05)
    changes, expected = [], None
    for k in range(1, 31):
        gradient = state.position * CURVATURE
        square = gradient.square().view(3, 2, 40).mean(-1)
        expected = square if expected is None else 0.5 * expected + 0.5 * square
        before = state.memory.mass
        noise = sampler.draw_noise(state, streams)
        state, _ = sampler.step(state, None, noise, controls)
        state = sampler.record(state, Progress(k, 15, 30))
        torch.testing.assert_close(state.memory.second_moment, expected)
        if not torch.equal(state.memory.mass, before):
            changes.append(k)
            root = (expected + 1e-7).sqrt()
            torch.testing.assert_close(state.memory.mass, root / root.amin(-1, keepdim=True))
    assert changes == [1, 5, 10, 15]


def test_law_after_warm_up():
    """Gradients of size ``sqrt(l)``: masses 1 and 10, and the exact law with them."""
    draws = pvi.sample(
        pvi.psghmc(two_tensors(), update_every=50, decay=0.95),
        step_size=0.3,
        initial=torch.randn(50, 80, dtype=torch.float64) / CURVATURE.sqrt(),
        num_warmup=200,
        num_draws=20,
        thin=20,
        progress=False,
    )
    whitened = draws.particles.square() * CURVATURE
    for part in (whitened[..., :40], whitened[..., 40:]):
        error = math.sqrt(2 * 3 / part.numel())
        assert abs(float(part.mean()) - 1) < 5 * error
    assert float(draws.stats["kinetic_temperature"].mean()) == pytest.approx(1, abs=0.02)


def test_step_size_beyond_that_of_equal_masses():
    """h = 0.3 is unstable for l = 100 under unit masses (h^2 l = 9) and fine here (0.9)."""
    start = torch.full((4, 80), 0.01, dtype=torch.float64)
    options = dict(step_size=0.3, initial=start, num_draws=100, progress=False)
    with pytest.raises(pvi.DivergenceError):
        pvi.sample(pvi.sghmc(two_tensors()), **options)
