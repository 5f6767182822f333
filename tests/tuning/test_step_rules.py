"""Step sizes of methods with a rule of their own, against closed forms on Gaussians."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import particlevi as pvi
from particlevi.gradients.minibatch import as_estimator
from particlevi.potentials.layout import Layout
from particlevi.tuning.landscape import Surroundings
from particlevi.tuning.objective import Objective
from tests.kernels.common import gaussian, points

CURVATURE = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
TARGET = gaussian(torch.zeros(3), CURVATURE.diag())
# Mean squares 1 / l, so that those of the gradients are l, as at draws.
START = torch.stack([CURVATURE.rsqrt(), -CURVATURE.rsqrt()])


def around(target, start, data=None, batch_size=None):
    return Surroundings(Objective(target, data), as_estimator(target), start, batch_size)


def step_of(sampler, start=START):
    return sampler.step_rule(around(sampler.potential, start))[0]


@pytest.mark.parametrize("curvature", [0.5, 7.0])
def test_the_rate_of_a_flow_that_matches_moments(curvature):
    """With mean 0 and covariance I / l the Jacobian has the eigenvalues -2, -l and 0."""
    x = points(12, 3)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.mT @ x / len(x))).mT / math.sqrt(curvature)
    target = gaussian(torch.zeros(3), curvature * torch.eye(3))
    where, kernel = around(target, x), pvi.kernels.linear()
    found = where.rate(lambda y: sum(kernel.direction(y, -where.gradient_at(y))))
    assert found == pytest.approx(max(2.0, curvature), rel=1e-5)


def test_the_curvature_in_scaled_coordinates():
    scale = torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64)
    assert around(TARGET, START).curvature(scale) == pytest.approx(9.0)
    assert around(TARGET, START).curvature() == pytest.approx(9.0)
    assert around(TARGET, START).curvature(scale.flip(0)) == pytest.approx(81.0)


def test_one_repelled_particle_has_the_step_of_sgld():
    sampler = pvi.repulsive_langevin(TARGET, pvi.kernels.rbf(2.0), jitter=0.0)
    assert step_of(sampler, START[:1]) == pytest.approx(0.1 * pvi.sgld(TARGET).max_step_size(9.0))


def test_two_repelled_particles_in_one_dimension():
    """The Jacobian is diagonal in the mean and the distance d, with ``k = exp(-d^2 / b)``."""
    d, b, curvature = 0.6, 2.0, 9.0
    target = gaussian([0.0], [[curvature]])
    start = torch.tensor([[d / 2], [-d / 2]], dtype=torch.float64)
    k = math.exp(-(d**2) / b)
    mean = curvature * (1 + k) / 2
    # d' = -l d (1 - k) / 2 + 2 d k / b
    apart = curvature * (1 - k + 2 * d**2 * k / b) / 2 - 2 * k / b * (1 - 2 * d**2 / b)
    sampler = pvi.repulsive_langevin(target, pvi.kernels.rbf(b), jitter=0.0)
    assert step_of(sampler, start) == pytest.approx(0.2 / max(mean, abs(apart)), rel=1e-5)


def test_psgld_has_a_tenth_of_the_stable_range_with_its_preconditioner():
    stiffest = (CURVATURE / (0.5 + CURVATURE.sqrt())).max()
    assert step_of(pvi.psgld(TARGET, regularisation=0.5)) == pytest.approx(0.2 / float(stiffest))


def test_psghmc_has_a_quarter_of_the_stable_range_with_its_masses():
    """Two tensors whose gradients have mean squares 1 and 100: masses 1 and 10."""
    curvature = torch.tensor([1.0, 1.0, 100.0, 100.0], dtype=torch.float64)
    target = gaussian(torch.zeros(4), curvature.diag())
    target = replace(target, layout=Layout({"a": (2,), "b": (2,)}))
    start = torch.stack([curvature.rsqrt(), -curvature.rsqrt()])
    assert step_of(pvi.psghmc(target), start) == pytest.approx(0.5 / math.sqrt(10), rel=1e-5)


def test_one_particle_of_svgd_descends_at_a_quarter_of_the_stable_range():
    assert step_of(pvi.svgd(TARGET), START[:1]) == pytest.approx(0.5 / 9)


def test_svgd_reaches_its_fixed_points_by_the_step_that_it_finds():
    """Moments are matched exactly by the linear kernel."""
    draws = pvi.sample(
        pvi.svgd(TARGET, pvi.kernels.linear()), num_particles=8, num_draws=1, progress=False
    )
    last = draws.particles[:, -1]
    torch.testing.assert_close(last.mT @ last / 8, CURVATURE.reciprocal().diag(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("optimizer", "share"), [("adam", 0.05), ("rmsprop", 0.05), ("adagrad", 0.5)]
)
def test_steps_without_a_scale_are_a_share_of_the_narrowest_width(optimizer, share):
    assert step_of(pvi.svgd(TARGET, optimizer=optimizer)) == pytest.approx(share / 3)


def test_a_learned_witness_is_followed_at_a_quarter_of_the_stable_range():
    assert step_of(pvi.nvgd(TARGET, regularisation=2.0)) == pytest.approx(0.25 * 2 * 2.0 / 9)


RULES = {
    "psgld": lambda target: pvi.psgld(target, regularisation=1e3),
    "psghmc": pvi.psghmc,
    "repulsive_langevin": pvi.repulsive_langevin,
    "svgd": pvi.svgd,
    "nvgd": pvi.nvgd,
}


@pytest.mark.parametrize("name", list(RULES))
def test_minibatches_heat_by_a_tenth_at_most(name):
    """The noise decides here: ``h s^2 / 2 = 0.1``, of psgld ``h G s^2 / 2``."""
    generator = torch.Generator().manual_seed(0)
    x = 1e4 * torch.randn(1000, generator=generator, dtype=torch.float64)
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(-1),
        lambda theta, batch: theta * batch,
        1,
        1000,
        vectorized=True,
        dtype=torch.float64,
    )
    sampler = RULES[name](target)
    where = around(target, torch.zeros(1, 1, dtype=torch.float64), x, 10)
    step, reason = sampler.step_rule(where)
    noise = float(where.noise)
    assert noise == pytest.approx(1000**2 / 10 * 1e8, rel=0.3)
    preconditioner = 1 / (1e3 + math.sqrt(noise + float(x.sum()) ** 2) / 1000)
    share = preconditioner if name == "psgld" else 1.0
    assert step * share * noise == pytest.approx(0.2)
    assert reason.endswith("less where minibatches heat by more than 10 %.")


def test_a_flat_start_has_no_step_size():
    flat = pvi.from_log_density(lambda x: 0 * x.sum(), 2)
    with pytest.raises(ValueError, match="no step size follows from it: give step_size"):
        step_of(pvi.nvgd(flat), torch.zeros(2, 2))


def test_a_torch_optimiser_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="What AdamW makes of a step size is its own"):
        pvi.sample(pvi.optimizer(TARGET, torch.optim.AdamW), num_particles=2, progress=False)
