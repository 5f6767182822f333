"""The regulariser of shuffling, against the mean over all orders of the batches."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from torch import nn

import particlevi as pvi

F64 = torch.float64
M, D = 5, 3
GENERATOR = torch.Generator().manual_seed(0)
ROOTS = torch.randn(M, D, D, generator=GENERATOR, dtype=F64)
CURVATURES = 0.5 * ROOTS @ ROOTS.transpose(1, 2) + torch.eye(D, dtype=F64)
OFFSETS = torch.randn(M, D, generator=GENERATOR, dtype=F64)
START = torch.tensor([0.7, -0.4, 0.5], dtype=F64)


def loss(theta, a, b):
    """One loss per datum: a quadratic and a quartic part."""
    quadratic = 0.5 * torch.einsum("i,nij,j->n", theta, a, theta) + b @ theta
    return quadratic + 0.1 * theta.pow(4).sum() * (1 + b[:, 0])


def measured(a=CURVATURES, b=OFFSETS, position=START):
    model = pvi.from_log_likelihood(
        lambda theta: 0.0 * theta.sum(),
        lambda theta, data: -loss(theta, *data),
        num_params=D,
        num_data=len(a),
        dtype=F64,
    )
    return pvi.noise.measure(model, (a, b), position=position)


def mean_after_an_epoch(a, b, rate, start=START):
    """Over all orders of the data, one by one, at once."""
    orders = torch.tensor(list(permutations(range(len(a)))))
    slope = torch.func.grad(lambda theta, x, y: loss(theta, x[None], y[None])[0])
    each = torch.func.vmap(slope)
    theta = start.expand(len(orders), -1).clone()
    for step in orders.T:
        theta = theta - rate * each(theta, a[step], b[step])
    return theta.mean(0)


def flow(gradient, time, steps=6):
    """Runge and Kutta's method of order 4."""
    theta, h = START, time / steps
    for _ in range(steps):
        k1 = gradient(theta)
        k2 = gradient(theta - h / 2 * k1)
        k3 = gradient(theta - h / 2 * k2)
        k4 = gradient(theta - h * k3)
        theta = theta - h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return theta


RATES = [0.006, 0.003, 0.0015]


def order(gradient_at_rate):
    errors = [
        float(
            (flow(gradient_at_rate(r), M * r) - mean_after_an_epoch(CURVATURES, OFFSETS, r)).norm()
        )
        for r in RATES
    ]
    return np.polyfit(np.log(RATES), np.log(errors), 1)[0]


def test_flow_on_the_effective_loss_is_right_to_third_order():
    noise = measured()

    def gradient(rate):
        return lambda theta: pvi.noise.effective_loss(noise.at(theta), rate, 1).gradient

    assert order(gradient) == pytest.approx(3, abs=0.15)


def test_flow_on_the_loss_and_on_that_of_full_batches_only_to_second():
    noise = measured()
    assert order(lambda rate: lambda theta: noise.at(theta).gradient) == pytest.approx(2, abs=0.15)

    def full(rate):
        return lambda theta: pvi.noise.effective_loss(noise.at(theta), rate, M).gradient

    assert order(full) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("partitions", ["fixed", "random"])
