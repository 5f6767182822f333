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
