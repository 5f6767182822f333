"""SVGD against its closed-form fixed points."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from tests.kernels.common import F64, gaussian, settle


@pytest.mark.parametrize(
    ("bandwidth", "square"),
    [
        (pvi.kernels.fixed(2.0), 0.5 * math.log(3)),
        (pvi.kernels.fixed(0.7), 0.7 / 4 * math.log(1 + 4 / 0.7)),
        (pvi.kernels.median(log="P"), math.log(2)),
        (pvi.kernels.median(), math.log(3) / 2),
        (pvi.kernels.median(pairs="all"), math.log(3) / 4),
    ],
)
def test_two_particles_on_a_standard_normal(bandwidth, square):
    """The symmetric fixed point +-a; pairs="all" is the authors' rule."""
    sampler = pvi.svgd(gaussian([0.0], [[1.0]]), kernel=pvi.kernels.rbf(bandwidth))
    ends = settle(sampler, torch.tensor([[-0.3], [1.1]], dtype=F64), 800, 0.4)
    torch.testing.assert_close(
        ends.square().flatten(), ends.new_full((2,), square), atol=0, rtol=1e-8
    )
    assert ends.sum().abs() < 1e-8


@pytest.mark.parametrize("optimizer", ["plain", "adagrad", "rmsprop", "adam"])
def test_every_optimizer_has_the_same_fixed_point(optimizer):
    sampler = pvi.svgd(gaussian([0.0], [[1.0]]), kernel=pvi.kernels.rbf(2.0), optimizer=optimizer)
    schedule = pvi.schedules.cosine(0.3, num_steps=1000)
    ends = settle(sampler, torch.tensor([[-0.3], [1.1]], dtype=F64), 1000, schedule)
    torch.testing.assert_close(
        ends.square().flatten(), ends.new_full((2,), 0.5 * math.log(3)), atol=0, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        ("adagrad", lambda leaf: torch.optim.Adagrad([leaf], lr=0.1, eps=1e-8)),
        ("adam", lambda leaf: torch.optim.Adam([leaf], lr=0.1)),
    ],
)
def test_one_particle_takes_the_steps_of_torchs_optimizer(optimizer, reference):
    start = torch.tensor([[4.0, -3.0]], dtype=F64)
    leaf = start.clone().requires_grad_()
    steps = reference(leaf)
    for _ in range(5):
        steps.zero_grad()
        (0.5 * leaf[:, 0].square() + 2 * leaf[:, 1].square()).sum().backward()
        steps.step()
    target = gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 4.0]])
    ends = settle(pvi.svgd(target, optimizer=optimizer), start, 5, 0.1)
    torch.testing.assert_close(ends, leaf.detach(), atol=0, rtol=1e-12)


def test_rmsprop_starts_from_the_first_square():
    """H = g^2 at first, then 0.9 H + 0.1 g^2, as in the authors' code: the first step is h."""
    ends, second = torch.tensor([[4.0]], dtype=F64), None
    for _ in range(5):
        second = ends.square() if second is None else 0.9 * second + 0.1 * ends.square()
        ends = ends - 0.1 * ends / (second.sqrt() + 1e-8)
    sampler = pvi.svgd(gaussian([0.0], [[1.0]]), optimizer="rmsprop")
    found = settle(sampler, torch.tensor([[4.0]], dtype=F64), 5, 0.1)
    torch.testing.assert_close(found, ends, atol=0, rtol=1e-12)


def test_the_linear_kernel_recovers_mean_and_covariance():
    mean, precision = [-0.6871, 0.8010], [[0.2260, 0.1652], [0.1652, 0.6779]]
    initial = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    ends = settle(
        pvi.svgd(gaussian(mean, precision), kernel=pvi.kernels.linear()), initial, 1500, 0.2
    )
    torch.testing.assert_close(ends.mean(0), ends.new_tensor(mean), atol=1e-8, rtol=0)
    covariance = torch.cov(ends.T, correction=0)
    expected = ends.new_tensor(precision).inverse()
    torch.testing.assert_close(covariance, expected, atol=1e-8, rtol=1e-8)


# Pooled variance under med/log P over pairs, and under the authors' rule. The row (100, 50) is
# where the direction is zero to 1e-16; 3000 plain steps of 0.5 end at 0.0858, still moving.
TABLE = [
    (10, 1, 0.795, 0.773, 0.02),
    (50, 1, 0.937, 0.936, 0.02),
    (100, 1, 0.964, 0.963, 0.02),
    (100, 10, 0.430, 0.422, 0.05),
    (100, 50, 0.0903, 0.0896, 0.01),
    (20, 20, 0.150, 0.145, 0.05),
]


@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.parametrize(("num", "dim", "usual", "whole", "tolerance"), TABLE)
def test_the_variance_collapses_as_the_table_says(num, dim, usual, whole, tolerance, authors):
    """Pooled (1/P) variance on N(0, I): med/log P over pairs, and the authors' own rule."""
    rule = pvi.kernels.median(pairs="all") if authors else pvi.kernels.median(log="P")
    initial = torch.randn(num, dim, dtype=F64, generator=torch.Generator().manual_seed(1))
    target = gaussian(torch.zeros(dim), torch.eye(dim))
    sampler = pvi.svgd(target, kernel=pvi.kernels.rbf(rule), optimizer="adam")
    ends = settle(sampler, initial, 600, pvi.schedules.cosine(0.1, num_steps=600))
    assert ends.mean(0).abs().max() < 2e-3
    variance = float((ends - ends.mean(0)).square().mean())
    assert variance == pytest.approx(whole if authors else usual, rel=tolerance)


@pytest.mark.parametrize(
    ("rule", "variance"),
    [
        (pvi.kernels.median(log="P"), math.log(8)),
        (pvi.kernels.median(), math.log(9) * 7 / 8),
    ],
)
def test_no_more_particles_than_dimensions_settle_on_a_simplex(rule, variance):
    """Where P <= D + 1 all distances are equal, and E|x|^2 is log P whatever D is.

    On a regular simplex with k = exp(-r^2/b) the direction is zero where b = 2 k P / (1 - k), and
    E|x|^2 = r^2 (P - 1) / (2 P).
    """
    num, dim = 8, 11
    initial = torch.randn(num, dim, dtype=F64, generator=torch.Generator().manual_seed(3))
    sampler = pvi.svgd(gaussian(torch.zeros(dim), torch.eye(dim)), kernel=pvi.kernels.rbf(rule))
    ends = settle(sampler, initial, 1500, 1.0)
    assert float(ends.square().sum(1).mean()) == pytest.approx(variance, rel=1e-8)


def test_one_particle_is_gradient_descent():
    target = gaussian([1.0, -2.0], [[2.0, 0.3], [0.3, 1.0]])
    initial = torch.tensor([[4.0, 4.0]], dtype=F64)
    stein = settle(pvi.svgd(target), initial, 50, 0.1)
    descent = settle(pvi.sgd(target), initial, 50, 0.1)
    torch.testing.assert_close(stein, descent, atol=0, rtol=1e-12)


def test_the_authors_demo_target():
    mean, precision = [-0.6871, 0.8010], [[0.2260, 0.1652], [0.1652, 0.6779]]
    initial = torch.randn(10, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    sampler = pvi.svgd(gaussian(mean, precision), optimizer="adam")
    ends = settle(sampler, initial, 1500, pvi.schedules.cosine(0.1, num_steps=1500))
    torch.testing.assert_close(ends.mean(0), ends.new_tensor(mean), atol=5e-3, rtol=0)
