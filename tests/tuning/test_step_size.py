from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi.typing import Batch
from tests.stationarity.laws import quadratic, random_hessian


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_largest_curvature_of_a_quadratic(size):
    hessian = random_hessian(size, 0.01, 30.0, seed=size)
    found = pvi.curvature.largest_curvature(
        quadratic(hessian), torch.zeros(1, size), tolerance=1e-10
    )
    assert found == pytest.approx(np.linalg.eigvalsh(hessian).max(), rel=1e-8)


def test_largest_curvature_of_a_net_against_the_dense_hessian():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x = torch.randn(30, 2)
    y = x[:, :1].sin()
    target = pvi.from_module(net, pvi.Gaussian(scale=0.2), pvi.Normal(1.0), num_data=30)
    point = target.init(2)

    def energy(theta):
        return target(theta.unsqueeze(0), Batch((x, y)))[0]

    dense = max(
        float(torch.linalg.eigvalsh(torch.func.hessian(energy)(theta)).max()) for theta in point
    )
    for chunk_size in (7, 1024):
        found = pvi.curvature.largest_curvature(target, point, (x, y), chunk_size=chunk_size)
        assert found == pytest.approx(dense, rel=2e-2)


def mean_model(n):
    return pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        lambda theta, data: -0.5 * (data - theta).square().sum(-1),
        num_params=2,
        num_data=n,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("batching", ["replacement", "subset"])
def test_gradient_noise(batching):
    n, batch_size = 50, 10
    x = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1.0, 3.0])
    found = pvi.noise.gradient_variance(
        mean_model(n),
        torch.zeros(50, 2),
        x,
        batch_size=batch_size,
        num_batches=200,
        batching=batching,
    )
    exact = n**2 / batch_size * x.var(0, correction=0)
    if batching == "subset":
        exact = exact * (n - batch_size) / (n - 1)
    torch.testing.assert_close(found, exact, rtol=5 * (2 / 50 / 199) ** 0.5, atol=0)


def test_gradient_noise_of_a_control_variate_is_none():
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = mean_model(50)
    estimator = pvi.control_variate(target, x, torch.zeros(2))
    found = pvi.noise.gradient_variance(estimator, torch.ones(3, 2), x, batch_size=5)
    assert found.abs().max() < 1e-20
    assert pvi.suggest_step_size(estimator, x, batch_size=5, verbose=False).gradient_noise < 1e-20


def test_suggestions_and_their_reason(capsys):
    n = 100
    x = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    full = pvi.suggest_step_size(mean_model(n), x)
    assert full.curvature == pytest.approx(101, rel=1e-6)
    assert full.overdamped == pytest.approx(0.05 / 101, rel=1e-6)
    assert full.momentum == pytest.approx(0.5 / 101**0.5, rel=1e-6)
    assert full.gradient_noise == 0
    assert capsys.readouterr().out.strip() == full.reason
    assert "limited by the curvature" in full.reason
    noisy = pvi.suggest_step_size(mean_model(n), x, batch_size=2, friction=2.0, verbose=False)
    assert noisy.overdamped == pytest.approx(0.2 / noisy.gradient_noise)
    assert noisy.momentum == pytest.approx(0.4 / noisy.gradient_noise)
    assert "limited by the noise" in noisy.reason
    more = pvi.suggest_step_size(mean_model(n), x, batch_size=90, verbose=False)
    h, s2 = 0.5 / 101**0.5, more.gradient_noise
    friction = float(re.search(r"friction of (\S+) it", more.reason)[1])
    c = np.exp(-friction * h)
    assert h**2 * s2 * (1 + c) / ((1 - c) * 4) == pytest.approx(0.1, rel=0.01)
    assert capsys.readouterr().out == ""


def test_where_nothing_would_move_the_friction_that_lets_it_is_told():
    x = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = pvi.suggest_step_size(mean_model(100), x, batch_size=2, verbose=False)
    chosen = pvi.suggest_step_size(mean_model(100), x, batch_size=2, friction=None, verbose=False)
    assert chosen.momentum > 10 * given.momentum
    told = re.search(r"friction of (\S+) it could be h = (\S+) at", given.reason)
    assert float(told[1]) == pytest.approx(chosen.friction, rel=0.01)
    assert float(told[2]) == pytest.approx(chosen.momentum, rel=0.01)


@pytest.mark.parametrize("friction", [1.0, None])
def test_a_law_as_wide_as_the_numbers_reach_has_a_step(friction):
    flat = pvi.from_log_density(
        lambda x: -0.5 * (1e-160 * x).square().sum(), 2, dtype=torch.float64
    )
    at = torch.ones(1, 2, dtype=torch.float64)
    found = pvi.suggest_step_size(flat, at=at, friction=friction, verbose=False)
    assert found.momentum == pytest.approx(0.5e160, rel=1e-4)


