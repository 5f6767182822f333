"""What ends a run by its arguments."""

from __future__ import annotations

import time

import pytest
import torch

import particlevi as pvi
from particlevi.running import converged
from tests import registry

DENSITY = registry.density(torch.float64).potential
RUN = {"num_particles": 4, "step_size": 0.3, "progress": False}


def test_a_target_ends_the_run_as_the_rule_of_the_same_numbers_does():
    by_argument = pvi.sample(pvi.sghmc(DENSITY), target_ess=200, target_rhat=1.05, **RUN)
    rule = converged(ess=200, rhat=1.05)
    by_rule = pvi.sample(pvi.sghmc(DENSITY), num_draws=4000, monitor=rule, **RUN)
    assert by_argument.attrs["ended_by"] == by_rule.attrs["ended_by"]
    assert torch.equal(by_argument.particles, by_rule.particles)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"target_ess": 1e6}, r"target 1e\+06.*target 1.01"),
        ({"target_rhat": 1.0001}, r"target 400.*target 1.0001"),
    ],
)
def test_of_one_target_alone_the_other_is_that_of_a_run_without_numbers(given, expected):
    with pytest.warns(pvi.errors.NotConvergedWarning, match=expected):
        pvi.sample(pvi.sghmc(DENSITY), num_draws=20, **given, **RUN)


def test_a_target_in_place_of_a_number_of_draws_may_take_more_than_a_thousand():
    with pytest.warns(pvi.errors.NotConvergedWarning):
        draws = pvi.sample(pvi.sghmc(DENSITY), target_ess=1e6, **RUN)
    assert draws.particles.shape[1] == 4000


def test_a_run_of_a_potential_takes_a_target_in_place_of_its_own():
    draws = pvi.sample(DENSITY, target_ess=50, target_rhat=1.5, num_particles=4, progress=False)
    assert "target 50" in draws.attrs["ended_by"]


def test_the_budget_ends_the_run():
    draws = pvi.sample(pvi.sgld(DENSITY), num_draws=10**6, max_seconds=0.2, **RUN)
    assert draws.attrs["ended_by"].startswith("max_seconds(0.2)")


def slow_at_the_start():
    """A density whose first evaluations take their time."""
    count = 0

    def log_density(x):
        nonlocal count
        count += 1
        if count < 20:
            time.sleep(0.05)
        return -0.5 * x.square().sum(-1)

    return pvi.from_log_density(log_density, 2, vectorized=True)


def test_the_budget_counts_the_search_for_a_start():
    draws = pvi.sample(slow_at_the_start(), max_seconds=0.9, num_draws=10**5, progress=False)
    assert draws.attrs["ended_by"].startswith("max_seconds")
    assert draws.num_steps == 100


def test_the_seconds_of_a_run_hold_those_of_its_start():
    draws = pvi.sample(slow_at_the_start(), num_draws=4, num_warmup=10, progress=False)
    assert draws.seconds > draws.attrs["tuning"]["start_seconds"] > 0.1


def test_a_resumed_run_has_targets_of_its_own(tmp_path):
    first = pvi.sample(DENSITY, target_ess=50, target_rhat=1.5, checkpoint=tmp_path, progress=False)
    more = pvi.resume(tmp_path, DENSITY, target_ess=300, target_rhat=1.1, progress=False)
    assert "target 300" in more.attrs["ended_by"]
    assert torch.equal(more.particles[:, : first.particles.shape[1]], first.particles)


def test_two_targets_are_refused():
    with pytest.raises(ValueError, match="has two targets, target_ess=100"):
        pvi.sample(pvi.sghmc(DENSITY), target_ess=100, monitor=converged(), **RUN)


def test_particles_that_interact_have_no_such_target():
    with pytest.raises(ValueError, match="of Markov chains, but particles that interact"):
        pvi.sample(pvi.svgd(DENSITY), target_ess=100, **RUN)


@pytest.mark.parametrize(
    "bad", [{"target_ess": 0}, {"target_rhat": 1.0}, {"max_seconds": -1}, {"max_seconds": "long"}]
)
def test_what_is_no_target_is_refused(bad):
    with pytest.raises((ValueError, TypeError), match="got"):
        pvi.sample(pvi.sghmc(DENSITY), **bad, **RUN)
