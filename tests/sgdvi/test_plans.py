"""Plans on real losses: exact for least squares, and a check that knows when they are not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.sgdvi import design, least_squares_law, plan, sgd_chain
from particlevi.sgdvi.verification import verify_draws

F64 = torch.float64
N = 200


def half_square(outputs, targets):
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def regression(size: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, size, generator=generator, dtype=F64)
    x[:, 0] *= 2
    y = x.sum(1, keepdim=True) + torch.randn(N, 1, generator=generator, dtype=F64)
    return x, y


def linear(size: int = 3):
    return nn.Linear(size, 1, bias=False).double()


@pytest.mark.parametrize("target", ["posterior", "sandwich", 0.5])
def test_least_squares_are_sampled_exactly_though_their_noise_grows(target):
    """Under ``H = R R'`` the law is that of plain SGD on the features ``x R``."""
    x, y = regression()
    found = plan(linear(), (x, y), half_square, target=target, batch_size=4)
    root = torch.linalg.cholesky(found.preconditioner)
    assert found.design.injected is None
    law = least_squares_law(x @ root, y[:, 0], learning_rate=found.learning_rate, batch_size=4)
    covariance = root @ law.covariance @ root.T
    assert torch.allclose(covariance, found.design.target, rtol=1e-8, atol=1e-13)
    # With the noise at the minimum alone it would be off by more than a per cent.
    noise = pvi.noise.measure(linear(), (x, y), half_square, position=found.center)
    still = design(found.hessian, noise.dense(), found.design.target, batch_size=4, num_data=N)
    root = torch.linalg.cholesky(still.preconditioner)
    law = least_squares_law(x @ root, y[:, 0], learning_rate=still.learning_rate, batch_size=4)
    off = (root @ law.covariance @ root.T - still.target).norm() / still.target.norm()
    assert off > 0.005


def test_the_targets_are_those_of_the_textbook():
    x, y = regression()
    center = torch.linalg.lstsq(x, y).solution
    hessian = x.T @ x / N
    rows = x * (x @ center - y)
    posterior = torch.linalg.inv(x.T @ x)
    sandwich = torch.linalg.inv(hessian) @ (rows.T @ rows / N) @ torch.linalg.inv(hessian) / N
    for target, wanted in (("posterior", posterior), ("sandwich", sandwich), (2.0, 2 * posterior)):
        found = plan(linear(), (x, y), half_square, target=target, batch_size=4)
        assert torch.allclose(found.center, center[:, 0], atol=1e-9)
        assert torch.allclose(found.design.target, wanted, rtol=1e-8, atol=1e-12)


def test_the_prior_of_a_potential_and_weight_decay_are_one():
    x, y = regression()
    model = pvi.from_module(linear(), pvi.Gaussian(1.0), pvi.Normal(0.5), num_data=N)
    of_model = plan(model, (x, y), batch_size=4, position=torch.zeros(3, dtype=F64))
    decay = 1 / (0.25 * N)
    of_module = plan(linear(), (x, y), half_square, weight_decay=decay, batch_size=4)
    assert torch.allclose(of_model.center, of_module.center, atol=1e-8)
    assert torch.allclose(of_model.design.covariance, of_module.design.covariance, rtol=1e-7)


def test_runs_have_the_shape_of_chains_and_repeat():
    x, y = regression()
    found = plan(linear(), (x, y), half_square, batch_size=50)
    one, two = (found.run(20, num_chains=3, seed=s).particles for s in (1, 1))
    assert one.shape == (3, 20, 3)
    assert torch.equal(one, two)


def test_averages_are_draws():
    x, y = regression()
    found = plan(
        linear(), (x, y), half_square, target="sandwich", batch_size=50, averaging=4,
        preconditioner="scalar",
    )  # fmt: skip
    assert found.run(20, num_chains=3).particles.shape == (3, 20, 3)
    assert found.thin == 4


def test_a_minimum_without_curvature_is_refused():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    with pytest.raises(ValueError, match="weight_decay"):
        plan(net, regression(), half_square, batch_size=4)


def gaussian_run(found, chains: int, length: int, seed: int, scale: float = 1.0):
    """Draws of the Gaussian chain itself, ``[P, T, D]``."""
    generator = torch.Generator().manual_seed(seed)
    thinned = found.chain.every(found.thin)
    kick = thinned.joint - thinned.step @ thinned.joint @ thinned.step.T
    root, start = torch.linalg.cholesky(kick), torch.linalg.cholesky(thinned.joint)
    z = torch.randn(chains, len(root), generator=generator, dtype=F64) @ start.T
    kept = []
    for _ in range(length):
        z = z @ thinned.step.T + torch.randn(z.shape, generator=generator, dtype=F64) @ root.T
        kept.append(z[:, : found.chain.num_params])
    return scale * torch.stack(kept, 1)


def small_design():
    f, c = torch.diag(torch.tensor([1.0, 3.0], dtype=F64)), torch.eye(2, dtype=F64)
    return design(f, c, torch.linalg.inv(100 * f), batch_size=5, num_data=100)


def test_draws_of_the_predicted_law_are_accepted_and_others_are_not():
    found = small_design()
    center = torch.zeros(2, dtype=F64)
    right = verify_draws(gaussian_run(found, 4, 500, 0), center, found)
    assert right.holds
    wide = verify_draws(gaussian_run(found, 4, 500, 0, scale=1.2), center, found)
    assert not wide.holds
    assert abs(wide.spread_ratio - 1.44) < 4 * wide.spread_error
    assert abs(wide.kl - (0.44 - math.log(1.44))) < 4 * wide.kl_error
    moved = verify_draws(gaussian_run(found, 4, 500, 0) + 0.05, center, found)
    assert not moved.holds
    assert "FAILS" in str(moved)