def test_a_friction_that_nobody_gave_goes_with_the_scale_of_the_target():
    for scale in (1e-3, 1.0, 1e3):
        bowl = pvi.from_log_density(
            lambda x, scale=scale: -0.5 * (x / scale).square().sum(), 2, dtype=torch.float64
        )
        found = pvi.suggest_step_size(bowl, friction=None, verbose=False)
        assert found.momentum == pytest.approx(0.5 * scale, rel=1e-6)
        assert found.friction == pytest.approx(0.1 / scale, rel=1e-6)


def test_a_friction_that_nobody_gave_is_raised_before_the_step_is_shortened():
    """Batches of 90 of 100: at the friction of the curvature they would heat by more than 10 %."""
    x = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = pvi.suggest_step_size(mean_model(100), x, batch_size=90, friction=None, verbose=False)
    h, s2, c = found.momentum, found.gradient_noise, np.exp(-found.friction * found.momentum)
    assert h == pytest.approx(0.5 / 101**0.5, rel=1e-6)
    assert h**2 * s2 * (1 + c) / ((1 - c) * 4) == pytest.approx(0.1, rel=0.01)
    small = pvi.suggest_step_size(mean_model(100), x, batch_size=2, friction=None, verbose=False)
    assert small.friction * small.momentum == pytest.approx(3)
    assert "friction that goes with it" in small.reason


@pytest.mark.parametrize("momentum", [False, True])
def test_suggested_steps_hold_what_they_promise(momentum):
    """Where the noise is the limit, draws end up about 10 % too hot."""
    n = 100
    x = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = mean_model(n)
    found = pvi.suggest_step_size(target, x, batch_size=20, friction=5.0, verbose=False)
    h = found.momentum if momentum else found.overdamped
    relaxation = 0.2 if momentum else 1 / 101
    draws = pvi.sample(
        pvi.sghmc(target, friction=5.0) if momentum else pvi.sgld(target),
        x,
        step_size=h,
        batch_size=20,
        initial=x.mean(0).expand(500, 2).clone(),
        num_warmup=round(6 * relaxation / h),
        num_draws=10,
        thin=round(relaxation / h),
        progress=False,
    )
    excess = 101 * float(draws.particles.var((0, 1)).mean()) - 1
    assert excess == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize("factory", [pvi.sghmc, pvi.sgld])
@pytest.mark.parametrize("mask", [{"keep": 0.1}, {"mask": "uniform"}])
def test_noise_of_masks_is_held_too(factory, mask):
    """One parameter per group, the history at the mean: the law is a Gaussian of known width."""
    lam = 30.0
    estimator = pvi.structured_dropout(
        quadratic(lam * np.eye(2)),
        "parameter",
        history=pvi.gradients.history(initial=torch.zeros(1, 2), frozen=True),
        **mask,
    )
    found = pvi.suggest_step_size(estimator, verbose=False)
    assert "of masks" in found.reason
    h = found.momentum if factory is pvi.sghmc else found.overdamped
    time = 1.0 if factory is pvi.sghmc else 1 / lam
    draws = pvi.sample(
        factory(estimator),
        step_size=h,
        initial=torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) / lam**0.5,
        num_warmup=round(3 * time / h),
        num_draws=4,
        thin=round(time / h),
        progress=False,
    )
    narrowed = 2 / 3 if "mask" in mask else 1.0
    excess = lam * narrowed * float(draws.particles.double().square().mean()) - 1
    assert -0.05 < excess < 0.25


def test_bad_input():
    hill = pvi.from_log_density(lambda x: 0.5 * (x**2).sum(), 4)
    with pytest.raises(ValueError, match="no step size follows"):
        pvi.suggest_step_size(hill)
    with pytest.raises(ValueError, match=r"shape \[P, 4\]"):
        pvi.curvature.largest_curvature(hill, torch.zeros(4))
    with pytest.raises(ValueError, match="needs data, got none"):
        pvi.suggest_step_size(mean_model(10))
    with pytest.raises(ValueError, match="num_data=10, got 9 data"):
        pvi.curvature.largest_curvature(mean_model(10), torch.zeros(1, 2), torch.zeros(9, 2))
    with pytest.raises(ValueError, match="without data"):
        pvi.curvature.largest_curvature(hill, torch.zeros(1, 4), torch.zeros(9, 2))
