"""Predictions for the chain of SGD's iterates, against sums, other laws and simulation."""

from __future__ import annotations

import pytest
import torch

from particlevi.sgdvi import (
    epoch_chain,
    epoch_law,
    exact_law,
    rate_schedule_moments,
    sgd_chain,
)

F64 = torch.float64
D = 3


def matrices(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, D, 2 * D, generator=generator, dtype=F64)
    return a @ a.T / (2 * D) + 0.3 * torch.eye(D), b @ b.T / (2 * D)


F, C = matrices()
SETTINGS = {"learning_rate": 0.2, "batch_size": 4}
CHAINS = {
    "plain": sgd_chain(F, C, **SETTINGS),
    "momentum": sgd_chain(F, C, momentum=0.8, **SETTINGS),
    "preconditioned": sgd_chain(
        F, C, momentum=0.5, preconditioner=matrices(1)[0], injected=0.1, **SETTINGS
    ),
}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batching", ["replacement", "subset"])
def test_covariance_is_that_of_the_exact_law(momentum, batching):
    more = {"momentum": momentum, "batching": batching, "num_data": 20}
    law = exact_law(F, C, **SETTINGS, **more)
    chain = sgd_chain(F, C, **SETTINGS, **more)
    assert torch.allclose(chain.covariance, law.covariance, atol=1e-14)


def test_a_preconditioner_is_a_change_of_coordinates():
    """With ``H = R R'``, ``y = R^-1 x`` follows plain SGD with ``R'F R`` and ``R'C R``."""
    r = torch.linalg.cholesky(matrices(1)[0])
    plain = sgd_chain(r.T @ F @ r, r.T @ C @ r, momentum=0.5, **SETTINGS)
    chain = sgd_chain(F, C, momentum=0.5, preconditioner=r @ r.T, **SETTINGS)
    assert torch.allclose(chain.covariance, r @ plain.covariance @ r.T, atol=1e-12)


def test_sgld_has_its_closed_variance():
    """``(2 T + h s^2) / (l (2 - h l))`` of U, with ``eta = h N``."""
    n, curve, s2, h, t = 50, 40.0, 300.0, 0.01, 1.5
    one = torch.ones(1, 1, dtype=F64)
    noise = s2 * 5 / n**2 * one
    chain = sgd_chain(
        curve / n * one, noise, learning_rate=h * n, batch_size=5, injected=2 * t / (n * h * n)
    )
    assert chain.covariance.item() == pytest.approx(
        (2 * t + h * s2) / (curve * (2 - h * curve)), rel=1e-12
    )


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("window", [1, 2, 7, 50])
def test_averages_are_sums_of_autocovariances(chain, window):
    lagged = [chain.autocovariance(k) for k in range(window)]
    total = window * lagged[0]
    for k in range(1, window):
        total = total + (window - k) * (lagged[k] + lagged[k].T)
    assert torch.allclose(chain.average_covariance(window), total / window**2, atol=1e-12)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_autocorrelation_times_are_sums_of_autocorrelations(chain):
    w = matrices(2)[0]
    total = sum(chain.autocovariance(k) for k in range(1, 2000))
    spread = torch.einsum("ik,ij,jk->k", w, chain.covariance, w)
    wanted = 1 + 2 * torch.einsum("ik,ij,jk->k", w, total, w) / spread
    assert torch.allclose(chain.autocorrelation_time(w), wanted, rtol=1e-10)


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("tolerance", [0.5, 0.01])
def test_steps_to_stationarity_are_those_of_the_growing_variance(chain, tolerance):
    kick = chain.joint - chain.step @ chain.joint @ chain.step.T
    spread, grown = torch.zeros_like(kick), []
    for _ in range(400):
        spread = chain.step @ spread @ chain.step.T + kick
        grown.append(spread[:D, :D].diagonal() / chain.covariance.diagonal())
    inside = torch.stack(grown) >= 1 - tolerance
    wanted = inside.double().argmax(0) + 1
    assert torch.equal(chain.steps_to_stationarity(tolerance=tolerance), wanted.double())


def test_every_second_iterate_has_every_second_autocovariance():
    chain = CHAINS["momentum"]
    assert torch.allclose(chain.every(2).autocovariance(3), chain.autocovariance(6), atol=1e-14)


def test_ends_of_epochs_have_the_covariance_of_the_epoch_law():
    options = {"num_data": 20, "learning_rate": 0.2, "batch_size": 4}
    chain = epoch_chain(F, C, **options)
    assert torch.allclose(chain.covariance, epoch_law(F, C, **options).end, atol=1e-14)
    forget = torch.linalg.matrix_power(torch.eye(D, dtype=F64) - 0.2 * F, 5)
    assert torch.allclose(chain.autocovariance(1), forget @ chain.covariance, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_a_constant_schedule_ends_in_the_stationary_law(momentum):
    rates = torch.full((400,), 0.2)
    found = rate_schedule_moments(
        F, C, rates=rates, batch_size=4, mean=torch.ones(D), momentum=momentum
    )
    law = sgd_chain(F, C, momentum=momentum, **SETTINGS)
    assert torch.allclose(found.covariance[-1], law.covariance, atol=1e-9)
    assert found.mean[-1].norm() < 1e-6


def test_a_falling_schedule_is_the_product_of_its_steps():
    rates = torch.tensor([0.3, 0.2, 0.1], dtype=F64)
    found = rate_schedule_moments(F, C, rates=rates, batch_size=2, mean=torch.ones(D))
    mean, spread = torch.ones(D, dtype=F64), torch.zeros(D, D, dtype=F64)
    for rate in rates:
        step = torch.eye(D, dtype=F64) - rate * F
        mean, spread = step @ mean, step @ spread @ step.T + rate**2 * C / 2
    assert torch.allclose(found.mean[-1], mean, atol=1e-14)
    assert torch.allclose(found.covariance[-1], spread, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_simulation_agrees_within_two_per_cent(momentum):
    chain = sgd_chain(F, C, momentum=momentum, **SETTINGS)
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(C / 4)
    x, v = torch.zeros(2, 20_000, D, dtype=F64)
    sums = torch.zeros_like(x)
    burn, window = 300, 600
    for k in range(burn + window):
        g = x @ F + torch.randn(x.shape, generator=generator, dtype=F64) @ root.T
        v = momentum * v + g
        x = x - 0.2 * v
        sums += x if k >= burn else 0
    spread = x.T @ x / len(x)
    averages = (sums / window).T @ (sums / window) / len(x)
    assert (spread - chain.covariance).norm() < 0.02 * chain.covariance.norm()
    wanted = chain.average_covariance(window)
    assert (averages - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 9.0}, "Lower learning_rate"),
        ({"preconditioner": 0.0}, "positive definite"),
        ({"injected": -torch.eye(3)}, "negative eigenvalues"),
        ({"preconditioner": torch.ones(2)}, r"\[3, 3\]"),
        ({"batching": "subset", "num_data": 4}, "no noise"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        sgd_chain(F, C, **(SETTINGS | change))
