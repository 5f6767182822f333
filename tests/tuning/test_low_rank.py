"""Directions of a low-rank metric: found where they are, and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.diagnostics import arviz
from particlevi.tuning.low_rank import RANK, directions, most_rows

F64 = torch.float64
SIZE, ROWS = 400, 200
SCALE = torch.logspace(-2, 2, SIZE, dtype=F64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def spiked(eigenvalue, seed=0, rows=ROWS):
    """Draws of variance ``eigenvalue`` along one direction and 1 across, in units of ``SCALE``."""
    along = torch.nn.functional.normalize(normal(SIZE, seed=99), dim=0)
    z = normal(rows, SIZE, seed=seed)
    return SCALE * (z + (math.sqrt(eigenvalue) - 1) * (z @ along).unsqueeze(1) * along), along


def test_the_spread_along_a_direction_is_that_of_the_law():
    found = [directions(spiked(12.0, seed)[0], SCALE)[1][0] for seed in range(20)]
    assert float(torch.stack(found).mean()) == pytest.approx(math.sqrt(12), rel=0.05)


def test_the_direction_is_that_of_the_law_as_far_as_so_few_draws_tell():
    """``cos^2 = (1 - g / (l - 1)^2) / (1 + g / (l - 1))``, g = D / n (Baik and Silverstein)."""
    ratio, eigenvalue = SIZE / ROWS, 40.0
    expected = (1 - ratio / (eigenvalue - 1) ** 2) / (1 + ratio / (eigenvalue - 1))
    cosines = []
    for seed in range(20):
        draws, along = spiked(eigenvalue, seed)
        cosines.append((directions(draws, SCALE)[0][:, 0] @ along).square())
    assert float(torch.stack(cosines).mean()) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("rows", [20, 64, 512])
def test_noise_alone_shows_no_direction(rows):
    for seed in range(30):
        basis, spread = directions(spiked(1.0, seed, rows)[0], SCALE)
        assert not basis.any()
        assert (spread == 1).all()


def test_several_directions_are_orthonormal():
    loadings = normal(3, SIZE, seed=5)
    draws = SCALE * (normal(ROWS, SIZE) + normal(ROWS, 3, seed=6) @ loadings)
    basis, spread = directions(draws, SCALE)
    assert (spread > 1).tolist() == [True] * 3 + [False] * (RANK - 3)
    torch.testing.assert_close(
        basis.mT @ basis, torch.diag((spread > 1).to(F64)), rtol=0, atol=1e-8
    )


def test_too_few_draws_and_draws_that_are_not_finite_show_nothing():
    assert (directions(spiked(1e4)[0][: 2 * RANK - 1], SCALE)[1] == 1).all()
    assert (directions(torch.full((100, SIZE), math.nan).double(), SCALE)[1] == 1).all()


def test_the_window_takes_128_megabytes_at_most():
    assert [most_rows(size) for size in (10, 10**5, 10**6, 10**7)] == [512, 167, 0, 0]


COMMON = 10.0


def effects(x):
    """Many effects around a common mean: a wide direction beside ``SIZE - 1`` narrow ones."""
    mean = x.mean(1, keepdim=True)
    return -0.5 * (x - mean).square().sum(1) - 0.5 * SIZE * (mean[:, 0] / COMMON).square()


@pytest.fixture(scope="module")
def runs():
    target = pvi.from_log_density(effects, SIZE, vectorized=True, dtype=F64)

    def run(metric):
        return pvi.sample(
            pvi.mclmc(target), initial=normal(4, SIZE), num_warmup=800, num_draws=1500, thin=2,
            tuner=pvi.tuning.energy_error(1e-5, metric=metric), progress=False,
        )  # fmt: skip

    return {metric: run(metric) for metric in ("diagonal", "low_rank")}


def test_a_wide_direction_is_in_the_record(runs):
    tuning = runs["low_rank"].attrs["tuning"]
    assert tuning["directions"] == 1
    assert tuning["largest_spread"] > 3


def test_chains_forget_a_wide_direction_sooner_in_a_low_rank_metric(runs):
    means = {name: draws.particles.mean(2).numpy()[..., None] for name, draws in runs.items()}
    ess = {name: float(arviz.ess(mean).min()) for name, mean in means.items()}
    assert ess["low_rank"] > 2 * ess["diagonal"]


def test_the_law_in_a_low_rank_metric_is_the_target(runs):
    particles = runs["low_rank"].particles
    mean = particles.mean(2)
    count = float(arviz.ess(mean.numpy()[..., None]).min())
    variance, error = float(mean.var()), math.sqrt(2 / count)
    assert variance * SIZE / COMMON**2 == pytest.approx(1, abs=4 * error)
    inner = (particles - mean.unsqueeze(2)).square().sum(2).mean() / (SIZE - 1)
    assert float(inner) == pytest.approx(1, abs=0.02)


def test_the_summary_tells_of_a_direction(runs):
    assert "wide directions 1" in runs["low_rank"].summary()
    assert "wide directions" not in runs["diagonal"].summary()


@pytest.mark.parametrize("stop", [70, 350])
def test_a_run_that_is_gone_on_with_has_the_same_draws(tmp_path, stop):
    """In a window of the warm-up, and after the last."""
    target = pvi.from_log_density(effects, SIZE, vectorized=True, dtype=F64)
    options = {
        "initial": normal(4, SIZE), "num_warmup": 300, "num_draws": 60, "progress": False,
        "tuner": pvi.tuning.energy_error(1e-4, metric="low_rank"),
    }  # fmt: skip
    whole = pvi.sample(pvi.mclmc(target), **options)
    end = pvi.running.Every(1, lambda look: "the test" if look.step >= stop else None)
    pvi.sample(pvi.mclmc(target), **options, checkpoint=tmp_path / "run", monitor=end)
    again = pvi.resume(tmp_path / "run", pvi.mclmc(target), tuner=options["tuner"], progress=False)
    assert torch.equal(again.particles, whole.particles)
