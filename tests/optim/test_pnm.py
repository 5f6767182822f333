"""PNM and AdaPNM: exact sequences, the EMA identity and the stationary law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from particlevi.optim import PNM, AdaPNM

DTYPE = torch.float64
GAIN = 1 / math.sqrt(5)
# Updates over lr under the gradient 1, as published with the equations.
PNM_UPDATES = [0.1699, 0.0850, 0.2226, 0.1538, 0.2653, 0.2095, 0.2999, 0.2547]
ADAPNM_UPDATES = [1.6994, 0.4472, 0.8215, 0.4472, 0.6478, 0.4472, 0.5748, 0.4472]


def pnm_update(t, beta1=0.9):
    """Under the gradient 1 the averages are ``m_t = 1 - beta1^(2 ceil(t / 2))``."""
    m, previous = (1 - beta1 ** (2 * math.ceil(k / 2)) for k in (t, t - 1))
    return (2 * m - previous) * GAIN


def updates(optimizer, param, steps):
    """What each step subtracts under a constant gradient of 1."""
    found = []
    for _ in range(steps):
        before = param.detach().clone()
        param.grad = torch.ones_like(param)
        optimizer.step()
        found.append(float(before - param.detach()))
    return found


def zero():
    return torch.zeros(1, dtype=DTYPE, requires_grad=True)


def test_pnm_sequence_under_a_constant_gradient():
    param = zero()
    found = updates(PNM([param], lr=1.0), param, 8)
    assert found == pytest.approx([pnm_update(t) for t in range(1, 9)], abs=1e-12)
    assert found == pytest.approx(PNM_UPDATES, abs=5e-5)


def test_adapnm_sequence_under_a_constant_gradient():
    param = zero()
    found = updates(AdaPNM([param], lr=1.0, eps=0.0), param, 8)
    exact = [pnm_update(t) / (1 - 0.9**t) for t in range(1, 9)]
    assert found == pytest.approx(exact, abs=1e-12)
    assert found == pytest.approx(ADAPNM_UPDATES, abs=5e-5)


@pytest.mark.parametrize("make", [PNM, AdaPNM])
def test_a_long_constant_gradient_moves_by_the_gain(make):
    param = zero()
    assert updates(make([param], lr=1.0), param, 3000)[-1] == pytest.approx(GAIN, abs=1e-6)


def test_the_negative_beta0_of_the_ema_gives_the_ema():
    beta1 = 0.9
    beta0 = -beta1 / (1 + beta1)
    lr = 0.1 * math.hypot(1 + beta0, beta0)
    param = torch.zeros(7, dtype=DTYPE, requires_grad=True)
    optimizer = PNM([param], lr=lr, betas=(beta1, beta0))
    point, average = torch.zeros(2, 7, dtype=DTYPE)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        grad = torch.randn(7, generator=generator, dtype=DTYPE)
        param.grad = grad
        optimizer.step()
        average = beta1 * average + (1 - beta1) * grad
        point = point - 0.1 * average
        assert torch.allclose(param.detach(), point, rtol=0, atol=1e-12)


def matrices(lr, curvature, betas):
    """``z' = A z + B xi`` of one step on ``h x^2 / 2``, ``z = (x, m_{t-1}, m_{t-2})``.

    Read off the optimiser: the step is linear, and each column is one step from a unit vector.
    """
    columns = []
    for unit in torch.eye(4, dtype=DTYPE):
        param = torch.nn.Parameter(unit[:1].clone())
        optimizer = PNM([param], lr=lr, betas=betas)
        param.grad = torch.zeros_like(param)
        optimizer.step()
        state = optimizer.state[param]
        # One step was taken, so that the next is even: it updates the even average.
        param.data.copy_(unit[:1])
        state["momentum_odd"].copy_(unit[1:2])
        state["momentum_even"].copy_(unit[2:3])
        param.grad = curvature * param.detach() + unit[3:]
        optimizer.step()
        columns.append([param.item(), float(state["momentum_even"]), float(state["momentum_odd"])])
    found = np.array(columns).T
    return found[:, :3], found[:, 3:]


def stationary_variance(lr, curvature, betas):
    a, b = matrices(lr, curvature, betas)
    return solve_discrete_lyapunov(a, b @ b.T)[0, 0]


def test_the_stationary_variance_by_the_steps_own_matrices():
    assert stationary_variance(0.01, 1.0, (0.9, 1.0)) == pytest.approx(2.2264e-3, abs=5e-8)


@pytest.mark.parametrize(
    ("beta1", "stiffness", "ratio"),
    [
        (0.9, 1e-4, 1.0000),
        (0.9, 1e-3, 0.9996),
        (0.9, 0.01, 0.9957),
        (0.9, 0.1, 0.9605),
        (0.9, 0.5, 0.8755),
        (0.0, 1e-3, 1.0016),
        (0.0, 0.01, 1.0157),
        (0.0, 0.1, 1.164),
    ],
)
def test_the_stationary_variance_is_that_of_sgd_at_the_effective_rate(beta1, stiffness, ratio):
    found = stationary_variance(stiffness, 1.0, (beta1, 1.0)) / (stiffness * GAIN / 2)
    assert found == pytest.approx(ratio, abs=6e-5 if ratio < 1.01 else 6e-4)


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_steps_are_stable_up_to_a_curvature_whatever_beta1_is(beta1):
    """``lr h < 2 sqrt(5) / 3``: at the limit the point flips its sign in every step."""
    limit = 2 * math.sqrt(5) / 3
    below, above = (
        max(abs(np.linalg.eigvals(matrices(factor * limit, 1.0, (beta1, 1.0))[0])))
        for factor in (0.99, 1.01)
    )
    assert below < 1 < above


@pytest.mark.slow
def test_the_stationary_variance_by_simulation():
    generator = torch.Generator().manual_seed(1)
    param = torch.zeros(20_000, dtype=DTYPE, requires_grad=True)
    optimizer = PNM([param], lr=0.01)
    for _ in range(1500):
        param.grad = param.detach() + torch.randn(20_000, generator=generator, dtype=DTYPE)
        optimizer.step()
    assert float(param.detach().square().mean()) == pytest.approx(2.2264e-3, rel=0.02)


def test_parity_is_each_parameters_own():
    late, early = zero(), zero()
    optimizer = PNM([late, early], lr=1.0)
    early.grad = torch.ones_like(early)
    optimizer.step()
    assert updates(optimizer, late, 2) == pytest.approx([pnm_update(1), pnm_update(2)], abs=1e-12)


@pytest.mark.parametrize(
    ("make", "betas", "message"),
    [
        (PNM, (1.0, 1.0), "beta1"),
        (PNM, (0.9, float("nan")), "beta0"),
        (PNM, (0.9, 0.99, 1.0), "betas"),
        (AdaPNM, (0.9, 1.0, 1.0), "beta2"),
        (AdaPNM, (0.9, 0.99), "betas"),
    ],
)
def test_bad_betas_are_refused(make, betas, message):
    with pytest.raises(ValueError, match=message):
        make([zero()], betas=betas)


def test_a_negative_eps_is_refused():
    with pytest.raises(ValueError, match="eps"):
        AdaPNM([zero()], eps=-1.0)


@pytest.mark.parametrize("capturable", [False, True])
def test_eps_is_added_to_the_corrected_root(capturable):
    # Under the gradient 1 the corrected root is 1 at every step.
    param = zero()
    found = updates(AdaPNM([param], lr=1.0, eps=0.5, capturable=capturable), param, 4)
    exact = [pnm_update(t) / (1 - 0.9**t) / 1.5 for t in range(1, 5)]
    assert found == pytest.approx(exact, abs=1e-7)


def test_adapnm_divides_by_the_largest_square_so_far():
    param = zero()
    optimizer = AdaPNM([param])
    for grad in (3.0, 0.0, 0.0):
        param.grad = torch.full_like(param, grad)
        optimizer.step()
    assert float(optimizer.state[param]["max_square"]) == pytest.approx(9e-3, rel=1e-12)
