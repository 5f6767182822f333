"""Workers in processes, for the tests: run by ``python -m tests.optim.processes``, or by torchrun.

The processes are forked from one that has imported torch, since that import costs more than all the
rest. What each finds is printed as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from particlevi.optim import LeaderSGD, Particles, Processes, SafeguardSGD, Workers

SIZE = 4
DIM = 6
STEPS = 12
VICTIM = 2
DEATH = 5
LEADER = {"lr": 0.1, "pull": 0.3, "period": 2, "window": 3, "momentum": 0.5, "num_groups": 2}
LEADER |= {"global_pull": 0.2, "global_period": 3, "stale_pull": 0.1, "global_stale_pull": 0.2}
SAFEGUARD = {"lr": 0.1, "window": 4, "long_window": 8}


def starts() -> Tensor:
    """Where the workers of leader SGD start, ``[4, 6]``."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(SIZE, DIM, generator=generator, dtype=torch.float64)


def targets(step: int) -> Tensor:
    """What the workers' data say at a step, ``[4, 6]``."""
    generator = torch.Generator().manual_seed(100 + step)
    return 0.1 * torch.randn(SIZE, DIM, generator=generator, dtype=torch.float64)


def led(workers: Workers, here: slice | int) -> dict[str, Any]:
    """Leader SGD; ``here`` are the rows of this process."""
    x = starts()[here].clone().requires_grad_()
    optimizer = LeaderSGD([x], workers=workers, **LEADER)
    for step in range(STEPS):
        optimizer.zero_grad()
        losses = (x - targets(step)[here]).square().sum(-1)
        losses.sum().backward()
        optimizer.step(loss=losses.detach())
    point = x.detach().clone()
    with optimizer.averaged():
        average = x.detach().clone()
    return {
        "point": point.tolist(),
        "average": average.tolist(),
        "back": bool(torch.equal(x.detach(), point)),
    }


def guarded(workers: Workers, here: slice | int, attack: str) -> dict[str, Any]:
    """Safeguard SGD; the last worker flips signs or sends NaN, or one dies."""
    x = torch.ones(SIZE, DIM, dtype=torch.float64)[here].clone().requires_grad_()
    optimizer = SafeguardSGD([x], workers=workers, **SAFEGUARD)
    for step in range(STEPS):
        sent = torch.ones(SIZE, DIM, dtype=torch.float64) * x.detach() - targets(step)
        if attack == "sign":
            sent[-1] *= -1
        if attack == "nan" and step >= DEATH:
            sent[-1] = torch.nan
        if attack == "death" and step >= DEATH:
            if here == VICTIM:
                os._exit(0)
            sent[VICTIM] = torch.nan
        x.grad = sent[here].clone()
        optimizer.step()
    state = optimizer.state[x]["step"].item()
    return {"point": x.detach().tolist(), "good": optimizer.good.tolist(), "steps": state}


def every(workers: Workers, here: slice | int) -> dict[str, Any]:
    """All that the tests ask."""
    found = {"led": led(workers, here)}
    for attack in ("sign", "nan", "death"):
        found[attack] = guarded(workers, here, attack)
    return found


def in_one_process() -> dict[str, Any]:
    """The same with workers along an axis."""
    return every(Particles(), slice(None))


def worker(number: int, folder: str) -> None:
    """One process."""
    torch.set_num_threads(1)
    port = Path(folder, "port")
    if number == 0:
        store = dist.TCPStore("127.0.0.1", 0, SIZE, True, wait_for_workers=False)
        Path(folder, "new").write_text(str(store.port))
        Path(folder, "new").rename(port)
    else:
        while not port.exists():
            time.sleep(0.01)
        store = dist.TCPStore("127.0.0.1", int(port.read_text()), SIZE, False)
    dist.init_process_group("gloo", store=store, rank=number, world_size=SIZE)
    found = every(Processes(patience=4.0), number)
    Path(folder, str(number)).write_text(json.dumps(found))
    # Whoever holds the store leaves last.
    store.add("done", 1)
    while number == 0 and store.add("done", 0) < SIZE - 1:
        time.sleep(0.01)
    os._exit(0)


def forked() -> dict[str, Any]:
    """What each process finds."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(worker, (folder,), SIZE, start_method="fork")
        return {
            str(n): json.loads(Path(folder, str(n)).read_text())
            for n in range(SIZE)
            if Path(folder, str(n)).exists()
        }


def torchrun(folder: str) -> None:
    """One process of those that torchrun starts; nobody dies."""
    dist.init_process_group("gloo")
    workers, number = Processes(), dist.get_rank()
    found = {"led": led(workers, number), "sign": guarded(workers, number, "sign")}
    Path(folder, str(number)).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torchrun(sys.argv[1])
    else:
        print(json.dumps(forked()))
