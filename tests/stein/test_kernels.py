"""Kernels and their Stein directions against loops and automatic differentiation."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi

F64 = torch.float64


def points(num, dim, seed=0):
    return torch.randn(num, dim, dtype=F64, generator=torch.Generator().manual_seed(seed))


def by_autograd(kernel, x, scores):
    """Attraction and repulsion from the kernel matrix alone, its bandwidth held fixed."""
    moved = x.clone().requires_grad_()
    matrix = kernel(moved, x)
    repulsion = torch.stack(
        [
            torch.autograd.grad(matrix[:, i].sum(), moved, retain_graph=True)[0].sum(0)
            for i in range(len(x))
        ]
    )
    return matrix.detach().T @ scores / len(x), repulsion / len(x)


KERNELS = {
    "rbf": pvi.rbf(1.3),
    "linear": pvi.linear(),
}


@pytest.mark.parametrize("name", KERNELS)
def test_direction_is_the_derivative_of_the_kernel(name):
    kernel, x, scores = KERNELS[name], points(7, 3), points(7, 3, seed=1)
    attraction, repulsion = kernel.direction(x, scores)
    expected = by_autograd(kernel, x, scores)
    torch.testing.assert_close(attraction, expected[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(repulsion, expected[1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_rectangular_kernels_are_blocks_of_square_ones(name):
    kernel, x, y = KERNELS[name], points(5, 3), points(4, 3, seed=1)
    both = torch.cat([x, y])
    torch.testing.assert_close(kernel(x, y), kernel(both, both)[:5, 5:], atol=1e-12, rtol=1e-12)


def test_rbf_in_float32_far_from_the_origin():
    """Centring keeps the Gram form exact where raw squares would cancel."""
    x = (points(20, 5) + 1e4).float()
    scores = points(20, 5, seed=1).float()
    close = pvi.rbf().direction(x, scores)
    exact = pvi.rbf().direction(x.double(), scores.double())
    for got, expected in zip(close, exact, strict=True):
        scale = expected.abs().max()
        assert (got.double() - expected).abs().max() < 1e-5 * scale
