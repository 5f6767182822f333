"""Kernels over groups of parameters, and message-passing SVGD."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from tests.kernels.common import F64, by_autograd, gaussian, points, settle

GROUPS = torch.tensor([0, 1, 1, 0, 2])


@pytest.mark.parametrize(
    "kernel",
    [
        pvi.kernels.product(GROUPS, pvi.kernels.rbf(1.3)),
        pvi.kernels.additive(GROUPS, pvi.kernels.rbf(1.3)),
        pvi.kernels.additive(GROUPS, pvi.kernels.imq(1.3)),
    ],
    ids=str,
)
def test_direction_is_the_derivative_of_the_kernel(kernel):
    x, scores = points(7, 5), points(7, 5, seed=1)
    for got, expected in zip(
        kernel.direction(x, scores), by_autograd(kernel, x, scores), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_a_product_is_the_geometric_mean_of_the_groups_kernels():
    x, y = points(6, 5), points(4, 5, seed=1)
    kernel = pvi.kernels.product(GROUPS)
    parts = [x[:, g == GROUPS] for g in range(3)]
    expected = torch.ones(6, 4, dtype=F64)
    for g, part in enumerate(parts):
        expected = expected * pvi.kernels.rbf()(part, y[:, g == GROUPS]) ** (1 / 3)
    torch.testing.assert_close(kernel(x, y), expected, atol=1e-12, rtol=1e-12)


def test_one_group_is_the_plain_kernel():
    x, scores = points(7, 5), points(7, 5, seed=1)
    one = torch.zeros(5, dtype=torch.long)
    plain = pvi.kernels.rbf().direction(x, scores)
    for make in (pvi.kernels.product, pvi.kernels.additive, pvi.kernels.graphical):
        for got, expected in zip(make(one).direction(x, scores), plain, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_a_graphical_kernel_by_a_loop():
    x, scores = points(6, 5), points(6, 5, seed=1)
    around = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()
    attraction, repulsion = pvi.kernels.graphical(GROUPS, pvi.kernels.rbf(2.0), around).direction(
        x, scores
    )
    for g in range(3):
        own = g == GROUPS
        seen = own | around[g][GROUPS]
        for i in range(6):
            toward = away = torch.zeros(int(own.sum()), dtype=F64)
            for j in range(6):
                apart = (x[i] - x[j])[seen]
                k = torch.exp(-apart.square().sum() / 2.0)
                toward = toward + k * scores[j, own] / 6
                away = away + k * (x[i] - x[j])[own] * 2 / 2.0 / 6
            torch.testing.assert_close(attraction[i, own], toward, atol=1e-12, rtol=1e-12)
            torch.testing.assert_close(repulsion[i, own], away, atol=1e-12, rtol=1e-12)


def test_message_passing_keeps_the_variance_where_plain_svgd_collapses():
    """Each coordinate alone is the 1-d fixed point, 0.937 for 50 particles, in any dimension."""
    dim = 20
    initial = points(50, dim)
    target = gaussian(torch.zeros(dim), torch.eye(dim))
    schedule = pvi.schedules.cosine(0.1, num_steps=400)
    kernel = pvi.kernels.rbf(pvi.kernels.median(log="P"))
    passing = pvi.message_passing_svgd(target, "parameter", kernel=kernel, optimizer="adam")
    kept = settle(passing, initial, 400, schedule).var(0, correction=0)
    torch.testing.assert_close(kept, torch.full_like(kept, 0.937), atol=0, rtol=0.02)
    plain = settle(pvi.svgd(target, optimizer="adam"), initial, 400, schedule)
    assert plain.var(0).mean() < 0.25


def test_bad_groups_are_refused():
    target = gaussian(torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match=r"LongTensor \[3\]"):
        pvi.svgd(target, kernel=pvi.kernels.product(GROUPS))
    with pytest.raises(TypeError, match="have a bandwidth"):
        pvi.kernels.additive(GROUPS, pvi.kernels.linear())
    with pytest.raises(TypeError, match="are a rule"):
        pvi.kernels.additive("tensor").direction(points(3, 2), points(3, 2))
    with pytest.raises(ValueError, match="one row per group"):
        pvi.message_passing_svgd(target, "parameter", torch.ones(2, 2).bool())


def test_the_record_of_a_graphical_kernel_tells_graphs_apart():
    none, all_ = torch.eye(3, dtype=torch.bool), torch.ones(3, 3, dtype=torch.bool)
    told = [repr(pvi.kernels.graphical([0, 1, 2], neighbours=each)) for each in (none, all_)]
    plain = repr(pvi.kernels.graphical([0, 1, 2]))
    starts = [each.partition(", neighbours ") for each in told]
    assert {f"{start})" for start, *_ in starts} == {plain}
    assert all(len(end) == 9 and end.endswith(")") for *_, end in starts)
    assert starts[0][2] != starts[1][2]
