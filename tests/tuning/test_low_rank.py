"""Directions of a low-rank metric: found where they are, and nowhere else."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import particlevi as pvi
from particlevi.diagnostics import arviz
from particlevi.tuning.low_rank import RANK, directions, most_rows, shown_by_both
from tests.tuning.world import drive

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


CHAINS = 8


def wandering(eigenvalue, seed=0):
    """Ten draws of each of ``CHAINS`` chains that hardly move, with one direction of all."""
    starts, along = spiked(eigenvalue, seed, CHAINS)
    return (starts + 0.3 * SCALE * normal(10, CHAINS, SIZE, seed=seed + 1)).flatten(0, 1), along


def test_directions_of_single_chains_are_not_those_of_the_law():
    alone = [wandering(1.0, seed)[0] for seed in range(10)]
    assert all(bool((directions(draws, SCALE)[1] > 3).any()) for draws in alone)
    assert [shown_by_both(draws, SCALE, CHAINS) for draws in alone] == [0] * 10


def test_a_direction_of_the_law_is_shown_by_both_halves_of_the_chains():
    found = [shown_by_both(wandering(400.0, seed)[0], SCALE, CHAINS) for seed in range(10)]
    assert found.count(1) >= 8


@pytest.mark.parametrize("rows", [20, 64, 512])
def test_draws_that_repeat_show_no_direction(rows):
    draws = spiked(1.0, rows=rows)[0]
    repeated = torch.cat([draws, draws[:3], draws[:3]])
    assert (directions(repeated, SCALE)[1] == 1).all()


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


SAMPLERS = {
    "mclmc": (pvi.mclmc, 4, partial(pvi.tuning.energy_error, 1e-5)),
    "randomized_hmc": (pvi.randomized_hmc, 8, partial(pvi.tuning.windows, trajectory_length=1.6)),
}


@pytest.fixture(scope="module", params=SAMPLERS)
def runs(request):
    target = pvi.from_log_density(effects, SIZE, vectorized=True, dtype=F64)
    sampler, chains, tuner = SAMPLERS[request.param]

    def run(metric):
        return pvi.sample(
            sampler(target), initial=normal(chains, SIZE), num_warmup=800, num_draws=1500, thin=2,
            tuner=tuner(metric=metric), progress=False,
        )  # fmt: skip

    return {metric: run(metric) for metric in ("diagonal", "low_rank")}


def test_windows_find_no_direction_where_there_is_none():
    target = pvi.from_log_density(
        lambda x: -0.5 * x.square().sum(1), SIZE, vectorized=True, dtype=F64
    )
    draws = pvi.sample(
        pvi.randomized_hmc(target), initial=normal(8, SIZE), num_warmup=300, num_draws=1,
        tuner=pvi.tuning.windows("low_rank", trajectory_length=1.6), progress=False,
    )  # fmt: skip
    assert draws.attrs["tuning"]["directions"] == 0


def test_a_chain_that_is_lost_is_no_direction():
    def log_density(x):
        value = -0.5 * x.square().sum(1)
        return torch.where(x[:, 0] > 50, torch.nan, value)

    target = pvi.from_log_density(log_density, 40, vectorized=True, dtype=F64)
    start = normal(16, 40)
    start[0, 0] = 51.0
    tuner = pvi.tuning.windows("low_rank", trajectory_length=1.6)
    _, _, state = drive(pvi.randomized_hmc(target), tuner, start, 200, 1)
    assert not state.low_rank.basis.any()


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
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_that_is_gone_on_with_has_the_same_draws(tmp_path, stop, name):
    """In a window of the warm-up, and after the last."""
    target = pvi.from_log_density(effects, SIZE, vectorized=True, dtype=F64)
    sampler, chains, tuner = SAMPLERS[name]
    options = {
        "initial": normal(chains, SIZE), "num_warmup": 300, "num_draws": 60, "progress": False,
        "tuner": tuner(metric="low_rank"),
    }  # fmt: skip
    whole = pvi.sample(sampler(target), **options)
    end = pvi.running.Every(1, lambda look: "the test" if look.step >= stop else None)
    pvi.sample(sampler(target), **options, checkpoint=tmp_path / "run", monitor=end)
    again = pvi.resume(tmp_path / "run", sampler(target), tuner=options["tuner"], progress=False)
    assert torch.equal(again.particles, whole.particles)