def test_gradient_is_that_of_the_value(partitions):
    noise = measured()
    options = {"learning_rate": 0.1, "batch_size": 1, "partitions": partitions}
    found = pvi.noise.shuffling_regulariser(noise, **options)
    for i in range(D):
        step = 1e-5 * torch.eye(D, dtype=F64)[i]
        ends = [
            pvi.noise.shuffling_regulariser(noise.at(START + s * step), **options).value
            for s in (1, -1)
        ]
        assert float(found.gradient[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_random_partitions_by_all_batches():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x, y = torch.randn(6, 2, dtype=F64), torch.randn(6, 1, dtype=F64)
    noise = pvi.noise.measure(net, (x, y), nn.functional.mse_loss)
    found = pvi.noise.shuffling_regulariser(noise, 0.1, 2, partitions="random")
    value, gradient, pairs = 0.0, torch.zeros(noise.num_params, dtype=F64), 0
    for pair in combinations(range(6), 2):
        rows = list(pair)
        one = pvi.noise.measure(net, (x[rows], y[rows]), nn.functional.mse_loss)
        part = pvi.noise.shuffling_regulariser(one, 0.1, 2)
        value, gradient, pairs = value + part.value, gradient + part.gradient, pairs + 1
    assert found.value == pytest.approx(value / pairs, rel=1e-10)
    assert torch.allclose(found.gradient, gradient / pairs, rtol=1e-9, atol=1e-12)


def test_trace_of_the_noise_is_that_of_the_regulariser():
    """``tr C`` from per-sample gradients and from the value over random partitions."""
    noise, rate, size = measured(), 0.1, 1
    value = pvi.noise.shuffling_regulariser(noise, rate, size, partitions="random").value
    gradient = float(noise.gradient.square().sum())
    assert noise.trace().value == pytest.approx(4 * value / rate - gradient, rel=1e-10)


def quadratics(spread):
    """Losses with the mean Hessian diag(8, 1, -.5), so that ``eta H m`` is not small."""
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(M, D, D, generator=generator, dtype=F64)
    a = (a + a.transpose(1, 2)) / 2
    b = torch.randn(M, D, generator=generator, dtype=F64)
    a, b = a - a.mean(0), b - b.mean(0)
    return torch.diag(torch.tensor([8.0, 1.0, -0.5], dtype=F64)) + spread * a, spread * b


def shuffled_less_independent(a, b, rate):
    """The mean after an epoch over all orders, less that with replacement, for quadratics."""
    eye = torch.eye(D, dtype=F64)
    keep = eye - rate * a
    total = torch.zeros(D, dtype=F64)
    orders = list(permutations(range(M)))
    for one in orders:
        theta = START
        for j in one:
            theta = keep[j] @ theta - rate * b[j]
        total += theta / len(orders)
    theta = START
    for _ in range(M):
        theta = keep.mean(0) @ theta - rate * b.mean(0)
    return total - theta


def of_quadratics(a, b):
    model = pvi.from_log_likelihood(
        lambda theta: 0.0 * theta.sum(),
        lambda theta, data: (
            -(0.5 * torch.einsum("i,nij,j->n", theta, data[0], theta) + data[1] @ theta)
        ),
        num_params=D,
        num_data=M,
        dtype=F64,
    )
    return pvi.noise.measure(model, (a, b), position=START)


@pytest.mark.parametrize(("spread", "error"), [(0.1, 0.013), (0.03, 0.004), (0.01, 0.0013)])
def test_drift_at_a_finite_rate(spread, error):
    a, b = quadratics(spread)
    expected = shuffled_less_independent(a, b, 0.1)
    found = pvi.noise.epoch_drift(of_quadratics(a, b), 0.1, 1)
    assert float((found - expected).norm() / expected.norm()) < error


def test_drift_at_a_small_rate_is_smiths():
    a, b = quadratics(0.1)
    noise, rate = of_quadratics(a, b), 1e-5
    full = pvi.noise.shuffling_regulariser(noise, rate, M).gradient
    smith = -rate * M * (pvi.noise.shuffling_regulariser(noise, rate, 1).gradient - full)
    found = pvi.noise.epoch_drift(noise, rate, 1)
    assert float((found - smith).norm() / smith.norm()) < 1e-3


def test_weights_of_curvatures():
    curvature = torch.tensor([0.0, 3.0, 8.0, -0.5], dtype=F64)
    found = pvi.noise.spectral_weight(curvature, 0.1, M)
    for h, w in zip(curvature[1:].tolist(), found[1:].tolist(), strict=True):
        terms = [(1 - (1 - 0.1 * h) ** i) / (0.1 * h) for i in range(1, M)]
        assert w == pytest.approx(sum(terms) / (M - 1), rel=1e-12)
    assert float(found[0]) == M / 2
    assert found.argsort().tolist() == [2, 1, 0, 3]


def test_value_at_a_small_rate_is_half_an_epoch_of_the_trace():
    a, b = quadratics(0.1)
    noise = of_quadratics(a, b)
    found = pvi.noise.finite_rate_regulariser(noise, 1e-7, 1, top=D)
    assert found.value == pytest.approx(M / 2 * noise.trace().value, rel=1e-5)


def test_parts_of_curvatures_are_the_weighted_noise_along_them():
    noise = of_quadratics(*quadratics(0.1))
    found = pvi.noise.finite_rate_regulariser(noise, 0.1, 1, top=D)
    hessian = quadratics(0.1)[0].mean(0)
    values, vectors = torch.linalg.eigh(hessian)
    along = torch.stack([q @ noise.matvec(q) for q in vectors.T])
    wanted = pvi.noise.spectral_weight(values, 0.1, M) * along
    order = values.abs().argsort(descending=True)
    assert torch.allclose(found.curvature, values[order])
    assert torch.allclose(found.parts, wanted[order], rtol=1e-6)
    assert found.rest == pytest.approx(0, abs=1e-9)


def test_directions_left_out_count_as_flat():
    noise = of_quadratics(*quadratics(0.1))
    whole = pvi.noise.finite_rate_regulariser(noise, 0.1, 1, top=D)
    part = pvi.noise.finite_rate_regulariser(noise, 0.1, 1, top=1)
    along = whole.parts / pvi.noise.spectral_weight(whole.curvature, 0.1, M)
    assert part.parts.tolist() == pytest.approx(whole.parts[:1].tolist())
    assert part.rest == pytest.approx(M / 2 * float(along[1:].sum()))


def test_bad_input():
    noise = measured()
    with pytest.raises(ValueError, match="do not split into batches"):
        pvi.noise.shuffling_regulariser(noise, 0.1, 2)
    with pytest.raises(ValueError, match="Batches of which size"):
        pvi.noise.effective_loss(noise, 0.1)
    with pytest.raises(ValueError, match="partitions must be one of"):
        pvi.noise.shuffling_regulariser(noise, 0.1, 1, partitions="all")
    with pytest.raises(ValueError, match="no order to shuffle"):
        pvi.noise.epoch_drift(noise, 0.1, M)
    net = nn.Linear(2500, 1)
    large = pvi.noise.measure(
        net, (torch.zeros(4, 2500), torch.zeros(4, 1)), nn.functional.mse_loss
    )
    with pytest.raises(ValueError, match="is more than 2000"):
        pvi.noise.epoch_drift(large, 0.1, 1)
