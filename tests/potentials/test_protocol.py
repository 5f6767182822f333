"""A potential that its user wrote, of three members or more, through the whole package."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch

import particlevi as pvi
from particlevi.data import as_data
from particlevi.potentials.protocol import as_potential, probe_values
from particlevi.storage import Checkpoint
from particlevi.tuning.invariance import _functionals
from particlevi.typing import Batch, Potential


class Bowl:
    """``Normal(mean, 1)`` in three dimensions, in the least number of lines."""

    num_params, num_data = 3, None

    def __init__(self, mean=1.0):
        self.mean = mean

    def __call__(self, particles, batch=None):
        return 0.5 * (particles - self.mean).square().sum(1)


class Mean:
    """The mean of N Gaussian data under a standard normal prior, in total only."""

    num_params, num_data = 1, 20
    dtype = torch.float64

    def __call__(self, particles, batch=None):
        x = batch.data if batch.per_particle else batch.data.unsqueeze(0)
        error = (x - particles).square().sum(1)
        return 0.5 * particles.square().sum(1) + 0.5 * self.num_data / x.shape[1] * error


class Terms(Mean):
    """The same, in terms."""

    def log_prior(self, particles):
        return -0.5 * particles.square().sum(1)

    def log_likelihood(self, particles, batch):
        x = batch.data if batch.per_particle else batch.data.unsqueeze(0)
        return -0.5 * (x - particles).square()


X = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
POSTERIOR_MEAN, POSTERIOR_VARIANCE = float(X.sum()) / 21, 1 / 21


def test_three_members_keep_the_protocol():
    assert isinstance(Bowl(), Potential)
    assert as_potential(as_potential(Bowl())) is not Bowl
    made = as_potential(Bowl())
    assert as_potential(made) is made
    assert (made.num_params, made.num_data, made.dtype) == (3, None, torch.float32)


def test_a_density_of_ones_own_is_sampled_and_diagnosed():
    draws = pvi.sample(
        pvi.sghmc(Bowl()),
        step_size=0.4,
        num_particles=200,
        num_warmup=50,
        num_draws=100,
        progress=False,
    )
    assert (draws.particles.mean((0, 1)) - 1).abs().max() < 0.1
    assert (draws.particles.var() - 1).abs() < 0.1
    assert draws.diagnose() is not None
    assert draws.ess() is not None


@pytest.mark.parametrize("make", [Mean, Terms])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_data_of_ones_own_reach_the_potential(make, batch_size):
    draws = pvi.sample(
        pvi.sgld(make()),
        X,
        batch_size=batch_size,
        step_size=1e-3,
        num_particles=400,
        num_warmup=500,
        num_draws=20,
        progress=False,
    )
    assert draws.particles.dtype == torch.float64
    error = math.sqrt(POSTERIOR_VARIANCE / 400)
    assert abs(float(draws.particles[:, -1].mean()) - POSTERIOR_MEAN) < 5 * error


@pytest.mark.parametrize("make", [Mean, Terms])
def test_sums_over_the_data_need_no_terms(make):
    potential = as_potential(make())
    particles = torch.tensor([[0.3], [1.7]], dtype=torch.float64)
    found = pvi.gradients.full.full_gradient(potential, particles, X, chunk_size=7)
    whole = make()(particles, Batch(X))
    torch.testing.assert_close(found.potential, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.gradient, 21 * particles - X.sum(), rtol=1e-12, atol=1e-12)
    curvature = pvi.curvature.largest_curvature(potential, particles, X, chunk_size=7)
    assert abs(curvature - 21) < 1e-9


def test_terms_are_refused_by_name_where_there_are_none():
    particles = torch.zeros(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"Mean gives their sum only: add.*log_likelihood"):
        as_potential(Mean()).log_likelihood(particles, Batch(X))
    with pytest.raises(ValueError, match=r"Mean gives their sum only: add.*log_prior"):
        as_potential(Mean()).log_prior(particles)
    assert as_potential(Terms()).log_likelihood(particles, Batch(X)).shape == (1, 20)


@pytest.mark.parametrize(
    "estimator",
    [
        lambda: pvi.control_variate(Terms(), X, center=torch.ones(1, dtype=torch.float64)),
        lambda: pvi.structured(Terms(), groups="parameter"),
    ],
)
def test_estimators_take_it(estimator):
    draws = pvi.sample(
        pvi.sgld(estimator()),
        X,
        batch_size=5,
        step_size=1e-3,
        num_particles=3,
        num_draws=4,
        progress=False,
    )
    assert torch.isfinite(draws.particles).all()


def test_it_resumes_bit_for_bit_and_only_itself(tmp_path, monkeypatch):
    options = {"step_size": 0.3, "num_particles": 2, "num_draws": 8, "progress": False}
    whole = pvi.sample(pvi.sghmc(Bowl()), **options)
    calls = 0

    class Breaks(Bowl):
        def __call__(self, particles, batch=None):
            nonlocal calls
            calls += 1
            if calls == 9:
                raise KeyboardInterrupt
            return super().__call__(particles, batch)

    Breaks.__name__ = "Bowl"
    with pytest.raises(KeyboardInterrupt):
        pvi.sample(pvi.sghmc(Breaks()), **options, checkpoint=Checkpoint(tmp_path, every=2))
    again = pvi.resume(tmp_path, pvi.sghmc(Bowl()), progress=False)
    assert torch.equal(again.particles, whole.particles)
    with pytest.raises(ValueError, match="another run"):
        pvi.resume(tmp_path, pvi.sghmc(Bowl(mean=2.0)), progress=False)


def test_probe_values_tell_functions_apart():
    def posterior(power):
        return pvi.from_log_likelihood(
            lambda theta: -0.5 * theta.square().sum(),
            lambda theta, x: -((x - theta).abs() ** power),
            num_params=1,
            num_data=20,
        )

    batch = Batch(X.float())
    values = [probe_values(posterior(power), batch) for power in (2, 2, 2.01)]
    assert values[0] == values[1] != values[2]


class Whole(Bowl):
    """With everything that may be added."""

    shapes: ClassVar = {"a": (2,), "b": ()}
    compilable = False
    chunk_size = 2
    fingerprint: ClassVar = {"kind": "whole"}

    def init(self, num_particles, generator):
        return torch.full((num_particles, 3), 7.0)

    def constrain(self, tensors):
        return {"b": tensors["b"].exp()}


def test_what_an_object_adds_is_used():
    made = as_potential(Whole())
    assert dict(made.layout.shapes) == Whole.shapes
    assert (made.compilable, made.chunk_size, made.fingerprint) == (False, 2, Whole.fingerprint)
    assert made.init(2).tolist() == [[7.0] * 3] * 2
    assert torch.equal(made.constrain(torch.zeros(2, 3))["b"], torch.ones(2))


def bad(**members):
    return type("Bad", (Bowl,), members)()


REFUSED = {
    "a function": (lambda theta: theta, r"function without \['num_params', 'num_data'\]"),
    "a class": (Bowl, "got type"),
    "no call": (type("N", (), {"num_params": 1, "num_data": None})(), r"__call__\(particles"),
    "no parameters": (bad(num_params=0), "num_params must be an integer of at least 1, got 0"),
    "half a datum": (bad(num_data=0.5), "num_data must be an integer"),
    "shapes": (bad(shapes={"a": (2,)}), "shapes hold 2 numbers but num_params is 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_objects_that_are_no_potential(case):
    candidate, match = REFUSED[case]
    with pytest.raises(TypeError, match=match):
        as_potential(candidate)


def test_a_total_over_particles_is_refused():
    class Total(Bowl):
        num_data = 20

        def __call__(self, particles, batch=None):
            return super().__call__(particles).sum()

    with pytest.raises(ValueError, match=r"one energy per particle, \[2\] .* got \[\]"):
        as_potential(Total())(torch.zeros(2, 3), Batch(X))


def test_batches_that_a_loader_weights_are_weighted():
    particles = torch.tensor([[0.3], [1.7]], dtype=torch.float64)
    scale = torch.tensor(3.0, dtype=torch.float64)
    found = as_potential(Terms())(particles, Batch(X[:5], scale=scale))
    error = (X[:5] - particles).square().sum(1)
    torch.testing.assert_close(found, 0.5 * particles.square().sum(1) + 0.5 * 3 * error)
    with pytest.raises(ValueError, match="add a method log_prior"):
        as_potential(Mean())(particles, Batch(X[:5], scale=scale))


QUIET = {"num_particles": 6, "num_warmup": 60, "num_draws": 60, "progress": False}


def test_everything_is_chosen_for_a_potential_of_ones_own():
    draws = pvi.sample(Bowl(), seed=1, **QUIET)
    assert draws.attrs["sampler"] == "randomized_hmc"
    assert draws.potential.fingerprint["kind"] == "Bowl"
    assert draws.diagnose(verbose=False) is not None
    assert draws.check_invariance().p_value > 0.001


def test_everything_is_chosen_for_totals_over_data():
    draws = pvi.sample(Mean(), X, seed=1, **QUIET)
    error = math.sqrt(POSTERIOR_VARIANCE / float(draws.ess(of="parameters").min()))
    assert abs(float(draws.particles.mean()) - POSTERIOR_MEAN) < 5 * error


def test_what_is_chosen_checkpoints_and_resumes(tmp_path):
    def five_draws(look):
        return "enough" if look.num_draws >= 5 else None

    whole = pvi.sample(Bowl(), seed=3, **QUIET)
    folder = Checkpoint(tmp_path / "run", every=20)
    cut = pvi.sample(Bowl(), seed=3, checkpoint=folder, monitor=five_draws, **QUIET)
    assert cut.particles.shape[1] < 60
    gone_on = pvi.resume(tmp_path / "run", Bowl(), monitor=[], progress=False)
    assert torch.equal(gone_on.particles, whole.particles)


def test_curvature_and_draws_take_a_potential_of_ones_own(tmp_path):
    points = torch.zeros(2, 1, dtype=torch.float64)
    assert abs(pvi.curvature.largest_curvature(Mean(), points, X) - 21) < 1e-9
    energy = pvi.curvature.potential_energy(Mean(), points[0], X)
    torch.testing.assert_close(pvi.curvature.dense_hessian(energy), 21 + points[:1])
    draws = pvi.Draws.from_tensor(torch.zeros(2, 9, 1, dtype=torch.float64), Mean())
    draws.save(tmp_path / "draws.h5")
    assert pvi.load(tmp_path / "draws.h5", Mean()).particles.shape == (2, 9, 1)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Mean, ["potential", "parameter 0"]),
        (Terms, ["potential", "parameter 0"]),
        (
            lambda: pvi.from_log_likelihood(
                lambda theta: -0.5 * theta.square().sum(),
                lambda theta, x: -0.5 * (x - theta) ** 2,
                num_params=1,
                num_data=20,
                dtype=torch.float64,
            ),
            ["potential", "log_prior", "log_likelihood", "parameter 0"],
        ),
    ],
)
def test_an_exact_kernel_is_watched_by_what_can_be_told_apart(make, names):
    potential, point = as_potential(make()), torch.ones(1, 1, dtype=torch.float64)
    found, values = _functionals(potential, as_data(X, potential), None, point)
    assert found == names
    assert float(values[0, 0]) == pytest.approx(0.5 + 0.5 * float((X - 1).square().sum()))
