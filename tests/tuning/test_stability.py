"""A step size beyond the stable range is warned of before the run, and only that."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import particlevi as pvi
from particlevi.data import as_data
from particlevi.tuning import stability
from particlevi.tuning.stability import StabilityWarning, check_before_run, curvature_at
from particlevi.typing import Batch
from tests import registry
from tests.stationarity.laws import quadratic, random_hessian

CURVATURE = 6.0
TARGET = quadratic(random_hessian(5, 0.3, CURVATURE, seed=3))

SAMPLERS = {
    "sgd": pvi.sgd,
    "sgd_momentum": lambda target: pvi.sgd(target, momentum=0.9),
    "sgld": pvi.sgld,
    "leimkuhler_matthews": pvi.leimkuhler_matthews,
    "sghmc": pvi.sghmc,
    "symplectic": lambda target: pvi.sghmc(target, integrator="symplectic"),
    "explicit": lambda target: pvi.sghmc(target, 3.0, integrator="explicit"),
    "baoab": pvi.baoab,
    "obabo": pvi.obabo,
    "obabo_metropolis": lambda target: pvi.obabo(target, metropolis_every=2),
    "hmc": lambda target: pvi.hmc(target, num_leapfrog=2),
    "randomized_hmc": lambda target: pvi.randomized_hmc(target, trajectory_length=2.5),
    "sgnht": pvi.sgnht,
    "parallel_tempering": pvi.parallel_tempering,
}
WITHOUT_BOUND = {"optimizer", "psgld", "psghmc", "mclmc", "mams"} | {
    "svgd",
    "message_passing_svgd",
    "repulsive_langevin",
    "nvgd",
}


def run(sampler, h, num_draws=1000, **options):
    start = torch.ones(4, 5, dtype=torch.float64)
    return pvi.sample(
        sampler, step_size=h, initial=start, num_draws=num_draws, progress=False, **options
    )


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_warning_and_divergence_agree_with_the_bound(name):
    sampler = SAMPLERS[name](TARGET)
    limit = sampler.max_step_size(CURVATURE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = run(sampler, 0.8 * limit)
    assert draws.particles.abs().max() < 30
    with pytest.warns(StabilityWarning, match=f"beyond the stable range of {sampler.name}"):
        if name in ("hmc", "obabo_metropolis", "randomized_hmc"):
            stats = run(sampler, 1.2 * limit).stats
            ends = stats.get("tested", torch.ones_like(stats["acceptance"])) > 0
            assert stats["acceptance"][ends].mean() < 0.1
        else:
            with pytest.raises(pvi.DivergenceError):
                run(sampler, 1.2 * limit)


def test_every_sampler_with_a_bound_is_here():
    target = registry.density(torch.float64).potential
    made = [case(target) for case in registry.SAMPLERS.values()]
    bounded = {sampler.name for sampler in made if sampler.max_step_size is not None}
    assert bounded == {factory(TARGET).name for factory in SAMPLERS.values()}
    rest = {c.factory.__name__ for c in registry.SAMPLERS.values()} - bounded
    assert rest == WITHOUT_BOUND


def test_the_numbers_and_the_way_out():
    with pytest.warns(StabilityWarning) as caught:
        found = pvi.tuning.check_stability(pvi.sgld(TARGET), 0.5, at=torch.zeros(3, 5))
    assert found.curvature == pytest.approx(CURVATURE, rel=1e-6)
    assert found.max_step_size == pytest.approx(2 / CURVATURE, rel=1e-6)
    assert found.step_size == 0.5 and not found.stable
    (message,) = [str(each.message) for each in caught]
    assert "step_size 0.5" in message and "ends at 0.333" in message and "about 6:" in message
    assert "pvi.suggest_step_size" in message
    assert caught[0].filename == __file__


@pytest.mark.parametrize("size", [1, 2, 30])
def test_curvature_is_a_close_lower_bound(size):
    hessian = random_hessian(size, 0.01, 30.0, seed=size)
    found = curvature_at(quadratic(hessian), torch.ones(2, size, dtype=torch.float64), None, None)
    largest = np.linalg.eigvalsh(hessian).max()
    assert (found <= largest * (1 + 1e-12)).all()
    assert (found > 0.97 * largest).all()


def test_directions_of_chance_do_not_pass_for_curvature():
    """300 parameters, 64 data: their own largest curvature is several times that of all data."""
    size, num = 300, 64
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * num, size, generator=generator, dtype=torch.float64)
    target = pvi.from_log_likelihood(
        lambda theta: -0.5e-3 * theta.square().sum(),
        lambda theta, x: -0.5 * (x @ theta).square(),
        num_params=size,
        num_data=100_000,
        dtype=torch.float64,
    )
    point = torch.zeros(1, size, dtype=torch.float64)
    one, other = Batch(x[:num]), Batch(x[num:])
    assert curvature_at(target, point, one, one) > 8e5
    assert curvature_at(target, point, one, other) < 1.6e5


def dropout_model():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    return pvi.from_module(
        net.double(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=20, dropout="sample"
    )


def test_draws_are_bit_for_bit_those_without_the_check(monkeypatch):
    """Also where the potential itself takes from the global generator."""
    torch.manual_seed(0)
    sampler, data = pvi.sgld(dropout_model()), registry.module(torch.float64).data
    options = dict(step_size=1e-4, batch_size=8, num_particles=8, num_draws=1000, progress=False)
    seen = []
    curvature = stability.curvature_at
    monkeypatch.setattr(
        stability, "curvature_at", lambda *args: seen.append(args) or curvature(*args)
    )
    checked = pvi.sample(sampler, data, **options).particles
    assert len(seen) == 1
    monkeypatch.setattr(stability, "MIN_STEPS", 10_000)
    assert torch.equal(pvi.sample(sampler, data, **options).particles, checked)
    assert len(seen) == 1


def linear(num):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 2, generator=generator)
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        lambda theta, x: -0.5 * (x @ theta).square(),
        num_params=2,
        num_data=num,
    )
    return target, x


@pytest.mark.parametrize(
    "steps, batch_size, looked_at", [(8000, 400, [1024]), (4000, 100, [740]), (4000, 4, [])]
)
def test_no_more_than_a_small_share_of_the_run(steps, batch_size, looked_at, monkeypatch):
    """Gradients of the check, on so many data, are a twentieth of those of the run, or none."""
    target, x = linear(5000)
    seen = []

    def curvature(model, points, one, other):
        seen.append(len(points) * max(len(one.data), len(other.data)))
        assert not set(map(tuple, one.data.tolist())) & set(map(tuple, other.data.tolist()))
        return torch.ones(len(points))

    monkeypatch.setattr(stability, "curvature_at", curvature)
    data = as_data(x, target)
    source = data.batches(batch_size=batch_size, num_particles=1)
    start = torch.zeros(1, 2)
    check_before_run(pvi.sgd(target), start, data, source, pvi.schedules.constant(1e-5), steps)
    assert seen == looked_at
    assert all(27 * each <= 0.05 * steps * batch_size for each in seen)


@pytest.mark.parametrize("kind", ["tensors", "full", "loader"])
def test_with_data(kind):
    target, x = linear(400)
    limit = 2 / float(torch.linalg.eigvalsh(x.T @ x + torch.eye(2)).max())
    data = DataLoader(x, batch_size=200) if kind == "loader" else x
    options = {"batch_size": 40} if kind == "tensors" else {}
    options |= dict(num_particles=4, num_draws=1200, progress=False)
    pvi.sample(pvi.sgld(target), data, step_size=0.7 * limit, **options)
    with pytest.warns(StabilityWarning), pytest.raises(pvi.DivergenceError):
        pvi.sample(pvi.sgld(target), data, step_size=1.5 * limit, **options)


def test_the_flattest_point_counts():
    quartic = pvi.from_log_density(
        lambda x: -0.25 * (x**4).sum(-1), 1, vectorized=True, dtype=torch.float64
    )
    found = pvi.tuning.check_stability(pvi.sgld(quartic), 0.1, at=torch.tensor([[3.0], [1.0]]))
    assert found.curvature == pytest.approx(3)


def test_silent_where_nothing_is_known(monkeypatch):
    bank = pvi.structured(TARGET, ("random", 2))
    assert pvi.tuning.check_stability(pvi.sgld(bank), 100.0) is None
    assert pvi.tuning.check_stability(pvi.psgld(TARGET), 100.0) is None
    hill = pvi.from_log_density(lambda x: 0.5 * (x**2).sum(), 4)
    assert pvi.tuning.check_stability(pvi.sgld(hill), 100.0) is None
    # A short run fails by itself soon enough.
    with pytest.raises(pvi.DivergenceError), warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pvi.sgld(TARGET), 0.5, num_draws=999)


@pytest.mark.parametrize("kind", ["marked", "not implemented"])
def test_a_potential_without_second_derivatives_runs_all_the_same(kind):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * gradient * ctx.saved_tensors[0]

    squares = {
        "marked": Square.apply,
        "not implemented": lambda x: torch.cdist(x, torch.zeros(1, 5).double()).square(),
    }[kind]
    once = pvi.from_log_density(
        lambda x: -0.5 * squares(x).sum(-1), 5, vectorized=True, dtype=torch.float64
    )
    assert run(pvi.sgld(once), 0.1).particles.isfinite().all()


def test_what_counts_is_the_step_size_of_most_steps():
    """A short excursion, as at the start of a decreasing schedule, ruins nothing."""
    limit = 2 / CURVATURE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pvi.sgld(TARGET), lambda k: 1.2 * limit if k < 3 else 0.5 * limit)
    with pytest.warns(StabilityWarning), pytest.raises(pvi.DivergenceError):
        run(pvi.sgld(TARGET), lambda k: 0.5 * limit if k < 300 else 1.3 * limit)


def test_bad_input():
    with pytest.raises(ValueError, match="step_size must be"):
        pvi.tuning.check_stability(pvi.sgld(TARGET), 0.0)
    with pytest.raises(ValueError, match=r"at must have shape \[P, 5\]"):
        pvi.tuning.check_stability(pvi.sgld(TARGET), 0.1, at=torch.zeros(5))
    target, x = linear(10)
    with pytest.raises(ValueError, match="needs data, got none"):
        pvi.tuning.check_stability(pvi.sgld(target), 0.1)
    assert np.isfinite(pvi.tuning.check_stability(pvi.sgld(target), 1e-3, x).curvature)
