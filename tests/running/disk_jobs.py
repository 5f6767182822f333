"""What the processes of ``test_ranks_on_disk.py`` do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh

import particlevi as pvi
from particlevi.drawset.lazy import LazyTensor
from particlevi.storage import chunking, diskstore
from tests.contract.test_resume import killed_after
from tests.processes import run_job
from tests.running.jobs import QUIET, SHORT, VICTIM, P, _caught, data, net, told

MINI: dict[str, Any] = {**SHORT, "num_draws": 8, "num_warmup": 4, "batch_size": 8}
OnDisk = pvi.storage.OnDisk


def cut_small() -> None:
    """Chunks of three draws."""
    diskstore.block_length = lambda size, draws: min(3, draws)
    diskstore._STATS_BYTES = 4 * 8 * P


def runs() -> dict[str, Callable[[Any], pvi.Draws]]:
    """Runs of chains and of particles that see each other, as functions of the store."""
    potential = net()

    def run(sampler: Any, **options: Any) -> Callable[[Any], pvi.Draws]:
        return lambda store: pvi.sample(sampler, data(), store=store, **options)

    tuned = {**QUIET, "num_particles": P, "num_draws": 4, "num_warmup": 40}
    return {
        "chains": run(pvi.sghmc(potential), **MINI),
        "tuned": run(pvi.hmc(potential), **tuned, tuner=pvi.tuning.windows()),
        "tempering": run(pvi.parallel_tempering(potential, (1.0, 2.0)), **MINI),
        "svgd": run(pvi.svgd(potential), **MINI),
    }


def stores(number: int, folder: str) -> dict[str, Any]:
    """Each with two sizes of chunks: of one chain, and of several; chains also by a thread."""
    cut_small()
    found: dict[str, Any] = {}

    def store(key: str, run: Callable[[Any], pvi.Draws]) -> None:
        draws = run(OnDisk(f"{folder}/{key}", warmup=True))
        lazy = isinstance(draws.particles, LazyTensor)
        found[key] = {**told(draws), "lazy": lazy, "warmup": draws.warmup.numpy()}

    for smallest in (chunking._SMALLEST, 1):
        chunking._SMALLEST = smallest
        for name, run in runs().items():
            store(f"{name}-{'one' if smallest == 1 else 'several'}", run)
    diskstore.block_length = lambda size, draws: 1
    diskstore.is_large = lambda size: True
    store("chains-behind", runs()["chains"])
    return found


def mesh(number: int, folder: str) -> dict[str, Any]:
    """Chains over one axis, data over the other."""
    cut_small()
    both = init_device_mesh("cpu", (2, 2), mesh_dim_names=("particles", "data"))
    store = OnDisk(f"{folder}/mesh", warmup=True)
    run = {**MINI, "processes": both, "store": store}
    return told(pvi.sample(pvi.sghmc(net()), data(), **run))


def refusals(number: int, folder: str) -> dict[str, Any]:
    """Places where no run of several processes can begin."""
    steps = 0

    def log_density(theta: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += theta.requires_grad
        return -0.5 * theta.square().sum()

    sampler = pvi.sgld(pvi.from_log_density(log_density, num_params=2))

    def refused(store: str) -> dict[str, Any]:
        return _caught(lambda: pvi.sample(sampler, store=store, **SHORT))

    found = {"exists": refused(f"{folder}/there"), "file": refused(f"{folder}/file/draws.zarr")}
    found["different"] = refused(f"{folder}/of{number}/draws.zarr")
    touch = Path.touch

    def unseen(self: Path, **options: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    Path.touch = unseen if number == VICTIM else touch
    found["unseen"] = refused(f"{folder}/fresh.zarr")
    Path.touch = touch
    return found


def full(number: int, folder: str) -> dict[str, Any]:
    """The disk of one process is full."""
    from zarr.storage import _local

    cut_small()
    chunking._SMALLEST = 1
    put, count = _local._put, 0

    def fails(target: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal count
        if "/c/" in str(target) and "posterior" in str(target):
            count += 1
            if count > 20 and number == VICTIM:
                raise OSError(errno.ENOSPC, "No space left on device")
        return put(target, *arguments, **options)

    _local._put = fails
    return _caught(lambda: pvi.sample(pvi.sgld(net()), data(), store=f"{folder}/draws", **long()))


def long() -> dict[str, Any]:
    """Options of a run of 60 draws."""
    return {**SHORT, "num_draws": 60, "batch_size": 8}


def killed(number: int, folder: str) -> None:
    """All processes are killed, between two announcements."""
    cut_small()
    bomb = killed_after(pvi.sgld(net()), 46, lambda: os._exit(0))
    place = pvi.storage.Checkpoint(f"{folder}/run", every=10)
    pvi.sample(bomb, data(), store=f"{folder}/draws", checkpoint=place, **long())


def resumed(number: int, folder: str) -> dict[str, Any]:
    """It is gone on with."""
    cut_small()
    return _caught(lambda: pvi.resume(f"{folder}/run", pvi.sgld(net()), data(), progress=False))


if __name__ == "__main__":
    run_job(stores, mesh, refusals, full, killed, resumed)
