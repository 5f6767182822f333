"""Normal laws fitted to a density, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.tuning.objective import Objective
from particlevi.tuning.start import find_start
from particlevi.tuning.variational import fit_normals, normals
from particlevi.typing import Gradient

F64 = torch.float64
SIZE = 20


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=F64)


PRECISION = torch.eye(SIZE, dtype=F64) + 0.5 * torch.ones(SIZE, SIZE, dtype=F64)
CENTER = torch.linspace(-3, 3, SIZE, dtype=F64)
WIDTH = PRECISION.diagonal().rsqrt()


def gaussian(x):
    pull = (x - CENTER) @ PRECISION
    return Gradient(pull, 0.5 * (pull * (x - CENTER)).sum(-1))


def evidence_bound(scale):
    """Of a law of the right mean: no draw is needed."""
    constant = 0.5 * SIZE * (math.log(2 * math.pi) + 1)
    energy = 0.5 * (PRECISION.diagonal() * scale.square()).sum()
    return float(scale.log().sum() + constant - energy)


@pytest.fixture(scope="module")
def fitted():
    start = normals(gaussian, normal(200, SIZE), torch.full((200, SIZE), 0.05), generator())
    return fit_normals(gaussian, start, float(start.elbo.max()), generator(1))


def test_the_bound_of_a_normal_law_is_its_closed_form():
    scale = torch.full((2000, SIZE), 0.3, dtype=F64)
    found = normals(gaussian, CENTER.expand(2000, SIZE), scale, generator()).elbo
    error = float(found.std()) / math.sqrt(2000)
    assert float(found.mean()) == pytest.approx(evidence_bound(scale[0]), abs=4 * error)


def test_fitted_laws_have_the_mean_of_the_density(fitted):
    assert float(((fitted.mean.mean(0) - CENTER) / WIDTH).abs().max()) < 0.2


def test_fitted_laws_are_as_wide_as_the_precision_tells_each_alone(fitted):
    precision = fitted.scale.square().reciprocal().mean(0)
    torch.testing.assert_close(precision, PRECISION.diagonal(), rtol=0.09, atol=0)


def test_the_bound_is_climbed_to_its_largest_value(fitted):
    assert float(fitted.elbo.mean()) == pytest.approx(evidence_bound(WIDTH), abs=0.1 * SIZE)


def test_where_the_law_is_right_no_other_is_told():
    start = normals(gaussian, CENTER.expand(4, SIZE), WIDTH.expand(4, SIZE), generator())
    assert fit_normals(gaussian, start, float(start.elbo.max()), generator(1)) is None


def test_a_chain_left_far_behind_goes_on_from_the_best():
    mean, scale = torch.stack([CENTER + 1e6, CENTER]), torch.full((2, SIZE), 0.05, dtype=F64)
    start = normals(gaussian, mean, scale, generator())
    found = fit_normals(gaussian, start, float(start.elbo.max()), generator(1))
    assert float((found.mean[0] - CENTER).abs().max()) < 10


def test_a_law_of_little_mass_is_given_up_at_the_end():
    def two(x):
        near, far = gaussian(x), gaussian(x + 100)
        second = far.potential + 15 < near.potential
        pull = torch.where(second.unsqueeze(1), far.gradient, near.gradient)
        return Gradient(pull, torch.minimum(near.potential, far.potential + 15))

    mean, scale = torch.stack([CENTER - 100, CENTER]), torch.full((2, SIZE), 0.05, dtype=F64)
    start = normals(two, mean, scale, generator())
    found = fit_normals(two, start, float(start.elbo.max()), generator(1))
    assert float((found.mean[0] - CENTER).abs().max()) < 10


def test_a_law_without_a_finite_draw_is_the_worst():
    def cut(x):
        return gaussian(x)._replace(potential=torch.where(x[:, 0] > 0, torch.inf, x[:, 1]))

    mean = torch.stack([torch.full((SIZE,), -9.0), torch.full((SIZE,), 9.0)]).to(F64)
    found = normals(cut, mean, torch.ones(2, SIZE, dtype=F64), generator())
    assert found.best == 0
    assert float(found.elbo[1]) == -math.inf


def test_many_effects_with_a_learned_scale_begin_where_their_mass_is():
    """Effects equal to each other and a scale of zero: the lowest potential, and no mass."""
    num, data = 600, math.sqrt(5) * normal(600)

    def log_density(x):
        v, effects = x[:, 0], x[:, 1:]
        prior = -v.square() / 18 - 0.5 * effects.square().sum(-1) * (-v).exp() - 0.5 * num * v
        return prior - 0.5 * (data - effects).square().sum(-1)

    target = pvi.from_log_density(log_density, num + 1, vectorized=True, dtype=F64)
    initial = 4 * torch.rand(4, num + 1, generator=generator(), dtype=F64) - 2
    initial[:, 0] = -1.5
    start = find_start(Objective(target), initial, generator(1))
    grid = torch.linspace(-6, 6, 2001, dtype=F64)
    spread = 1 + grid.exp()
    law = -grid.square() / 18 - 0.5 * num * spread.log() - 0.5 * data.square().sum() / spread
    v = float((law.softmax(0) * grid).sum())
    assert "far more mass" in start.reason
    assert float(start.points[:, 0].median()) == pytest.approx(v, abs=0.5)
    assert float(start.points[:, 0].min()) > v - 0.5
