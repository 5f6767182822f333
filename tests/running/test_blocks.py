"""Blocks of steps: the draws of single steps, and everything that falls between them in its place.

Most of this runs the graph of a step as it is, so that no test waits for a compiler; the last tests
compile one loop.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters

import particlevi as pvi
from particlevi._tracing import is_compiling, tracing
from particlevi.data import Minibatches
from particlevi.running import Every, blocks, compiling
from particlevi.running.feeds import Direct, Joined, Stacked, feed_of
from particlevi.streams import ParticleStreams
from tests import registry
from tests.running.jobs import without_compiler
from tests.running.test_tuners import Doubling

MODULE = registry.PROBLEMS["module"](torch.float64)
QUIET = {"progress": False}
OPTIONS = {"num_particles": 2, "num_draws": 5, "thin": 13, "batch_size": 4, **QUIET}
BLOCKS = [name for name in registry.SAMPLERS if not name.startswith(("psgld", "psghmc"))]


@pytest.fixture
def seen():
    """Blocks without a compiler, and how long each was."""
    with without_compiler() as lengths:
        yield lengths


def both(sampler, data=MODULE.data, **options):
    """The draws of single steps, and those of blocks."""
    options = {**OPTIONS, "step_size": 1e-3, **options}
    return [pvi.sample(sampler, data, compile=compile, **options) for compile in (False, True)]


def assert_same(one, other):
    assert one.num_steps == other.num_steps
    torch.testing.assert_close(one.particles, other.particles, rtol=1e-11, atol=1e-11)
    assert one.stats.keys() == other.stats.keys()
    for name, values in one.stats.items():
        torch.testing.assert_close(values, other.stats[name], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", BLOCKS)
def test_every_sampler_draws_the_same(name, seen):
    case = registry.SAMPLERS[name]
    options = {"num_particles": 6, "thin": 7, "num_draws": 2, "step_size": case.step_size}
    options |= {"batch_size": None} if case.all_data else {}
    assert_same(*both(case(MODULE.potential), **options))
    assert max(seen) == 14


@pytest.mark.parametrize("batching", ["replacement", "subset", "epoch"])
@pytest.mark.parametrize("shared", [False, True])
def test_every_way_to_draw_batches(batching, shared, seen):
    assert_same(*both(pvi.sgld(MODULE.potential), batching=Minibatches(batching, shared=shared)))
    assert max(seen) > 1


def test_estimators_with_noise_or_a_state_of_their_own(seen):
    for name in ("msgd", "control_variate"):
        assert_same(*both(pvi.sgld(registry.ESTIMATORS[name].make(MODULE)), batch_size=None))
        assert max(seen) > 1
        seen.clear()


def test_schedules_of_every_control(seen):
    sampler = pvi.sghmc(MODULE.potential, temperature=pvi.schedules.polynomial(1.0, 0.1))
    one, other = both(sampler, step_size=pvi.schedules.polynomial(1e-3, 0.5), num_warmup=20)
    assert_same(one, other)
    assert len(set(other.stats["temperature"].tolist())) == 5
    assert max(seen) > 1


@pytest.mark.parametrize("compile", [False, True])
def test_a_schedule_is_asked_once_for_a_step_with_a_draw(compile, seen):
    asked = []

    def step_size(k):
        asked.append(k)
        return 1e-3

    sampler = pvi.sgld(MODULE.potential)
    options = {**OPTIONS, "thin": 1, "num_draws": 30}
    draws = pvi.sample(sampler, MODULE.data, step_size=step_size, compile=compile, **options)
    assert asked.count(20) == 1
    assert float(draws.stats["step_size"][20]) == 1e-3


def test_cycles_that_keep_some_steps_only(seen):
    cycle = pvi.schedules.cyclical(1e-3, 20)
    assert_same(*both(pvi.sghmc(MODULE.potential), step_size=cycle, thin=3, num_draws=12))
    assert max(seen) > 1


def test_a_tuner_takes_single_steps_and_leaves_its_metric_to_the_blocks(seen):
    tuner = Doubling(metric_at=(2, 4))
    options = {"tuner": tuner, "step_size": None, "num_warmup": 6}
    assert_same(*both(pvi.sghmc(MODULE.potential), **options))
    assert seen[:6] == [1] * 6  # of the warm-up
    assert max(seen) > 1


@pytest.mark.parametrize("name", ["psgld", "psghmc"])
def test_what_is_recorded_at_every_step_takes_single_steps(name, seen):
    sampler = registry.SAMPLERS[name](MODULE.potential)
    assert sampler.records
    assert not pvi.sgld(MODULE.potential).records
    assert pvi.sgld(registry.ESTIMATORS["svrg"].make(MODULE)).records
    assert pvi.sgld(registry.ESTIMATORS["structured"].make(MODULE)).records


def test_rules_are_asked_at_their_steps(seen):
    asked = []
    rules = [Every(9, lambda look: asked.append((look.step, look.info.potential.clone())))]
    one, other = both(pvi.sgld(MODULE.potential), monitor=rules, num_draws=2)
    assert_same(one, other)
    steps = [step for step, _ in asked]
    assert steps == [9, 18] * 2
    torch.testing.assert_close(asked[0][1], asked[2][1])
    assert max(seen) == 9


def test_moments_are_those_of_all_draws_in_a_block(seen):
    store = pvi.storage.InMemory(keep=pvi.storage.moments())
    one, other = both(pvi.sgld(MODULE.potential), store=store, num_warmup=8)
    assert max(seen) > 2 * OPTIONS["thin"]
    torch.testing.assert_close(one.moments.variance, other.moments.variance)


def test_of_draws_in_a_block_those_that_diverged_are_marked(seen):
    density = pvi.from_log_density(lambda x: -(x**6).sum(), 2)
    options = {"initial": torch.tensor([[0.1, 0.1], [0.2, 0.2]]), "num_particles": None}
    options |= {"batch_size": None, "step_size": 0.45, "num_draws": 60, "thin": 1}
    one, other = both(pvi.hmc(density), None, **options)
    assert 0 < one.stats["diverging"].sum() < 100
    assert torch.equal(one.stats["diverging"], other.stats["diverging"])
    assert max(seen) == 60


def test_a_draw_ends_a_block_where_the_states_after_every_step_would_be_large(seen, monkeypatch):
    monkeypatch.setattr(blocks, "_MOST_NUMBERS", 1)
    assert_same(*both(pvi.sghmc(MODULE.potential)))
    assert max(seen) == OPTIONS["thin"]


def test_other_threads_are_not_told_that_they_are_compiled():
    with tracing(), ThreadPoolExecutor(1) as pool:
        assert is_compiling()
        assert not pool.submit(is_compiling).result()


def test_a_step_that_looks_at_numbers_is_not_traced_past_them():
    """Its branch would be that of the first step for ever."""
    sampler = pvi.sgld(MODULE.potential)

    def step(state, batch, noise, controls):
        moved, info = sampler.step(state, batch, noise, controls)
        if moved.position.sum() > 0:
            return moved, info
        return moved._replace(position=-moved.position), info

    branching = dataclasses.replace(sampler, step=step)
    with pytest.raises(Unsupported, match="data-dependent branching"):
        pvi.sample(branching, MODULE.data, compile=True, step_size=1e-3, **OPTIONS)


def test_a_rule_ends_the_run_where_it_would_without_blocks(seen):
    one, other = both(pvi.sgld(MODULE.potential), monitor=Every(20, lambda look: "enough"))
    assert one.num_steps == other.num_steps == 20
    assert_same(one, other)


def test_a_chain_that_is_lost_in_the_middle_of_a_block(seen):
    """The first chain starts where its steps are not stable."""
    density = pvi.from_log_density(lambda x: -(x**4).sum(), 2)
    start = torch.tensor([[3.0, 3.0], [0.1, 0.1]])
    options = {"initial": start, "num_particles": None, "batch_size": None, "step_size": 0.1}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        one, other = both(pvi.sgld(density), None, **options)
    assert one.diverged == other.diverged
    assert list(one.diverged) == [0]
    assert len({str(each.message) for each in caught if "diverged" in str(each.message)}) == 1
    assert max(seen) > 2
    assert_same(one, other)


def test_a_chain_that_runs_away_counts_steps(seen):
    def runaway(x):
        return torch.where(x < 1, -0.5 * x.square(), 1e6 * x).sum() * -1.0

    density = pvi.from_log_density(lambda x: -runaway(x), 1)
    start = torch.tensor([[0.0], [0.0]])
    options = {"initial": start, "num_particles": None, "batch_size": None, "thin": 40}
    one, other = both(pvi.sgld(density), None, step_size=0.05, **options)
    assert one.diverged == other.diverged


def test_an_interruption_returns_what_was_drawn(seen, monkeypatch):
    monkeypatch.setattr(blocks, "as_graph", lambda step, leaves, inputs: step)
    sampler, calls = pvi.sgld(MODULE.potential), []

    def step(*arguments):
        calls.append(None)
        if len(calls) == 33:
            os.kill(os.getpid(), signal.SIGINT)
        return sampler.step(*arguments)

    stopped = dataclasses.replace(sampler, step=step)
    options = {**OPTIONS, "step_size": 1e-3, "num_draws": 20}
    with pytest.warns(UserWarning, match="Interrupted after 100 of 260 steps"):
        draws = pvi.sample(stopped, MODULE.data, compile=True, **options)
    whole = pvi.sample(sampler, MODULE.data, compile=True, **options)
    assert draws.interrupted
    assert torch.equal(draws.particles, whole.particles[:, :7])


@pytest.mark.parametrize("every", [4, 13, 30])
def test_checkpoints_do_not_change_the_draws(every, seen, tmp_path):
    options = {**OPTIONS, "step_size": 1e-3, "compile": True}
    whole = pvi.sample(pvi.sghmc(MODULE.potential), MODULE.data, **options)
    saving = pvi.storage.Checkpoint(tmp_path, every=every)
    saved = pvi.sample(pvi.sghmc(MODULE.potential), MODULE.data, checkpoint=saving, **options)
    assert torch.equal(saved.particles, whole.particles)


def feeds():
    """Functions of streams, and the kind of feed that each needs."""

    def two(streams):
        return streams.normal((3, 700)), streams.uniform((3, 5), torch.float64)

    yield Joined, two
    yield Joined, lambda streams: streams.normal((3, 5))
    yield Direct, lambda streams: streams.normal((90, 800))
    yield Stacked, lambda streams: streams.normal((3, 5)) + 1
    yield Stacked, lambda streams: (streams.normal((3, 5)), streams.normal((3, 5)))
    yield Stacked, lambda streams: streams.shared.normal((4,))
    yield Stacked, lambda streams: ()


@pytest.mark.parametrize(("kind", "draw"), list(feeds()))
def test_a_feed_gives_what_calls_give(kind, draw):
    one, other = ParticleStreams(3), ParticleStreams(3)
    feed = feed_of(draw, other)
    assert type(feed) is kind
    wanted = 150
    while wanted:
        steps = min(feed.left(), wanted, 37)
        assert 1 <= steps <= feed.most
        fed = feed.take(steps)
        for k in range(steps):
            found = draw(one)
            leaves = found if isinstance(found, tuple) else (found,)
            for leaf, values, first in zip(leaves, fed.values, fed.firsts, strict=True):
                assert torch.equal(values.select(feed.axis, first + k), leaf)
        wanted -= steps
    before, after = one.state(), other.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


COMPILED = pvi.sghmc(MODULE.potential)
LOOP = {**OPTIONS, "num_particles": 3, "step_size": 1e-3, "compile": True}


def compilations() -> int:
    return sum(counters["stats"].values())


def test_compiled_by_inductor_the_loop_draws_the_same():
    eager = pvi.sample(COMPILED, MODULE.data, **{**LOOP, "compile": False})
    assert_same(pvi.sample(COMPILED, MODULE.data, **LOOP), eager)


def test_where_blocks_end_changes_no_bit_of_compiled_draws(tmp_path):
    """Draws, checkpoints and looks at other steps, and a run that was stopped and resumed."""
    whole = pvi.sample(COMPILED, MODULE.data, **LOOP)
    dense = pvi.sample(COMPILED, MODULE.data, **{**LOOP, "thin": 1, "num_draws": 65})
    assert torch.equal(dense.particles[:, 12::13], whole.particles)
    saving = pvi.storage.Checkpoint(tmp_path, every=9)
    stop = Every(31, lambda look: "enough")
    pvi.sample(COMPILED, MODULE.data, checkpoint=saving, monitor=stop, **LOOP)
    resumed = pvi.resume(tmp_path, COMPILED, MODULE.data, progress=False)
    assert torch.equal(resumed.particles, whole.particles)
    for name, values in whole.stats.items():
        assert torch.equal(resumed.stats[name], values)


def test_other_lengths_and_schedules_do_not_compile_again():
    pvi.sample(COMPILED, MODULE.data, **LOOP)
    before = compilations()
    other = {"num_draws": 3, "thin": 40, "num_warmup": 11, "seed": 5}
    schedule = pvi.schedules.polynomial(1e-3, 0.5)
    pvi.sample(COMPILED, MODULE.data, **{**LOOP, **other, "step_size": schedule})
    assert compilations() == before


@pytest.mark.slow
def test_a_metric_is_not_left_out_of_a_loop_that_was_compiled_without():
    """Only shapes are guarded, so the names of the controls tell compilations apart."""
    compiled = pvi.sghmc(registry.density(torch.float64).potential)
    options = {"num_particles": 2, "num_draws": 3, "thin": 5, "num_warmup": 6, **QUIET}
    pvi.sample(compiled, step_size=1e-4, compile=True, **options)
    tuned = [
        pvi.sample(compiled, tuner=Doubling(metric_at=(2, 4)), compile=compile, **options)
        for compile in (False, True)
    ]
    assert_same(*tuned)
    assert len(compiling._compiled_steps[compiled]) == 2


def test_a_torch_whose_compiler_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    target = pvi.from_log_density(lambda x: -x.square().sum(), 2)
    with pytest.raises(RuntimeError, match=r"needs torch 2.12 or later, got 2.11.0\+cu130"):
        pvi.sample(pvi.sgld(target), step_size=0.1, num_particles=2, num_draws=2, compile=True)
