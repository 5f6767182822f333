"""Discrepancies against loops, and the level and power of their tests."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.kernels import discrepancies as d
from tests.kernels.common import F64, points


def stein_by_autograd(kernel, x, s, y, t):
    """h(x, y) for one pair from derivatives of the kernel alone."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    k = kernel(x[None], y[None])[0, 0]
    (gx,) = torch.autograd.grad(k, x, create_graph=True)
    (gy,) = torch.autograd.grad(k, y, create_graph=True)
    trace = sum(torch.autograd.grad(gx[i], y, retain_graph=True)[0][i] for i in range(len(x)))
    return float((k * (s @ t) + s @ gy + t @ gx + trace).detach())


@pytest.mark.parametrize("kernel", [pvi.kernels.rbf(1.7), pvi.kernels.imq(1.7)], ids=["rbf", "imq"])
def test_ksd_is_the_loop(kernel):
    x, s = points(6, 3) + 1, points(6, 3, seed=1)
    h = torch.tensor(
        [[stein_by_autograd(kernel, x[i], s[i], x[j], s[j]) for j in range(6)] for i in range(6)]
    )
    off = (h.sum() - h.trace()) / 30
    assert d.ksd(x, s, kernel).value == pytest.approx(float(off), abs=1e-6, rel=1e-6)
    assert d.ksd(x, s, kernel, "V").value == pytest.approx(float(h.mean()), abs=1e-6, rel=1e-6)
    means = (h.sum(1) - h.diagonal()) / 5
    assert d.ksd(x, s, kernel).standard_error == pytest.approx(
        2 * float(means.std()) / math.sqrt(6), rel=1e-6
    )


def test_mmd_is_the_loop():
    x, y, b = points(5, 2), points(7, 2, seed=1) + 0.3, 1.3

    def k(u, v):
        return math.exp(-float((u - v).square().sum()) / b)

    xx = sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    yy = sum(k(y[i], y[j]) for i in range(7) for j in range(7) if i != j) / 42
    xy = sum(k(u, v) for u in x for v in y) / 35
    assert d.mmd(x, y, pvi.kernels.rbf(b)).value == pytest.approx(xx + yy - 2 * xy, rel=1e-10)
    test = d.mmd_test(x, y, pvi.kernels.rbf(b), num_permutations=3)
    assert test.statistic == pytest.approx(xx + yy - 2 * xy, rel=1e-10)


def test_sliced_wasserstein_of_unequal_samples_is_that_of_their_repetitions():
    x, y = points(4, 3), points(6, 3, seed=1)
    repeated = d.sliced_wasserstein(x.repeat_interleave(3, 0), y.repeat_interleave(2, 0))
    assert d.sliced_wasserstein(x, y).value == pytest.approx(repeated.value, rel=1e-12)
    x, shift = points(4, 5), torch.tensor([3.0, 0.0, 4.0, 0.0, 0.0], dtype=F64)
    many = d.sliced_wasserstein(x, x + shift, num_projections=20_000)
    assert many.value == pytest.approx(25 / 5, abs=5 * many.standard_error)


