"""Trajectory lengths that are learned: the criterion in closed form, its maximum, the law."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import particlevi as pvi
from particlevi.running.world import OneProcess
from particlevi.samplers._trajectories import Info
from particlevi.streams import ParticleStreams
from particlevi.tuning.chees import begin_lengths, changes, climb
from particlevi.tuning.windows import windows
from particlevi.typing import Progress, Proposals
from tests.running.test_tuners import Doubling
from tests.tuning.world import drive

F64 = torch.float64
SCALE = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
SIZE, CORRELATION = 10, 0.9


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian(covariance):
    precision = torch.linalg.inv(covariance)
    return pvi.from_log_density(
        lambda x: -0.5 * ((x @ precision) * x).sum(-1), len(covariance), vectorized=True, dtype=F64
    )


def flown(time, num=400_000, center=0.0):
    """Trajectories of the exact flow on ``N(center, diag SCALE^2)``."""
    x, v = normal(num, 3) * SCALE, normal(num, 3, seed=1)
    angle = time / SCALE
    end = x * angle.cos() + SCALE * v * angle.sin()
    velocity = v * angle.cos() - x / SCALE * angle.sin()
    ones = torch.ones(num, dtype=F64)
    return Proposals(center + x, center + end, velocity, time * ones, ones)


def expected(time):
    """``sum_i s_i^4 sin^2(t / s_i)``."""
    return float((SCALE**4 * (time / SCALE).sin().square()).sum())


@pytest.mark.parametrize("time", [0.4, 1.3, 2.9])
def test_the_criterion_is_that_of_the_closed_form(time):
    found, _ = changes(flown(time, center=3.0), torch.full((3,), 3.0, dtype=F64))
    assert float(found.mean()) == pytest.approx(expected(time), abs=4 * float(found.std()) / 632)


@pytest.mark.parametrize("time", [0.4, 1.3, 2.9])
def test_the_slope_is_the_difference_of_criteria_over_that_of_log_times(time):
    _, found = changes(flown(time), torch.zeros(3, dtype=F64))
    step = 1e-4
    difference = (expected(time * (1 + step)) - expected(time * (1 - step))) / (2 * step)
    assert float(found.mean()) == pytest.approx(difference, abs=4 * float(found.std()) / 632)


@pytest.mark.parametrize("scale", [None, torch.tensor([0.5, 3.0], dtype=F64)])
def test_a_proposal_goes_back_to_its_start_by_the_exact_flow(scale):
    """In the coordinates of the metric, and only where a trajectory ended."""
    covariance = torch.eye(2, dtype=F64) if scale is None else scale.square().diag()
    sampler, streams = pvi.randomized_hmc(gaussian(covariance)), ParticleStreams(0)
    state = sampler.init(normal(8, 2) @ covariance.sqrt(), streams)
    controls = {"step_size": torch.tensor(1e-2, dtype=F64), "trajectory_length": torch.tensor(0.5)}
    controls |= {} if scale is None else {"scale": scale}
    ended = 0
    for _ in range(200):
        before = state.position
        noise = sampler.draw_noise(state, streams)
        state, info = sampler.step(state, None, noise, controls)
        start, end, velocity, time, probability = sampler.proposals(before, state, info, controls)
        time = time.unsqueeze(1)
        back = end * time.cos() - velocity * time.sin()
        there = (probability > 0).unsqueeze(1)
        assert torch.equal(probability > 0, info.tested > 0)
        torch.testing.assert_close(torch.where(there, back, start), start, rtol=1e-4, atol=1e-4)
        ended += int(there.sum())
    assert ended > 8


def moved(proposals, length=1.0, longest=10.0):
    center, one = torch.zeros(3, dtype=F64), torch.tensor(1.0, dtype=F64)
    lengths = begin_lengths(length * one)
    return climb(lengths, proposals, center, 0.5 * one, longest * one, OneProcess())


def test_a_step_follows_the_steepness_over_that_of_the_root():
    time = 2.0
    steepness = time * float((SCALE**3 * (2 * time / SCALE).sin()).sum()) / expected(time)
    found = float(moved(flown(time)).log_length)
    assert found == pytest.approx(0.1 * (steepness - 0.5), abs=1e-3)


def test_half_as_many_proposals_as_chains_make_a_step():
    some = flown(0.4, num=8)
    few = some._replace(probability=(torch.arange(8) < 3).to(F64))
    enough = some._replace(probability=(torch.arange(8) < 4).to(F64))
    assert float(moved(few).steps) == 0
    assert float(moved(few).weight) == 3
    assert float(moved(enough).steps) == 1
    assert float(moved(enough).weight) == 0


def test_proposals_that_are_not_finite_do_not_count():
    some = flown(0.4, num=8)
    end = some.end.clone()
    end[2] = math.nan
    bad = moved(some._replace(end=end))
    rest = moved(Proposals(*(each[torch.arange(8) != 2] for each in some)))
    assert float(bad.log_length) == pytest.approx(float(rest.log_length), rel=1e-12)


def test_no_step_leaves_the_range_of_lengths():
    assert float(moved(flown(0.4), length=1.0, longest=1.02).log_length.exp()) == pytest.approx(
        1.02
    )
    # A length beyond the range is no reason to come back to it.
    assert float(moved(flown(0.4), length=1.0, longest=0.8).log_length) == 0


def best_length(eigenvalues, power):
    """The mean at which ``C / T^power`` is largest, with times uniform up to twice it."""
    jitter = (torch.arange(1000, dtype=F64).unsqueeze(1) + 0.5) / 500
    means = torch.arange(0.1, 6, 0.02, dtype=F64)
    scale = eigenvalues.sqrt()
    values = [
        (scale**4 * (jitter * mean / scale).sin().square()).sum(1).mean() / mean**power
        for mean in means
    ]
    return float(means[int(torch.stack(values).argmax())])


def learning(log_length=0.0, log_average=0.0):
    """A tuner in a turn of lengths, its steps of 1, and its state."""
    tuner = windows("diagonal", step_size=1.0, trajectory_length="chees")
    state = tuner.init(torch.zeros(16, 3, dtype=F64), {})
    lengths = begin_lengths(torch.tensor(1.0))._replace(
        log_length=torch.tensor(log_length).double(), log_average=torch.tensor(log_average).double()
    )
    center = torch.zeros(3, dtype=F64)
    return tuner, state._replace(lengths=lengths, center=center, turn=torch.tensor(18.0))


def test_trajectories_count_once_the_longest_could_have_ended():
    """A mean of two steps is a span of four: the turn begins at step 63 of 100."""
    tuner, state = learning(math.log(2.0))
    proposals = flown(0.4, num=16)._replace(probability=torch.full((16,), 0.1, dtype=F64))
    weights = [
        float(
            tuner.consider(state, proposals, Progress(step, 100, 200), OneProcess()).lengths.weight
        )
        for step in (60, 63, 66, 67)
    ]
    assert weights == pytest.approx([0, 0, 0, 1.6])


def test_the_last_step_of_the_warm_up_leaves_the_average():
    tuner, state = learning(1.0, 0.25)
    some = torch.full((16,), 0.9, dtype=F64)
    info = Info(some, some, some, some, some)
    for step, expected in ((99, 1.0), (100, 0.25)):
        position = normal(16, 3)
        after = tuner.update(state, position, info, Progress(step, 100, 200), OneProcess())
        assert float(after.lengths.log_length) == expected


COVARIANCE = (1 - CORRELATION) * torch.eye(SIZE, dtype=F64) + CORRELATION


@pytest.fixture(scope="module")
def correlated():
    """A run with a metric that cannot make the posterior round."""
    root = torch.linalg.cholesky(COVARIANCE)
    tuner = windows("diagonal", trajectory_length="chees")
    sampler = pvi.randomized_hmc(gaussian(COVARIANCE))
    draws, infos, state = drive(sampler, tuner, normal(64, SIZE) @ root.T, 800, 800)
    return tuner, draws, infos, state


def test_the_length_is_at_the_maximum_of_the_closed_form(correlated):
    tuner, _, _, state = correlated
    best = best_length(torch.linalg.eigvalsh(COVARIANCE), 0.5)
    assert tuner.report(state)["trajectory_length"] == pytest.approx(best, rel=0.25)


def test_the_step_size_is_that_of_the_target_though_trajectories_are_long(correlated):
    _, _, infos, state = correlated
    tested = torch.stack([info.tested for info in infos])
    acceptance = torch.stack([info.acceptance for info in infos])
    length = float(state.lengths.log_length.exp())
    assert length / float(state.averages.log_step.exp()) > 6
    assert float((tested * acceptance).sum() / tested.sum()) == pytest.approx(0.8, abs=0.08)


def test_the_law_is_right(correlated):
    _, draws, _, _ = correlated
    values, vectors = torch.linalg.eigh(COVARIANCE)
    square = (draws @ vectors / values.sqrt()).square().mean(1)
    error = square.std(0) / math.sqrt(len(square))
    assert float(((square.mean(0) - 1) / error).abs().max()) < 4


def test_directions_of_mams_have_a_length_of_their_own():
    tuner = windows("diagonal", trajectory_length="chees", target_acceptance=0.9)
    sampler = pvi.mams(gaussian(COVARIANCE))
    start = normal(64, SIZE) @ torch.linalg.cholesky(COVARIANCE).T
    _, _, state = drive(sampler, tuner, start, 800, 1)
    best = math.sqrt(SIZE) * best_length(torch.linalg.eigvalsh(COVARIANCE), 0.5)
    assert tuner.report(state)["trajectory_length"] == pytest.approx(best, rel=0.35)


TARGET = gaussian(torch.eye(3, dtype=F64))
OPTIONS = {"num_particles": 6, "num_warmup": 60, "num_draws": 20, "progress": False}


@pytest.fixture(scope="module")
def run():
    tuner = windows("diagonal", trajectory_length="chees")
    return pvi.sample(pvi.randomized_hmc(TARGET), tuner=tuner, **OPTIONS)


def test_the_length_is_in_the_record_and_frozen_after_the_warm_up(run):
    stats = run.stats["trajectory_length"]
    assert float(stats.min()) == float(stats.max())
    assert run.attrs["tuning"]["trajectory_length"] == pytest.approx(float(stats[0]))
    assert run.attrs["tuning"]["trajectory_length"] != pytest.approx(0.5)


@pytest.mark.parametrize("kill_at", [7, 31, 59, 70])
def test_a_run_that_learns_its_length_resumes(kill_at, run, tmp_path):
    tuner, sampler = windows("diagonal", trajectory_length="chees"), pvi.randomized_hmc(TARGET)
    monitor = pvi.running.Every(1, lambda look: look.step == kill_at)
    pvi.sample(sampler, tuner=tuner, monitor=monitor, checkpoint=tmp_path, **OPTIONS)
    resumed = pvi.resume(tmp_path, sampler, tuner=tuner, progress=False)
    assert torch.equal(resumed.particles, run.particles)
    assert resumed.attrs["tuning"] == run.attrs["tuning"]


@pytest.mark.parametrize("tuner", [windows("diagonal", trajectory_length=1.0), Doubling()])
def test_proposals_are_not_read_unless_asked_for(tuner):
    def read(*arguments):
        raise AssertionError("read")

    sampler = dataclasses.replace(pvi.randomized_hmc(TARGET), proposals=read)
    pvi.sample(sampler, tuner=tuner, **OPTIONS)


def test_a_sampler_whose_trajectories_have_no_length_is_refused():
    tuner = windows(trajectory_length="chees")
    with pytest.raises(ValueError, match="those of hmc have no length"):
        pvi.sample(pvi.hmc(TARGET), tuner=tuner, **OPTIONS)


def test_too_few_chains_are_refused():
    tuner = windows(trajectory_length="chees")
    with pytest.raises(ValueError, match="4 chains or more, got 3"):
        pvi.sample(pvi.randomized_hmc(TARGET), tuner=tuner, **OPTIONS | {"num_particles": 3})


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="chees"):
        windows(trajectory_length="snaper")
