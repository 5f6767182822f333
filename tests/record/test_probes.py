"""Gradient noise, curvature and edge of stability against closed forms, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from particlevi.record import edge_of_stability, gradient_noise, top_curvature

F64 = torch.float64


def data(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator, dtype=F64)
    return x, x.sum(1, keepdim=True) + torch.randn(size, 1, generator=generator, dtype=F64)


def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def per_sample(net, batch):
    rows = []
    for x, y in zip(*batch, strict=True):
        grads = torch.autograd.grad(F.mse_loss(net(x[None]), y[None]), list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def test_noise_of_single_data_is_the_sample_covariance():
    net, batch = make_net(), data(40)
    found = gradient_noise(net, lambda b: F.mse_loss(net(b[0]), b[1]), batch, num_parts=40)
    rows = per_sample(net, batch)
    trace = rows.var(0).sum()
    assert found.trace == pytest.approx(float(trace), rel=1e-10)
    signal = rows.mean(0).square().sum() - trace / 40
    assert found.gradient == pytest.approx(float(signal), rel=1e-10)
    assert found.scale == pytest.approx(found.trace / found.gradient)


def test_noise_of_parts_is_unbiased_and_its_error_is_calibrated():
    net, everything = make_net(), data(2000)
    rows = per_sample(net, everything)
    truth = float((rows - rows.mean(0)).square().sum(1).mean())
    generator, scores, values = torch.Generator().manual_seed(5), [], []
    for _ in range(150):
        picks = torch.randint(2000, (256,), generator=generator)
        batch = tuple(each[picks] for each in everything)
        found = gradient_noise(net, lambda b: F.mse_loss(net(b[0]), b[1]), batch, num_parts=32)
        scores.append((found.trace - truth) / found.error)
        values.append(found.trace)
    values, scores = torch.tensor(values), torch.tensor(scores)
    assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / math.sqrt(150)
    assert 0.8 < float(scores.std()) < 1.25


def test_curvature_is_the_largest_eigenvalue_of_the_hessian():
    net, batch = make_net(), data(30)
    names = [name for name, _ in net.named_parameters()]
    shapes = [p.shape for p in net.parameters()]
    flat = torch.cat([p.detach().flatten() for p in net.parameters()])

    def loss(theta):
        pieces = theta.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        return F.mse_loss(torch.func.functional_call(net, weights, batch[0]), batch[1])

    exact = torch.linalg.eigvalsh(torch.func.hessian(loss)(flat))[-1]
    found = top_curvature(net, lambda b: F.mse_loss(net(b[0]), b[1]), batch, tolerance=1e-8)
    assert found == pytest.approx(float(exact), rel=1e-6)


def test_a_linear_loss_has_no_curvature():
    net = nn.Linear(3, 1)
    assert top_curvature(net, lambda b: net(b).mean(), torch.ones(4, 3)) == 0.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "dampening": 0.4},
        {"momentum": 0.9, "weight_decay": 3.0},
    ],
)
@pytest.mark.parametrize(("share", "grows"), [(0.99, False), (1.01, True)])
def test_beyond_the_edge_steps_grow(options, share, grows):
    weight = nn.Parameter(torch.ones(1, dtype=F64))
    optimizer = torch.optim.SGD([weight], lr=0.1, **options)
    curvature = share * (edge_of_stability(optimizer) + options.get("weight_decay", 0.0))
    curvature -= options.get("weight_decay", 0.0)
    for _ in range(3000):
        weight.grad = curvature * weight.detach()
        optimizer.step()
    assert (float(weight.detach().abs()) > 1) == grows


def test_an_optimiser_with_coordinates_of_its_own_has_no_edge():
    weight = nn.Parameter(torch.ones(1))
    assert math.isnan(edge_of_stability(torch.optim.Adam([weight])))


def test_a_loss_per_datum_is_refused():
    net = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="one number with a gradient"):
        gradient_noise(net, net, torch.ones(16, 3))


def test_too_few_data_for_the_parts_are_refused():
    net = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="no 8 parts"):
        gradient_noise(net, lambda b: net(b).mean(), torch.ones(4, 3))