ESTIMATES = {
    "ksd": lambda x, y: d.ksd(x, -x, pvi.kernels.imq(1.0)),
    "mmd": lambda x, y: d.mmd(x, y, pvi.kernels.rbf(1.0)),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_standard_errors_are_those_over_samples(name):
    """Away from the null: the spread of 400 estimates, which is known to 3.5 %."""
    x, y = points(400 * 60, 2) + 0.8, points(400 * 90, 2, seed=1)
    found = [ESTIMATES[name](*both) for both in zip(x.split(60), y.split(90), strict=True)]
    spread = float(torch.tensor([one.value for one in found]).std())
    claimed = sum(one.standard_error for one in found) / len(found)
    assert claimed == pytest.approx(spread, rel=0.15)


def test_blocks_add_up(monkeypatch):
    from particlevi.kernels import reduction

    x, y = points(50, 3), points(40, 3, seed=1)
    whole = [d.ksd(x, -x), d.mmd(x, y), d.ksd_test(x, -x, num_bootstrap=5)]
    monkeypatch.setattr(reduction, "_BLOCK", 300)
    parts = [d.ksd(x, -x), d.mmd(x, y), d.ksd_test(x, -x, num_bootstrap=5)]
    assert parts[0].value == pytest.approx(whole[0].value, rel=1e-10)
    assert parts[1].value == pytest.approx(whole[1].value, rel=1e-10)
    torch.testing.assert_close(parts[2].null, whole[2].null, atol=1e-10, rtol=1e-10)


def test_the_u_statistic_stays_unbiased_with_noisy_scores():
    """Independent noise in every score: U keeps its mean, V gains k(x, x) E|noise|^2 / n."""
    x = points(40, 2)
    clean, noisy = {}, {}
    generator = torch.Generator().manual_seed(0)
    for statistic in ("U", "V"):
        clean[statistic] = d.ksd(x, -x, pvi.kernels.imq(1.0), statistic).value
        values = torch.tensor(
            [
                d.ksd(
                    x,
                    -x + torch.randn(x.shape, generator=generator, dtype=F64),
                    pvi.kernels.imq(1.0),
                    statistic,
                ).value
                for _ in range(400)
            ]
        )
        noisy[statistic] = (values.mean(), values.std() / 20)
    gap, error = noisy["U"][0] - clean["U"], noisy["U"][1]
    assert abs(gap / error) < 5
    gap, error = noisy["V"][0] - clean["V"] - 2 / 40, noisy["V"][1]
    assert abs(gap / error) < 5


def rejections(test, sample, count, level=0.05):
    return sum(test(sample(seed), seed).p_value <= level for seed in range(count))


def exact(seed, num=60):
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


TESTS = {
    "ksd-imq": lambda x, seed: d.ksd_test(x, -x, num_bootstrap=99),
    "ksd-rbf": lambda x, seed: d.ksd_test(x, -x, pvi.kernels.rbf(), num_bootstrap=99),
    "mmd": lambda x, seed: d.mmd_test(x, exact(10_000 + seed), num_permutations=99),
    "sliced": lambda x, seed: d.sliced_wasserstein_test(
        x, exact(20_000 + seed), num_projections=10, num_permutations=99
    ),
}


@pytest.mark.parametrize("name", TESTS)
def test_the_level_is_five_percent(name):
    """Exact draws are rejected in 5 % of 300 samples, within 4 binomial standard errors."""
    count = 300 if name != "sliced" else 100
    found = rejections(TESTS[name], exact, count)
    assert abs(found - 0.05 * count) < 4 * math.sqrt(count * 0.05 * 0.95)


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda seed: exact(seed, 100) + 0.8,
        lambda seed: exact(seed, 100) * 2.0,
        lambda seed: exact(seed, 100) * 0.2,
    ],
    ids=["shifted", "scaled", "collapsed"],
)
def test_the_power(name, wrong):
    assert rejections(TESTS[name], wrong, 10) >= 9


BY_DEFAULT = {
    "ksd": (lambda x: d.ksd_test(x + 3, -(x + 3)), 500),
    "mmd": (lambda x: d.mmd_test(x, x + 3), 500),
    "sliced": (lambda x: d.sliced_wasserstein_test(x, x + 3), 200),
}


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_the_least_p_value_is_one_of_the_number_of_random_samples_and_one(name):
    call, num = BY_DEFAULT[name]
    assert call(exact(0)).p_value == pytest.approx(1 / (num + 1), rel=1e-12)


def test_bad_samples_are_refused():
    x = points(5, 2)
    with pytest.raises(ValueError, match="scores must be"):
        d.ksd(x, x[:3])
    with pytest.raises(ValueError, match="n >= 2"):
        d.ksd(x[:1], x[:1])
    with pytest.raises(ValueError, match="same columns"):
        d.mmd(x, points(5, 3))
    with pytest.raises(ValueError, match="finite"):
        d.ksd(x / 0, x)
    with pytest.raises(ValueError, match="statistic must be"):
        d.ksd(x, x, statistic="W")
