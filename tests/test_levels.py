"""The false-positive rate of every test of the package: 5 % within 2 %, over dimensions."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi import sgdvi
from particlevi.kernels import discrepancies as d

F64 = torch.float64
LOW, HIGH = 0.03, 0.07


def reversible(runs: int, chains: int, draws: int, size: int, factor: float) -> torch.Tensor:
    """Stationary autoregressions ``[R, P, T, D]``, which look the same backwards in time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(runs, chains, size, generator=generator, dtype=F64)
    kept = []
    for _ in range(draws):
        xi = torch.randn(x.shape, generator=generator, dtype=F64)
        x = factor * x + (1 - factor**2) ** 0.5 * xi
        kept.append(x)
    return torch.stack(kept, 2)


def circulation_rate(runs: int, chains: int, draws: int, size: int, blocks: int) -> float:
    p_values = [
        sgdvi.circulation(run, 1.0, num_blocks=blocks, num_flips=199, seed=seed).p_value
        for seed, run in enumerate(reversible(runs, chains, draws, size, 0.7))
    ]
    return sum(p <= 0.05 for p in p_values) / runs


quiet = pytest.mark.filterwarnings("ignore::particlevi.errors.NotStationaryWarning")


@quiet
def test_circulation_in_twenty_dimensions_from_sixteen_blocks():
    # 190 planes: 3 binomial standard errors of 1200 runs are 1.9 %.
    assert LOW <= circulation_rate(1200, 16, 20, size=20, blocks=16) <= HIGH


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 6, 12, 20])
@pytest.mark.parametrize(
    ("chains", "draws", "blocks"), [(8, 40, 8), (16, 40, 16), (40, 40, 40), (1, 2000, 16)]
)
def test_circulation(size, chains, draws, blocks):
    assert LOW <= circulation_rate(2000, chains, draws, size, blocks) <= HIGH


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 6, 20])
@pytest.mark.parametrize(("chains", "draws"), [(8, 39), (16, 10), (40, 40), (1, 2000), (2, 1000)])
def test_stationarity_of_the_halves(size, chains, draws):
    found = [
        sgdvi.is_stationary(run, level=0.05) for run in reversible(2000, chains, draws, size, 0.5)
    ]
    assert LOW <= sum(one is False for one in found) / 2000 <= HIGH


def normal(seed: int, num: int, size: int) -> torch.Tensor:
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed), dtype=F64)


OF_FIT = {
    "ksd": lambda x, y, seed: d.ksd_test(x, -x, num_bootstrap=199, seed=seed),
    "mmd": lambda x, y, seed: d.mmd_test(x, y, num_permutations=199, seed=seed),
    "sliced": lambda x, y, seed: d.sliced_wasserstein_test(
        x, y, num_projections=5, num_permutations=99, seed=seed
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 6, 20])
@pytest.mark.parametrize("num", [20, 60])
@pytest.mark.parametrize("name", OF_FIT)
def test_of_fit(name, num, size):
    count = 2000 if name != "sliced" else 1000
    rejected = 0
    for seed in range(count):
        x, y = normal(seed, num, size), normal(10**6 + seed, num, size)
        rejected += OF_FIT[name](x, y, seed).p_value <= 0.05
    assert LOW <= rejected / count <= HIGH


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 6, 20])
def test_the_rbf_stein_test_is_never_above_its_level(size):
    # With 20 draws it is conservative, 2 %; its kernel's slopes have heavy tails.
    for num in (20, 60):
        found = [
            d.ksd_test(x, -x, pvi.kernels.rbf(), num_bootstrap=199, seed=seed).p_value
            for seed, x in ((seed, normal(seed, num, size)) for seed in range(1000))
        ]
        assert sum(p <= 0.05 for p in found) / 1000 <= HIGH
        assert sum(p <= 0.25 for p in found) / 1000 >= 0.15


def test_p_values_count_the_statistic_itself():
    """``(1 + #{null >= statistic}) / (1 + B)``: never 0, and valid at any B."""
    x, far = normal(0, 20, 2), normal(1, 20, 2) + 30
    for found in (
        d.ksd_test(far, -far, num_bootstrap=19),
        d.mmd_test(x, far, num_permutations=19),
        d.sliced_wasserstein_test(x, far, num_projections=3, num_permutations=19),
    ):
        assert found.p_value == pytest.approx(1 / 20, rel=1e-12)
    for seed in range(5):
        found = d.mmd_test(x, normal(seed + 2, 20, 2), num_permutations=19, seed=seed)
        above = int((found.null >= found.statistic).sum())
        assert found.p_value == pytest.approx((1 + above) / 20, rel=1e-12)


def test_circulations_p_values_count_the_run_itself():
    turn = torch.arange(50.0)[None, :, None] + torch.arange(40.0)[:, None, None]
    circle = torch.cat([turn.cos(), turn.sin()], -1)
    found = sgdvi.circulation(circle, 1.0, num_flips=19, num_blocks=40)
    assert found.p_value == pytest.approx(1 / 20, rel=1e-12)
    assert float(found.p_values[0, 1]) == pytest.approx(1 / 20, rel=1e-12)
