"""The detector of collapse, per direction and in predictions, and the ways out that it names."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import particlevi as pvi
from particlevi.comparison import Collapse, CollapseWarning
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


def test_no_warning_where_there_is_no_collapse():
    found = pvi.check_collapse(settled(1))
    assert not found.collapsed
    assert 0.6 < found.variance_ratio < 1.6
    assert 1 < found.effective_rank < 100


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("given", ["tensors", "minibatches", "loader"])
def test_the_noise_of_minibatches_is_not_taken_for_variance(given, scale):
    """Draws of the posterior have not collapsed, whatever the data come in."""
    num, size = 400, 5
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, size, generator=generator, dtype=F64)
    target = pvi.from_log_likelihood(
        lambda theta: 0 * theta.sum(-1),
        lambda theta, batch: -0.5 * (batch[0] - theta.unsqueeze(1)).square().sum(-1),
        size, num, vectorized=True, dtype=F64,
    )  # fmt: skip
    z = torch.randn(100, size, generator=generator, dtype=F64)
    points = x.mean(0) + scale * z / num**0.5
    draws = pvi.Draws.from_tensor(points.unsqueeze(1), target, kind="particles")
    data = DataLoader(TensorDataset(x), 10, shuffle=True) if given == "loader" else (x,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        found = pvi.check_collapse(draws, data, batch_size=10 if given == "minibatches" else None)
    assert found.collapsed == (scale < 1)


def particles_of(precision, particles):
    target = gaussian(torch.zeros(len(precision)), torch.diag(precision))
    return pvi.Draws.from_tensor(particles.unsqueeze(1), target, kind="particles")


def test_one_wide_coordinate_does_not_hide_nineteen_that_collapsed():
    """In raw units the wide one is nearly all of the mean variance."""
    generator = torch.Generator().manual_seed(0)
    precision = torch.ones(20, dtype=F64)
    precision[0] = 0.01
    particles = torch.randn(100, 20, dtype=F64, generator=generator) / precision.sqrt()
    assert not pvi.check_collapse(particles_of(precision, particles)).collapsed
    particles[:, 1:] *= 0.1
    with pytest.warns(CollapseWarning):
        found = pvi.check_collapse(particles_of(precision, particles))
    assert found.collapsed_share == pytest.approx(39 / 40, abs=0.01)
    assert found.variance_ratio == pytest.approx(0.01, rel=0.3)


def test_three_of_twenty_coordinates_are_enough():
    generator = torch.Generator().manual_seed(0)
    particles = torch.randn(100, 20, dtype=F64, generator=generator)
    particles[:, :3] *= 0.1
    with pytest.warns(CollapseWarning, match="collapsed in 8%"):
        found = pvi.check_collapse(particles_of(torch.ones(20, dtype=F64), particles))
    assert found.variance_ratio > 0.7


def test_a_direction_across_coordinates_is_seen():
    """Independent coordinates keep their variances, and the particles lie on a line."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(100, 1, dtype=F64, generator=generator)
    other = torch.randn(100, 2, dtype=F64, generator=generator)
    with pytest.warns(CollapseWarning):
        found = pvi.check_collapse(
            particles_of(torch.ones(2, dtype=F64), one + 0.03 * other), num_steps=600
        )
    assert found.ratios.min() < 0.02


@pytest.mark.parametrize("num", [10, 30, 100])
def test_independent_particles_have_not_collapsed(num):
    """At most 2 of 40 sets of exact draws are called collapsed."""
    torch.manual_seed(0)
    false = 0
    for _ in range(40):
        ratios = torch.distributions.FisherSnedecor(num - 1.0, num - 1.0).sample((30,))
        false += Collapse(num, 30, 1.0, 1.0, ratios.double(), 1.0).collapsed
    assert false <= 2


def test_a_net_whose_particles_agree_in_what_they_predict():
    """Hidden units trade places: weights differ by as much as ever, functions hardly."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1))
    x = torch.linspace(-1, 1, 20).unsqueeze(1)
    y = torch.sin(3 * x)
    model = pvi.from_module(net, pvi.Gaussian(0.3), pvi.Normal(1.0), num_data=20)
    chain = pvi.sample(
        pvi.sghmc(model),
        (x, y),
        step_size=0.05,
        num_particles=1,
        num_warmup=500,
        num_draws=1,
        progress=False,
    )
    weights = model.unravel(chain.particles[0, 0])
    rows = []
    for _ in range(20):
        order = torch.randperm(6)
        permuted = {
            "0.weight": weights["0.weight"][order],
            "0.bias": weights["0.bias"][order],
            "2.weight": weights["2.weight"][:, order],
            "2.bias": weights["2.bias"],
        }
        rows.append(model.ravel(permuted))
    particles = torch.stack(rows)
    particles += 1e-3 * torch.randn(particles.shape)
    draws = pvi.Draws.from_tensor(particles.unsqueeze(1), model, kind="particles")
    with pytest.warns(CollapseWarning, match="of the epistemic deviation"):
        found = pvi.check_collapse(draws, (x, y))
    assert found.epistemic_ratio < 0.2
    assert found.variance_ratio > 0.5


@pytest.mark.slow
def test_repulsive_langevin_is_a_way_out():
    """From 50 collapsed particles of SVGD in 20 dimensions."""
    with pytest.warns(CollapseWarning):
        pvi.check_collapse(settled(20, 50))
    target = gaussian(torch.zeros(20), torch.eye(20))
    draws = pvi.sample(
        pvi.repulsive_langevin(target),
        step_size=0.5,
        initial=settled(20, 50).last(),
        num_warmup=4000,
        num_draws=20,
        thin=100,
        progress=False,
    )
    assert not pvi.check_collapse(draws).collapsed


def test_chains_are_a_way_out():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        collapsed = settled(20, 50)
    chains = pvi.sample(
        pvi.sghmc(gaussian(torch.zeros(20), torch.eye(20))),
        step_size=0.3,
        initial=collapsed.last(),
        num_warmup=200,
        num_draws=5,
        thin=20,
        progress=False,
    )
    assert not pvi.check_collapse(chains).collapsed


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
        store=pvi.storage.InMemory(torch.tensor([0])),
        progress=False,
    )
    with pytest.raises(ValueError, match="a part of"):
        pvi.check_collapse(draws)
