"""A run that was killed and resumed gives, bit for bit, the draws of one that was not."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import particlevi as pvi
from tests import registry
from tests.registry import ESTIMATORS, PROBLEMS, SAMPLERS

BATCHING = ("replacement", "subset", "epoch", "full", "loader", "loader_own", "sampler_own")


class Killed(Exception):
    """What ends a run half-way."""


def case(sampler: str, estimator: str, problem: str) -> tuple[Any, Any, float]:
    """Sampler, data and step size."""
    made = PROBLEMS[problem](torch.float64)
    return (
        SAMPLERS[sampler](ESTIMATORS[estimator].make(made)),
        made.data,
        SAMPLERS[sampler].step_size,
    )


def data_of(batching: str, data: Any) -> Any:
    """The data as tensors or as one of three loaders, always the same."""
    dataset = TensorDataset(*data)
    generator = torch.Generator().manual_seed(3)
    if batching == "loader":
        return DataLoader(dataset, batch_size=8, shuffle=True)
    if batching == "loader_own":
        return DataLoader(dataset, batch_size=8, shuffle=True, generator=generator)
    if batching == "sampler_own":
        order = RandomSampler(dataset, generator=generator)
        return DataLoader(dataset, batch_size=8, sampler=order)
    return data


def settings_of(batching: str) -> dict[str, Any]:
    """The arguments of ``sample`` that go with the data."""
    shared = {"num_particles": 3, "num_warmup": 4, "num_draws": 8, "thin": 2, "progress": False}
    if batching == "full" or "own" in batching or batching == "loader":
        return shared
    return {**shared, "batch_size": 8, "batching": batching}


def killed_after(sampler: Any, steps: int, kill: Any) -> Any:
    """The sampler, but its step ends the run after ``steps`` times and one before it, to probe."""
    count = -1

    def step(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > steps:
            kill()
        return sampler.step(*arguments)

    return dataclasses.replace(sampler, step=step)


def fail() -> None:
    """End the run by an exception."""
    raise Killed


def assert_same(resumed: Any, whole: Any) -> None:
    """Two runs gave the same, bit for bit."""
    assert torch.equal(resumed.particles, whole.particles)
    assert resumed.stats.keys() == whole.stats.keys()
    for name in whole.stats:
        assert torch.equal(resumed.stats[name], whole.stats[name]), name
    assert resumed.num_steps == whole.num_steps
    assert resumed.chains == whole.chains


@pytest.mark.parametrize(("sampler", "estimator", "problem"), registry.grid())
def test_every_sampler_resumes(sampler, estimator, problem, tmp_path):
    made, data, step_size = case(sampler, estimator, problem)
    batching = "subset" if made.requires.independent_data else "epoch"
    options = settings_of("full" if data is None else batching) | {"step_size": step_size}
    whole = pvi.sample(made, data, **options)
    bomb = killed_after(made, 17, fail)
    with pytest.raises(Killed):
        pvi.sample(bomb, data, **options, checkpoint=pvi.storage.Checkpoint(tmp_path, every=7))
    again, data, _ = case(sampler, estimator, problem)
    resumed = pvi.resume(tmp_path, again, data, progress=False)
    assert_same(resumed, whole)
    assert_same(pvi.resume(tmp_path, again, data, progress=False), whole)


@pytest.mark.parametrize("kill_at", range(0, 20, 3))
def test_wherever_it_stopped(kill_at, tmp_path):
    """Also twice, with a schedule, a kept warm-up and fewer coordinates."""
    made, data, _ = case("sghmc", "minibatch", "function")
    options = settings_of("epoch") | {
        "step_size": pvi.schedules.polynomial(0.01, delay=3.0),
        "store": pvi.storage.InMemory(torch.tensor([3, 0]), torch.float32, warmup=True),
    }
    whole = pvi.sample(made, data, **options)
    with pytest.raises(Killed):
        bomb = killed_after(made, kill_at, fail)
        pvi.sample(bomb, data, **options, checkpoint=pvi.storage.Checkpoint(tmp_path, every=2))
    storage = options["store"]
    if kill_at < 18:
        with pytest.raises(Killed):
            bomb = killed_after(made, 2, fail)
            pvi.resume(tmp_path, bomb, data, store=storage, progress=False)
    resumed = pvi.resume(tmp_path, made, data, store=storage, progress=False)
    assert_same(resumed, whole)
    assert torch.equal(resumed.warmup, whole.warmup)
    assert torch.equal(resumed.coordinates, whole.coordinates)


def dropout_case() -> tuple[Any, Any]:
    """A net whose masks come from the global generator, and a loader that also takes from it."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    potential = pvi.from_module(
        net.double(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=20, dropout="sample"
    )
    return pvi.sgld(potential), data_of("loader", registry.module(torch.float64).data)


def test_masks_and_loader_from_the_global_generator(tmp_path):
    made, loader = dropout_case()
    options = settings_of("loader") | {"step_size": 1e-5}
    whole = pvi.sample(made, loader, **options)
    with pytest.raises(Killed):
        bomb = killed_after(made, 16, fail)
        pvi.sample(bomb, loader, **options, checkpoint=pvi.storage.Checkpoint(tmp_path, every=7))
    torch.manual_seed(12345)
    made, loader = dropout_case()
    assert_same(pvi.resume(tmp_path, made, loader, progress=False), whole)


def child(folder: str) -> None:
    """In a process of its own: every way of batching in a fork that kills itself half-way."""
    made, data, step_size = case("sghmc", "minibatch", "module")

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for batching in BATCHING:
        fork = os.fork()
        if fork == 0:
            bomb = killed_after(made, 17, die)
            pvi.sample(
                bomb,
                data_of(batching, data),
                **settings_of(batching),
                step_size=step_size,
                checkpoint=pvi.storage.Checkpoint(f"{folder}/{batching}", every=7),
            )
        _, status = os.waitpid(fork, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


def endless(folder: str) -> None:
    """In a process of its own: a long run that writes a checkpoint at every step."""
    made, data, step_size = case("sghmc", "minibatch", "function")
    long = settings_of("epoch") | {"num_draws": 100, "thin": 1}
    pvi.sample(
        made, data, **long, step_size=step_size, checkpoint=pvi.storage.Checkpoint(folder, every=1)
    )


def start(function: str, folder: Any) -> subprocess.Popen[bytes]:
    """One of the functions above in a process of its own."""
    code = f"from tests.contract.test_resume import {function}; {function}({str(folder)!r})"
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder of checkpoints that SIGKILL left, one for every way of batching."""
    folder = tmp_path_factory.mktemp("killed")
    assert start("child", folder).wait(120) == 0
    return folder


@pytest.mark.parametrize("batching", BATCHING)
def test_after_sigkill(batching, killed):
    made, data, step_size = case("sghmc", "minibatch", "module")
    whole = pvi.sample(made, data_of(batching, data), **settings_of(batching), step_size=step_size)
    torch.manual_seed(987)
    resumed = pvi.resume(killed / batching, made, data_of(batching, data), progress=False)
    assert_same(resumed, whole)


def test_after_sigkill_while_it_writes(tmp_path):
    """The moment is left to chance: most of this run's time goes into writing checkpoints."""
    process = start("endless", tmp_path)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("draws-*"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    made, data, step_size = case("sghmc", "minibatch", "function")
    long = settings_of("epoch") | {"num_draws": 100, "thin": 1}
    whole = pvi.sample(made, data, **long, step_size=step_size)
    assert_same(pvi.resume(tmp_path, made, data, progress=False), whole)
