"""The largest curvature, followed by the power method."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.gradients.minibatch import minibatch
from particlevi.running.world import OneProcess
from particlevi.tuning.bounded_heat import bounded_heat
from particlevi.tuning.steepest import no_curvature, turn

D = 30
VALUES = torch.linspace(1, 2, D, dtype=torch.float64)
VALUES[-1] = 9.0


def followed(steepest, values, rounds):
    for _ in range(rounds):
        steepest = turn(steepest, steepest.directions * values, OneProcess())
    return steepest


def begun(chains=4):
    return no_curvature(torch.zeros(chains, D, dtype=torch.float64), 0)


def test_the_largest_curvature_is_found_in_every_chain():
    found = followed(begun(), VALUES, 15)
    torch.testing.assert_close(found.curvature, torch.full((4,), 9.0, dtype=torch.float64))
    assert float(found.largest) == pytest.approx(9, rel=1e-6)


def test_it_rises_at_once_and_falls_by_a_fifth():
    found = followed(begun(), VALUES, 15)
    risen = turn(found, 100 * found.directions * VALUES, OneProcess())
    assert float(risen.largest) == pytest.approx(900, rel=1e-6)
    fallen = turn(found, found.directions, OneProcess())
    assert float(fallen.largest) == pytest.approx(9 - 0.2 * 8, rel=1e-6)


def test_a_chain_that_tells_nothing_stays_as_it_is():
    found = followed(begun(), VALUES, 15)
    images = found.directions * VALUES
    images[0] = math.nan
    after = turn(found, images, OneProcess())
    assert torch.equal(after.directions[0], found.directions[0])
    assert torch.isfinite(after.largest)


def test_the_steepest_of_the_chains_counts():
    found = followed(begun(16), VALUES, 15)
    images = found.directions * VALUES
    images[3] *= 50
    largest = float(turn(found, images, OneProcess()).largest)
    assert 0.8 * 450 < largest <= 450


def test_one_stiff_direction_among_many_bounds_the_step():
    """In the energy error per dimension it is one part in 2000."""
    size, stiff = 2000, 1e4
    values = torch.ones(size, dtype=torch.float64)
    values[0] = stiff
    target = pvi.from_log_density(
        lambda x: -0.5 * (values * x.square()).sum(-1), size, vectorized=True, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, size, generator=generator, dtype=torch.float64) / values.sqrt()
    tuner = bounded_heat(minibatch(target))
    state = tuner.init(start, {})
    assert tuner.report(state)["limited_by"] == "curvature"
    assert float(state.step_size) == pytest.approx(1 / math.sqrt(stiff), rel=0.05)