def checks(scale: float):
    found, center = small_design(), torch.zeros(2, dtype=F64)
    return [
        verify_draws(gaussian_run(found, 4, 200, seed, scale=scale), center, found)
        for seed in range(400)
    ]


def standardised(found, value: str, error: str, wanted: float):
    z = torch.tensor([(getattr(c, value) - wanted) / getattr(c, error) for c in found])
    return float(z.mean()), float(z.std())


@pytest.mark.slow
def test_the_errors_of_the_check_are_calibrated():
    found = checks(1.0)
    predicted = found[0].correlation_predicted
    for value, error, wanted in (
        ("spread_ratio", "spread_error", 1.0),
        ("correlation", "correlation_error", predicted),
    ):
        mean, sd = standardised(found, value, error, wanted)
        assert abs(mean) < 0.3, value
        assert 0.85 < sd < 1.2, value
    assert sum(not check.holds for check in found) <= 4


@pytest.mark.slow
def test_the_error_of_the_divergence_is_calibrated_away_from_zero():
    mean, sd = standardised(checks(1.2), "kl", "kl_error", 0.44 - math.log(1.44))
    assert abs(mean) < 0.3
    assert 0.85 < sd < 1.2


@pytest.mark.slow
def test_the_divergence_is_unbiased_at_zero_and_its_error_on_the_safe_side():
    """At 0 the estimate is a quadratic form: skewed, and its error grows with its value."""
    found = checks(1.0)
    kl = torch.tensor([check.kl for check in found])
    error = torch.tensor([check.kl_error for check in found])
    assert abs(float(kl.mean())) < 4 * float(kl.std()) / math.sqrt(len(kl))
    assert 1.0 < float(error.mean() / kl.std()) < 1.7


@pytest.mark.slow
def test_logistic_regression_against_reference_draws():
    """Targets are the covariance of reference draws; the run has it within errors and 10 %."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 3, generator=generator, dtype=F64)
    y = (x[:, 0] + torch.randn(500, generator=generator, dtype=F64) > 0).double()[:, None]
    net = nn.Linear(3, 1).double()
    model = pvi.from_module(net, pvi.Bernoulli(), pvi.Normal(3.0), num_data=500)
    reference = pvi.sample(
        pvi.hmc(model, num_leapfrog=8), (x, y), step_size=0.05, num_particles=8, num_warmup=200,
        num_draws=500, progress=False,
    ).particles.flatten(0, 1)  # fmt: skip
    centered = reference - reference.mean(0)
    target = centered.T @ centered / len(centered)
    start = reference.mean(0)
    found = plan(model, (x, y), target=target, batch_size=125, position=start)
    checked = found.verify(found.run(250, num_chains=8))
    assert checked.spread_ratio == pytest.approx(1, abs=0.1)
    assert checked.kl < 0.05


def test_momentum_and_plain_plans_of_one_target_predict_one_covariance():
    x, y = regression()
    plain = plan(linear(), (x, y), half_square, batch_size=10)
    heavy = plan(linear(), (x, y), half_square, batch_size=10, momentum=0.5)
    assert torch.allclose(plain.design.covariance, heavy.design.covariance, rtol=1e-9)
    again = sgd_chain(
        heavy.hessian,
        heavy.noise,
        learning_rate=heavy.learning_rate,
        batch_size=10,
        momentum=0.5,
        preconditioner=heavy.preconditioner,
    )
    assert torch.allclose(again.covariance, heavy.design.covariance, rtol=1e-12)


def test_the_growth_of_curvature_is_that_of_the_points():
    """``f = x^2 / 2 + x^4 / 4``, of curvature ``1 + 3 x^2``, at points that lie at sd of 1/3."""
    model = pvi.from_log_likelihood(
        lambda theta: 0.0 * theta.sum(),
        lambda theta, z: -(0.5 * theta**2 + 0.25 * theta**4).sum() + 0.0 * z,
        num_params=1,
        num_data=9,
        dtype=F64,
    )
    found = plan(model, torch.randn(9, dtype=F64), target=torch.full((1, 1), 1 / 9, dtype=F64),
                 batch_size=3, position=torch.zeros(1, dtype=F64))  # fmt: skip
    assert found.curvature_growth == pytest.approx(1 + 3 / 9)


def test_a_linear_model_has_no_growth():
    assert plan(linear(), regression(), half_square, batch_size=10).curvature_growth == (
        pytest.approx(1.0, abs=1e-9)
    )


@pytest.mark.filterwarnings("ignore:Chains diverged")
def test_a_run_that_leaves_the_minimum_says_that_the_rate_was_the_plans():
    """``f = x^2 / 2 - x^4 / 4``: beyond 1 it falls without end."""
    model = pvi.from_log_likelihood(
        lambda theta: 0.0 * theta.sum(),
        lambda theta, z: -(0.5 * theta**2 - 0.25 * theta**4).sum() + z * theta.sum(),
        num_params=1,
        num_data=9,
        dtype=F64,
    )
    z = torch.linspace(-1, 1, 9, dtype=F64)
    found = plan(model, z, target=torch.full((1, 1), 0.2, dtype=F64), batch_size=3,
                 position=torch.zeros(1, dtype=F64))  # fmt: skip
    with pytest.raises(pvi.errors.DivergenceError) as raised:
        found.run(200)
    assert "The rate is the plan's own" in raised.value.__notes__[0]
