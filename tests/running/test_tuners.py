"""A tuner at work: when it learns, what the run does with it, and how it comes through a resume."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import particlevi as pvi
from tests import registry

DENSITY = registry.density(torch.float64).potential
OPTIONS = {"num_particles": 2, "num_warmup": 6, "num_draws": 5, "progress": False}


class State(NamedTuple):
    """What a tuner of the tests remembers."""

    step_size: Tensor
    scale: Tensor
    seen: Tensor


@dataclasses.dataclass(frozen=True)
class Doubling:
    """Doubles the step size at every step, and the metric at some."""

    metric_at: tuple[int, ...] = ()
    name: str = "doubling"

    @property
    def settings(self) -> dict[str, Any]:
        """Its arguments."""
        return {"metric_at": list(self.metric_at)}

    def init(self, position: Tensor, controls: Any) -> State:
        """Start small."""
        zero = position.new_zeros(())
        return State(zero + 1e-4, torch.ones_like(position[0]), zero)

    def controls(self, state: State) -> dict[str, Tensor]:
        """Step size, and the metric if it is ever to change."""
        metric = {"scale": state.scale} if self.metric_at else {}
        return {"step_size": state.step_size, **metric}

    def update(self, state: State, position: Tensor, info: Any, progress: Any, world: Any) -> State:
        """One step."""
        changes = progress.step in self.metric_at
        scale = 2 * state.scale if changes else state.scale
        return State(2 * state.step_size, scale, state.seen + world.mean(info.potential))

    def report(self, state: State) -> dict[str, Any]:
        """What came of it."""
        return {"step_size": float(state.step_size)}


def test_the_step_size_is_the_tuners_and_frozen_after_the_warm_up():
    storage = pvi.storage.InMemory(warmup=True)
    draws = pvi.sample(pvi.sgld(DENSITY), tuner=Doubling(), store=storage, **OPTIONS)
    used = [1e-4 * 2**k for k in range(6)]
    frozen = used[-1] * 2
    # what is recorded with a draw are the controls of the step that ended in it
    assert draws.warmup_stats["step_size"].tolist() == pytest.approx(used)
    assert draws.stats["step_size"].tolist() == pytest.approx([frozen] * 5)
    assert draws.attrs["tuning"] == {"tuner": "doubling", "step_size": pytest.approx(frozen)}


def test_what_a_tuner_gives_takes_the_place_of_a_schedule():
    draws = pvi.sample(pvi.sgld(DENSITY), tuner=Doubling(), step_size=7.0, **OPTIONS)
    assert draws.stats["step_size"].tolist() == pytest.approx([1e-4 * 2**6] * 5)


def test_the_steps_after_the_warm_up_are_those_of_a_run_with_that_step_size():
    tuned = pvi.sample(pvi.sgld(DENSITY), tuner=Doubling(), **OPTIONS)
    sizes = pvi.sample(pvi.sgld(DENSITY), step_size=lambda k: 1e-4 * 2.0 ** min(k, 6), **OPTIONS)
    torch.testing.assert_close(tuned.particles, sizes.particles, rtol=1e-12, atol=1e-12)


def test_a_new_metric_takes_new_momenta():
    """Momenta live in the coordinates of the metric: those of the old one are not gone on with."""
    made, used = [], []
    sampler = pvi.sghmc(DENSITY)

    def init(particles, streams):
        state = sampler.init(particles, streams)
        made.append((particles.clone(), state.memory.momentum.clone()))
        return state

    def step(state, *rest):
        used.append((state.position.clone(), state.memory.momentum.clone()))
        return sampler.step(state, *rest)

    spied = dataclasses.replace(sampler, init=init, step=step)
    pvi.sample(spied, tuner=Doubling(metric_at=(3,)), **OPTIONS)
    assert [len(position) for position, _ in made] == [1, 2, 2]  # planned, begun, renewed
    for seen, expected in zip(used[3], made[-1], strict=True):
        assert torch.equal(seen, expected)


@pytest.mark.parametrize("kill_at", [2, 5, 9])
def test_a_tuned_run_resumes(kill_at, tmp_path):
    sampler, tuner = pvi.sghmc(DENSITY), Doubling(metric_at=(2, 4))
    whole = pvi.sample(sampler, tuner=tuner, **OPTIONS)

    def stop(look):
        return look.step == kill_at

    monitor = pvi.running.Every(1, stop)
    pvi.sample(sampler, tuner=tuner, monitor=monitor, checkpoint=tmp_path, **OPTIONS)
    resumed = pvi.resume(tmp_path, sampler, tuner=tuner, progress=False)
    assert torch.equal(resumed.particles, whole.particles)
    assert resumed.attrs["tuning"] == whole.attrs["tuning"]
    with pytest.raises(ValueError, match="tuner"):
        pvi.resume(tmp_path, sampler, step_size=0.1, progress=False)
    with pytest.raises(ValueError, match="metric_at"):
        pvi.resume(tmp_path, sampler, tuner=Doubling(), progress=False)


def test_a_tuner_needs_a_warm_up():
    with pytest.raises(ValueError, match="num_warmup is 0"):
        pvi.sample(pvi.sgld(DENSITY), tuner=Doubling(), **(OPTIONS | {"num_warmup": 0}))


def test_a_run_needs_a_step_size_from_somewhere():
    class Silent(Doubling):
        def controls(self, state):
            return {}

    with pytest.raises(ValueError, match="no step size"):
        pvi.sample(pvi.sgld(DENSITY), tuner=Silent(), **OPTIONS)


def test_a_tuner_gets_a_warm_up_where_none_is_given():
    options = {name: value for name, value in OPTIONS.items() if name != "num_warmup"}
    tuner = pvi.tuning.dual_averaging()
    draws = pvi.sample(pvi.hmc(DENSITY, num_leapfrog=2), tuner=tuner, **options)
    assert draws.attrs["num_warmup"] == 500
