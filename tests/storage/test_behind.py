"""Large draws are written while the next steps are made, and nothing else is changed by that."""

from __future__ import annotations

import dataclasses
import errno
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch

import particlevi as pvi
from particlevi.running import blocks
from particlevi.running.saving import Saved
from particlevi.storage import diskstore
from particlevi.storage.behind import Behind
from particlevi.storage.diskstore import DiskStore
from particlevi.storage.series import Series
from tests import registry
from tests.contract.test_resume import (
    SAMPLERS,
    Killed,
    assert_same,
    case,
    fail,
    killed_after,
    settings_of,
)

pytest.importorskip("zarr")

RUN = {"step_size": 1e-3, "num_particles": 3, "num_draws": 10, "progress": False}
MINI = RUN | {"num_warmup": 4, "batch_size": 8}
OnDisk = pvi.storage.OnDisk
WAIT = 20.0


class Late(Behind):
    """Does its work when it is waited for and no sooner."""

    work = None

    def start(self, work):
        self.wait()
        self.work = work

    def wait(self):
        work, self.work = self.work, None
        if work is not None:
            super().start(work)
        super().wait()

    @property
    def busy(self):
        return self.work is not None


def call_large():
    """Every draw is large."""
    diskstore.is_large = lambda size: True
    diskstore.block_length = lambda size, draws: 1


@pytest.fixture
def large(monkeypatch):
    for name in ("is_large", "block_length"):
        monkeypatch.setattr(diskstore, name, getattr(diskstore, name))
    call_large()


@pytest.fixture
def late(large, monkeypatch):
    monkeypatch.setattr(diskstore, "Behind", Late)


def problem():
    made = registry.module(torch.float64)
    return pvi.sghmc(made.potential), made.data


def test_work_is_done_while_the_caller_goes_on():
    behind, gone_on, seen = Behind(), threading.Event(), []
    behind.start(lambda: seen.append(gone_on.wait(WAIT)))
    assert behind.busy
    gone_on.set()
    behind.wait()
    assert seen == [True]


def test_what_the_work_raised_is_raised_once():
    behind = Behind()
    behind.start(fail)
    with pytest.raises(Killed):
        behind.wait()
    behind.wait()


def test_a_step_is_made_while_a_large_draw_is_written(large, tmp_path, monkeypatch):
    stepped, seen, put = threading.Event(), [], Series.put

    def waits(self, place, value):
        if self.dtype is not None and place == 2:
            seen.append(stepped.wait(WAIT))
        put(self, place, value)

    monkeypatch.setattr(Series, "put", waits)
    sampler, data = problem()
    pvi.sample(killed_after(sampler, 2, stepped.set), data, store=tmp_path / "draws.zarr", **RUN)
    assert seen
    assert all(seen)


