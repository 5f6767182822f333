"""Kernels and their Stein directions against loops and automatic differentiation."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.kernels.bandwidths import pair_squares
from particlevi.kernels.kernels import imq, random_features
from particlevi.kernels.reduction import DENSE
from tests.kernels.common import F64, by_autograd, points

KERNELS = {
    "rbf": pvi.kernels.rbf(1.3),
    "imq": imq(1.3),
    "linear": pvi.kernels.linear(),
    "random_features": random_features(50, 1.3),
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


@pytest.mark.parametrize("name", ["rbf", "imq", "linear"])
@pytest.mark.parametrize("num", [4, 7])
def test_columns_in_different_processes_make_up_the_direction(name, num):
    kernel, x, scores = KERNELS[name], points(num, 4), points(num, 4, seed=1)
    parts = [slice(0, 3), slice(3, 4)]
    own = []

    def keep(value):
        own.append(value)
        return value

    for part in parts:
        kernel.columns(x[:, part], scores[:, part], keep)
    found = [kernel.columns(x[:, part], scores[:, part], lambda _: sum(own)) for part in parts]
    for got, expected in zip(zip(*found, strict=True), kernel.direction(x, scores), strict=True):
        torch.testing.assert_close(torch.cat(got, 1), expected, atol=1e-12, rtol=1e-12)


def test_rbf_in_float32_far_from_the_origin():
    """Centring keeps the Gram form exact where raw squares would cancel."""
    x = (points(20, 5) + 1e4).float()
    scores = points(20, 5, seed=1).float()
    close = pvi.kernels.rbf().direction(x, scores)
    exact = pvi.kernels.rbf().direction(x.double(), scores.double())
    for got, expected in zip(close, exact, strict=True):
        scale = expected.abs().max()
        assert (got.double() - expected).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("kernel", [pvi.kernels.rbf(3.0), imq(3.0)])
@pytest.mark.parametrize(("dim", "columns"), [(3, 3), (3, 5), (5, 2), (600, 600)])
def test_the_sums_without_the_whole_matrix_are_the_same(kernel, dim, columns):
    """Attention and blocks against the matrix of the same kernel."""
    num = DENSE + 200
    x, scores = points(num, dim) * (3 / dim) ** 0.5 + 50, points(num, columns, seed=1)
    attraction, repulsion = kernel.direction(x, scores)
    matrix = kernel(x, x)
    slope = matrix if isinstance(kernel, pvi.kernels.rbf) else 0.5 * matrix**3
    weights = 2 / 3.0 * slope / num
    away = x * weights.sum(1, keepdim=True) - weights @ x
    torch.testing.assert_close(attraction, matrix @ scores / num, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(repulsion, away, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize(("kernel", "most"), [(pvi.kernels.rbf(1.0), 1.0), (imq(1.0), 1.2)])
def test_rounding_makes_no_distance_negative(kernel, most):
    """Far apart in float32 squares cancel to any sign: a kernel is at most 1 all the same."""
    num = DENSE + 100
    x = (1e4 * points(num, 3)).float()
    attraction, repulsion = kernel.direction(x, torch.ones(num, 600))
    assert torch.isfinite(repulsion).all()
    assert float(attraction.min()) >= 0 and float(attraction.max()) * num <= most


def test_random_features_approach_the_rbf_kernel():
    x, y = points(6, 3), points(5, 3, seed=1)
    error = (random_features(200_000, 1.3)(x, y) - pvi.kernels.rbf(1.3)(x, y)).abs().max()
    assert error < 5 / 200_000**0.5


def test_as_many_pairs_as_are_allowed_are_all_taken():
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    every = pair_squares(x, max_pairs=36)
    assert every.sort().values.tolist() == pytest.approx(
        torch.pdist(x).square().sort().values.tolist(), rel=1e-4
    )


def test_the_median_of_many_particles_is_near_that_of_all_pairs():
    x = points(1500, 4)
    every = pair_squares(x, max_pairs=1500 * 1500)
    assert len(every) == 1500 * 1499 // 2
    some = pair_squares(x)
    assert len(some) < 2**18
    for rule in (pvi.kernels.median(), pvi.kernels.median(pairs="all")):
        exact = rule(every, len(x))
        assert abs(rule(some, len(x)) / exact - 1) < 0.02


@pytest.mark.parametrize("num", [2, 3, 4, 5, 8])
def test_the_median_over_the_whole_matrix(num):
    x = points(num, 2)
    matrix = (x[:, None] - x).square().sum(-1)
    expected = matrix.flatten().quantile(0.5) / torch.tensor(num + 1.0, dtype=F64).log()
    if expected == 0:
        expected = torch.ones((), dtype=F64)
    got = pvi.kernels.median(pairs="all")(pair_squares(x), num)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("num", [3, 4, 5, 8])
def test_the_median_over_distinct_pairs(num):
    """Of an even number of pairs, halfway between the two in the middle."""
    x = points(num, 2)
    expected = torch.pdist(x).square().quantile(0.5) / torch.tensor(num + 1.0, dtype=F64).log()
    got = pvi.kernels.median()(pair_squares(x), num)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("num", [8, 1100])
@pytest.mark.parametrize("kernel", [pvi.kernels.rbf(), imq()])
def test_directions_compile_whole(kernel, num):
    x, scores = points(num, 3), points(num, 3, seed=1)
    compiled = torch.compile(kernel.direction, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x, scores), kernel.direction(x, scores), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)
