"""Rules that look at a run and may end it."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.running import Every, Monitor, converged, max_seconds
from particlevi.running.monitor import has_grown
from tests import registry

DENSITY = registry.density(torch.float64).potential
LONG = {"num_particles": 2, "step_size": 0.1, "num_draws": 10**5, "progress": False}


def test_a_function_is_asked_every_so_many_steps_and_sees_the_run():
    seen = []

    def watch(look):
        seen.append((look.step, look.num_draws, look.draws().particles.shape[1]))
        assert look.position.shape == (2, 3)
        assert float(look.controls["step_size"]) == pytest.approx(0.1)

    options = LONG | {"num_draws": 40, "num_warmup": 20}
    pvi.sample(pvi.sgld(DENSITY), monitor=Every(15, watch), **options)
    assert seen == [(15, 0, 0), (30, 10, 10), (45, 25, 25)]


def test_a_rule_that_gives_a_reason_ends_the_run_and_is_named():
    whole = pvi.sample(pvi.sgld(DENSITY), **(LONG | {"num_draws": 30}))
    stop = Every(7, lambda look: "seen enough" if look.step >= 20 else None)
    draws = pvi.sample(pvi.sgld(DENSITY), monitor=[stop, max_seconds(100)], **LONG)
    assert draws.attrs["ended_by"] == "seen enough"
    assert draws.num_steps == 21
    assert torch.equal(draws.particles, whole.particles[:, :21])
    assert not draws.interrupted
    assert whole.attrs["ended_by"] == "the number of draws"


def test_true_ends_the_run_by_the_name_of_the_function():
    def tired(look):
        return look.step >= 100

    draws = pvi.sample(pvi.sgld(DENSITY), monitor=tired, **LONG)
    assert draws.attrs["ended_by"] == "tired asked for it"
    assert draws.num_steps == 100


def test_the_time_budget_includes_earlier_parts(tmp_path):
    options = LONG | {"num_draws": 200, "checkpoint": tmp_path}
    first = pvi.sample(pvi.sgld(DENSITY), monitor=Every(20, lambda look: True), **options)
    assert first.num_steps == 20
    spent = first.seconds
    second = pvi.resume(tmp_path, pvi.sgld(DENSITY), monitor=max_seconds(spent / 2), progress=False)
    assert second.attrs["ended_by"].startswith("max_seconds")
    assert second.num_steps == 100
    third = pvi.resume(tmp_path, pvi.sgld(DENSITY), progress=False)
    whole = pvi.sample(pvi.sgld(DENSITY), **(LONG | {"num_draws": 200}))
    assert torch.equal(third.particles, whole.particles)


def test_the_target_of_effective_draws_is_reached_and_not_far_exceeded():
    rule = converged(300, rhat=1.1)
    draws = pvi.sample(pvi.sghmc(DENSITY), **(LONG | {"monitor": rule, "step_size": 0.3}))
    assert draws.attrs["ended_by"].startswith("converged")
    assert 300 <= draws.ess().min() < 900


def test_a_target_of_rhat_keeps_chains_going_that_disagree():
    initial = torch.tensor([[-30.0] * 3, [30.0] * 3], dtype=torch.float64)
    options = {"initial": initial, "step_size": 1e-3, "num_draws": 300, "progress": False}
    rules = converged(2, rhat=1e6), converged(2, rhat=1.05)
    short = pvi.sample(pvi.sgld(DENSITY), monitor=rules[0], **options)
    with pytest.warns(pvi.errors.NotConvergedWarning, match="the largest R-hat"):
        long = pvi.sample(pvi.sgld(DENSITY), monitor=rules[1], **options)
    assert short.num_steps < 300
    assert long.num_steps == 300


@pytest.mark.parametrize("bad", [3, "often", [3]])
def test_what_is_no_rule_is_refused(bad):
    with pytest.raises(TypeError):
        pvi.sample(pvi.sgld(DENSITY), monitor=bad, **(LONG | {"num_draws": 60}))


def test_rules_check_their_arguments():
    for make in (
        lambda: max_seconds(0),
        lambda: converged(-1),
        lambda: converged(10, rhat=1.0),
        lambda: converged(10, of="everything"),
        lambda: converged(10, of="parameters", probe=torch.zeros(2, 1)),
        lambda: Every(0, print),
        lambda: Monitor(every=0),
    ):
        with pytest.raises(ValueError, match="got"):
            make()


@pytest.mark.parametrize(
    ("before", "now", "grown"),
    [(0, 3, False), (0, 4, True), (4, 4, False), (100, 105, False), (100, 125, True)],
)
def test_draws_have_grown_when_they_pass_a_power_of_1_2(before, now, grown):
    assert has_grown(before, now) is grown


@pytest.mark.parametrize("shown", ["R-hat of parameters=", "ESS="])
def test_the_progress_bar_shows_what_a_target_saw(shown, capsys):
    rule = converged(1e6)
    with pytest.warns(pvi.errors.NotConvergedWarning):
        pvi.sample(pvi.sghmc(DENSITY), step_size=0.3, num_particles=4, num_draws=300, monitor=rule)
    assert shown in capsys.readouterr().err
