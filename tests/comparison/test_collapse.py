"""The detector of collapse."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.comparison.collapse import Collapse, CollapseWarning
from tests.kernels.common import F64, gaussian


def settled(dim, num=100, steps=300, scale=1.0, make=pvi.svgd):
    generator = torch.Generator().manual_seed(0)
    return pvi.sample(
        make(gaussian(torch.zeros(dim), scale * torch.eye(dim)), optimizer="adam"),
        step_size=pvi.schedules.cosine(0.1 / scale**0.5, num_steps=steps),
        initial=torch.randn(num, dim, dtype=F64, generator=generator) / scale**0.5,
        num_warmup=steps - 1,
        num_draws=1,
        progress=False,
    )


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_collapse_is_seen_and_sized(scale):
    """100 particles in 50 dimensions keep 0.09 of the variance, in any units."""
    with pytest.warns(CollapseWarning, match="100 particles in 50 dimensions"):
        found = pvi.check_collapse(settled(50, scale=scale))
    assert found.collapsed
    assert found.variance_ratio == pytest.approx(0.09, rel=0.2)
    assert found.reference_variance == pytest.approx(1 / scale, rel=0.15)
    assert found.force_ratio == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize(("kept", "collapsed"), [(0.49, True), (0.51, False)])
def test_half_of_the_variance_is_the_line(kept, collapsed):
    found = Collapse(20, 20, 10.0, 1.0, particle_variance=3 * kept, reference_variance=3.0)
    assert found.collapsed == collapsed


def test_no_warning_where_there_is_no_collapse():
    found = pvi.check_collapse(settled(1))
    assert not found.collapsed
    assert 0.6 < found.variance_ratio < 1.6
    assert 1 < found.effective_rank < 100


def test_message_passing_is_a_way_out():
    def make(target, optimizer):
        return pvi.message_passing_svgd(target, "parameter", optimizer=optimizer)

    assert not pvi.check_collapse(settled(20, 50, 200, make=make)).collapsed


def test_effective_rank_counts_clusters():
    """Three clusters, far apart on the kernel's scale, count three."""
    target = gaussian([0.0], [[1.0]])
    places = torch.tensor([0.0, 10.0, 20.0], dtype=F64).repeat(10)[:, None]
    draws = pvi.sample(
        pvi.svgd(target), step_size=0.0001, initial=places, num_draws=1, progress=False
    )
    found = pvi.check_collapse(draws, kernel=pvi.kernels.rbf(1.0), num_steps=5)
    assert found.effective_rank == pytest.approx(3.0, rel=1e-6)


def test_draws_that_lack_parameters_are_refused():
    target = gaussian([0.0, 0.0], torch.eye(2))
    draws = pvi.sample(
        pvi.svgd(target),
        step_size=0.1,
        num_particles=3,
        num_draws=2,
        storage=pvi.storage.InMemory(torch.tensor([0])),
        progress=False,
    )
    with pytest.raises(ValueError, match="all parameters"):
        pvi.check_collapse(draws)
