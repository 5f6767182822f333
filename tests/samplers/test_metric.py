"""The metric is a change of coordinates: every sampler moves as on the potential of z."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.streams import ParticleStreams
from tests.registry import SAMPLERS

D, P = 3, 5
PRECISION = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]], dtype=torch.float64)
SCALE = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.7, 2.0, 0.0], [-0.4, 0.2, 0.5]], dtype=torch.float64)
BASIS = torch.linalg.qr(torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.3]], dtype=torch.float64)).Q
SPREAD = torch.tensor([3.0, 0.4], dtype=torch.float64)
LOW_RANK = SCALE.diag() @ (torch.eye(D, dtype=torch.float64) + BASIS * (SPREAD - 1) @ BASIS.T)
METRICS = {
    "scale": ({"scale": SCALE}, SCALE.diag()),
    "factor": ({"factor": FACTOR}, FACTOR),
    "low rank": ({"scale": SCALE, "basis": BASIS, "spread": SPREAD}, LOW_RANK),
}


def gaussian(precision):
    return pvi.from_log_density(lambda x: -0.5 * x @ precision @ x, D, dtype=torch.float64)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("kind", list(METRICS))
def test_a_step_in_a_metric_is_a_step_in_its_coordinates(name, kind):
    metric, linear = METRICS[kind]
    case = SAMPLERS[name]
    if kind != "scale" and "gradient_noise" in case.options:
        pytest.skip("the noise of each coordinate alone needs a diagonal metric")
    options = dict(case.options)
    if isinstance(options.get("gradient_noise"), float):
        options["gradient_noise"] *= SCALE.square()
    outside = case(gaussian(PRECISION))
    inside = case.factory(gaussian(linear.T @ PRECISION @ linear), **options)
    controls = {"step_size": torch.tensor(case.step_size, dtype=torch.float64)} | {
        key: torch.tensor(schedule(0), dtype=torch.float64)
        for key, schedule in outside.schedules.items()
    }
    z = torch.randn(P, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = []
    for sampler, start, more in ((outside, z @ linear.T, metric), (inside, z, {})):
        streams = ParticleStreams(1)
        state = sampler.init(start, streams)
        for _ in range(3):
            noise = sampler.draw_noise(state, streams)
            state, _ = sampler.step(state, None, noise, controls | more)
        states.append(state.position)
    torch.testing.assert_close(states[0], states[1] @ linear.T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["factor", "low rank"])
def test_noise_of_each_parameter_needs_a_diagonal_metric(kind):
    sampler = pvi.sgld(gaussian(PRECISION), gradient_noise=3.0)
    streams = ParticleStreams(0)
    state = sampler.init(torch.zeros(P, D, dtype=torch.float64), streams)
    one = torch.ones((), dtype=torch.float64)
    controls = {"step_size": 0.1 * one, "temperature": one, **METRICS[kind][0]}
    with pytest.raises(ValueError, match="goes with a diagonal metric only"):
        sampler.step(state, None, sampler.draw_noise(state, streams), controls)


@pytest.mark.parametrize("metric", [{"scale": SCALE}, {"factor": FACTOR}], ids=["scale", "factor"])
def test_a_rejected_particle_stays_to_the_bit(metric):
    """There and back through the metric rounds, and passes for a step that is lost to rounding."""
    sampler = pvi.hmc(gaussian(1e4 * PRECISION), num_leapfrog=3)
    start = torch.randn(50, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = sampler.init(start, ParticleStreams(0))
    controls = {"step_size": torch.tensor(1.0, dtype=torch.float64), "temperature": torch.ones(())}
    noise = sampler.draw_noise(state, ParticleStreams(1))
    moved, _ = sampler.step(state, None, noise, controls | metric)
    assert torch.equal(moved.position, state.position)
