"""What SVGD remembers between steps."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.streams import ParticleStreams

TARGET = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 3)


@pytest.mark.parametrize(
    ("optimizer", "per_number"), [("plain", 0), ("adagrad", 1), ("rmsprop", 1), ("adam", 2)]
)
def test_moments_are_kept_that_the_optimizer_needs_and_no_others(optimizer, per_number):
    state = pvi.svgd(TARGET, optimizer=optimizer).init(torch.zeros(5, 3), ParticleStreams(0))
    first, second, _ = state.memory
    assert first.numel() + second.numel() == per_number * 5 * 3


@pytest.mark.parametrize("annealing", [1.0, 0.25])
def test_the_lengths_of_the_two_parts_are_told_of_every_particle(annealing):
    kernel, streams = pvi.kernels.rbf(1.3), ParticleStreams(0)
    sampler = pvi.svgd(TARGET, kernel, annealing=annealing)
    x = torch.linspace(-1, 2, 15).view(5, 3).sin()
    state = sampler.init(x.clone(), streams)
    controls = {"step_size": torch.tensor(0.1), "annealing": torch.tensor(annealing)}
    _, info = sampler.step(state, None, sampler.draw_noise(state, streams), controls)
    parts = kernel.direction(x, -annealing * x)
    for told, part in zip(info[1:], parts, strict=True):
        torch.testing.assert_close(told, part.square().sum(1).sqrt())