def test_small_draws_are_written_in_the_loop(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(Behind, "start", lambda self, work: started.append(work))
    sampler, data = problem()
    pvi.sample(sampler, data, store=tmp_path / "draws.zarr", **RUN)
    assert not started


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_method_changes_a_draw_that_is_not_written_yet(name, late, tmp_path):
    estimator, kind = next(
        (estimator, kind) for each, estimator, kind in registry.grid() if each == name
    )
    sampler, data, step_size = case(name, estimator, kind)
    batching = "subset" if sampler.requires.independent_data else "epoch"
    options = settings_of("full" if data is None else batching) | {"step_size": step_size}
    store = OnDisk(tmp_path / "draws.zarr", warmup=True)
    memory = pvi.sample(sampler, data, store=pvi.storage.InMemory(warmup=True), **options)
    disk = pvi.sample(sampler, data, store=store, **options)
    assert_same(disk, memory)
    assert torch.equal(disk.warmup, memory.warmup)


@pytest.mark.slow
def test_compiled_steps_leave_a_draw_as_it_is(late, tmp_path, monkeypatch):
    # As of a large state, which is not one of the rows that a block writes.
    monkeypatch.setattr(blocks, "_MOST_NUMBERS", 1)
    sampler, data = problem()
    options = MINI | {"compile": True}
    memory = pvi.sample(sampler, data, **options)
    assert_same(pvi.sample(sampler, data, store=tmp_path / "draws.zarr", **options), memory)


@pytest.mark.parametrize("keep", [["2.*"], torch.tensor([5, 0])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_what_is_kept_in_part_is_written_behind_too(keep, dtype, late, tmp_path):
    sampler, data = problem()
    memory = pvi.sample(sampler, data, store=pvi.storage.InMemory(keep, dtype), **MINI)
    disk = pvi.sample(sampler, data, store=OnDisk(tmp_path / "draws.zarr", keep, dtype), **MINI)
    assert_same(disk, memory)


def in_place(sampler):
    """The sampler, with steps that overwrite the particles."""

    def step(state, *arguments):
        moved, info = sampler.step(state, *arguments)
        return moved._replace(position=state.position.copy_(moved.position)), info

    return dataclasses.replace(sampler, step=step)


def test_a_draw_that_was_changed_while_it_was_written_is_refused(late, tmp_path):
    sampler, data = problem()
    with pytest.raises(RuntimeError, match="changed the particles of a draw in place") as caught:
        pvi.sample(in_place(sampler), data, store=tmp_path / "draws.zarr", **RUN)
    assert caught.value.draws.particles.shape[1] == 0
    assert pvi.load(tmp_path / "draws.zarr").particles.shape[1] == 0


def full_at(place, monkeypatch):
    """From a draw on, the disk is full."""
    put = Series.put

    def fails(self, where, value):
        if self.dtype is not None and where >= place:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, where, value)

    monkeypatch.setattr(Series, "put", fails)


@pytest.mark.parametrize("at", [0, 5, 9])
def test_a_full_disk_ends_the_run_with_the_draws_before(at, large, tmp_path, monkeypatch):
    full_at(at, monkeypatch)
    sampler, data = problem()
    with pytest.raises(OSError, match=rf"The disk is full.* {at} draws before.*load") as caught:
        pvi.sample(sampler, data, store=tmp_path / "draws.zarr", **RUN)
    assert caught.value.errno == errno.ENOSPC
    whole = pvi.sample(sampler, data, **RUN)
    for left in (pvi.load(tmp_path / "draws.zarr").particles, caught.value.draws.particles):
        assert torch.equal(left.clone(), whole.particles[:, :at])


def test_a_full_disk_is_told_at_the_next_draw(late, tmp_path, monkeypatch):
    full_at(5, monkeypatch)
    sampler, data = problem()
    steps = []
    counted = killed_after(sampler, -1, lambda: steps.append(1))
    with pytest.raises(OSError, match="The disk is full"):
        pvi.sample(counted, data, store=tmp_path / "draws.zarr", **RUN)
    assert len(steps) == 7


def test_a_full_disk_is_told_when_the_run_is_saved(late, tmp_path, monkeypatch):
    full_at(5, monkeypatch)
    sampler, data = problem()
    checkpoint = pvi.storage.Checkpoint(tmp_path / "run", every=3)
    with pytest.raises(OSError, match="The disk is full"):
        pvi.sample(sampler, data, store=tmp_path / "draws.zarr", checkpoint=checkpoint, **RUN)
    assert Saved.read(tmp_path / "run").meta["receipt"]["count"] == 3


def test_a_checkpoint_waits_for_the_draws_that_it_tells(late, tmp_path, monkeypatch):
    path, told, write = tmp_path / "draws.zarr", [], Saved.write
    sampler, data = problem()
    whole = pvi.sample(sampler, data, **RUN).particles

    def look(self, folder):
        count = self.meta["receipt"]["count"]
        told.append(count)
        assert torch.equal(pvi.load(path).particles.clone(), whole[:, :count])
        write(self, folder)

    monkeypatch.setattr(Saved, "write", look)
    checkpoint = pvi.storage.Checkpoint(tmp_path / "run", every=4)
    pvi.sample(sampler, data, store=path, checkpoint=checkpoint, **RUN)
    assert told == [0, 4, 8, 10]


def test_a_draw_is_announced_once_it_is_written(late, tmp_path, monkeypatch):
    order, put, commit = [], Series.put, diskstore.Hierarchy.commit
    values = set()

    def noted(self, place, value):
        put(self, place, value)
        if self.dtype is not None:
            values.add(id(self))
            order.append(place)

    def announced(self):
        order.append(f"there are {self.counts.get('posterior')}")
        commit(self)

    monkeypatch.setattr(Series, "put", noted)
    monkeypatch.setattr(diskstore.Hierarchy, "commit", announced)
    sampler, data = problem()
    pvi.sample(sampler, data, store=tmp_path / "draws.zarr", **RUN)
    for k in range(1, RUN["num_draws"] + 1):
        before = order[: order.index(f"there are {k}")]
        assert before.count(k - 1) == len(values)
        assert k not in before


def test_the_monitor_sees_a_draw_that_is_written(large, tmp_path, monkeypatch):
    path, seen, tend = tmp_path / "draws.zarr", [], DiskStore.tend

    def when_written(self):
        while self.behind.busy:
            time.sleep(0.001)
        tend(self)

    monkeypatch.setattr(DiskStore, "tend", when_written)
    look = pvi.running.Every(1, lambda _: seen.append(pvi.load(path).particles.shape[1]))
    sampler, data = problem()
    pvi.sample(sampler, data, store=path, monitor=look, **RUN)
    assert seen == list(range(1, 10))


def test_the_monitor_does_not_wait_for_a_draw(late, tmp_path):
    path, seen = tmp_path / "draws.zarr", []
    look = pvi.running.Every(1, lambda _: seen.append(pvi.load(path).particles.shape[1]))
    sampler, data = problem()
    pvi.sample(sampler, data, store=path, monitor=look, **RUN)
    assert seen == list(range(9))


@pytest.mark.parametrize("kill_at", [1, 6, 11])
def test_resumes_bit_for_bit_wherever_it_stopped(kill_at, late, tmp_path):
    sampler, data = problem()
    whole = pvi.sample(sampler, data, store=pvi.storage.InMemory(warmup=True), **MINI)
    store = OnDisk(tmp_path / "draws.zarr", warmup=True)
    checkpoint = pvi.storage.Checkpoint(tmp_path / "run", every=4)
    with pytest.raises(Killed):
        bomb = killed_after(sampler, kill_at, fail)
        pvi.sample(bomb, data, store=store, checkpoint=checkpoint, **MINI)
    resumed = pvi.resume(tmp_path / "run", sampler, data, store=store, progress=False)
    assert_same(resumed, whole)
    assert torch.equal(resumed.warmup, whole.warmup)
    assert_same(pvi.load(tmp_path / "draws.zarr"), whole)


def endless(folder: str) -> None:
    """In a process of its own: a long run of large draws."""
    call_large()
    sampler, data = problem()
    options = {**RUN, "num_draws": 100, "store": f"{folder}/draws.zarr"}
    pvi.sample(sampler, data, checkpoint=pvi.storage.Checkpoint(f"{folder}/run", 5), **options)


def test_after_sigkill_only_whole_draws_are_there_and_the_run_resumes(tmp_path, large):
    code = f"from tests.storage.test_behind import endless; endless({str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    path, deadline = tmp_path / "draws.zarr", time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.01)
        if (tmp_path / "run/state.safetensors").exists() and pvi.load(path).particles.shape[1] > 5:
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL
    sampler, data = problem()
    whole = pvi.sample(sampler, data, **{**RUN, "num_draws": 100})
    left = pvi.load(path)
    count = left.particles.shape[1]
    assert 5 < count < 100
    assert torch.equal(left.particles.clone(), whole.particles[:, :count])
    assert_same(pvi.resume(tmp_path / "run", sampler, data, progress=False), whole)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_the_draws_whole(times, late, tmp_path):
    def interrupt():
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    sampler, data = problem()
    whole = pvi.sample(sampler, data, **RUN).particles
    path, bomb = tmp_path / "draws.zarr", killed_after(sampler, 6, interrupt)
    if times == 1:
        with pytest.warns(UserWarning, match="Interrupted after 8"):
            draws = pvi.sample(bomb, data, store=path, **RUN)
    else:
        with pytest.raises(KeyboardInterrupt) as caught:
            pvi.sample(bomb, data, store=path, **RUN)
        draws = caught.value.draws
    count = draws.particles.shape[1]
    assert count == 9 - times
    for found in (draws, pvi.load(path)):
        assert torch.equal(found.particles.clone(), whole[:, :count])


def test_one_draw_is_held_at_most(late, tmp_path, monkeypatch):
    held, alive, put = [], [], DiskStore._put

    def noted(self, names, place, kept, stats):
        alive.append(sum(each() is not None for each in held))
        held.append(weakref.ref(kept))
        put(self, names, place, kept, stats)

    monkeypatch.setattr(DiskStore, "_put", noted)
    sampler, data = problem()
    pvi.sample(sampler, data, store=tmp_path / "draws.zarr", **RUN)
    assert alive == [0] * RUN["num_draws"]


def test_a_draw_that_is_written_is_let_go():
    behind, draw = Behind(), torch.zeros(3)
    known = weakref.ref(draw)
    behind.start(draw.sum)
    del draw
    deadline = time.monotonic() + WAIT
    while behind.busy and time.monotonic() < deadline:
        time.sleep(0.001)
    assert known() is None


def test_the_draw_that_is_held_is_in_the_plan_of_memory():
    def planned(size):
        return OnDisk("draws.zarr").nbytes(8, 100, size, torch.float32)

    draw = 8 * 10_000_000 * 4
    assert planned(10_000_000) == draw + 2**27
    assert planned(10_000_000) > planned(1000)
