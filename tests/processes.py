"""Processes for tests, forked from one that has imported torch, since that import costs most."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["ROOT", "forked", "run", "run_job", "started"]

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> str:
    """What a command prints; one thread for each of its processes."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def started(module: str, size: int, file: Path, job: str, *more: str) -> dict[int, Any]:
    """What a job of a module gives in each of so many processes."""
    run(sys.executable, "-m", module, str(size), str(file), job, *more)
    found: dict[int, Any] = pickle.loads(file.read_bytes())
    for number, what in found.items():
        assert not isinstance(what, str), f"process {number}: {what}"
    return found


def run_job(*jobs: Callable[..., Any]) -> None:
    """What ``started`` starts: a job by its name, with a folder if there is one."""
    size, file, name, *folder = sys.argv[1:]
    job = {job.__name__: job for job in jobs}[name]
    given = {"folder": folder[0]} if folder else {}
    Path(file).write_bytes(pickle.dumps(forked(int(size), partial(job, **given))))


def forked(size: int, job: Callable[[int], Any]) -> dict[int, Any]:
    """What ``job(number)`` gives in each process of a group; nothing of one that died."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_worker, (folder, size, job), size, start_method="fork")
        found = {n: Path(folder, str(n)) for n in range(size)}
        return {n: pickle.loads(path.read_bytes()) for n, path in found.items() if path.exists()}


def _worker(number: int, folder: str, size: int, job: Callable[[int], Any]) -> None:
    torch.set_num_threads(1)
    port = Path(folder, "port")
    if number == 0:
        store = dist.TCPStore("127.0.0.1", 0, size, True, wait_for_workers=False)
        Path(folder, "new").write_text(str(store.port))
        Path(folder, "new").rename(port)
    else:
        while not port.exists():
            time.sleep(0.01)
        store = dist.TCPStore("127.0.0.1", int(port.read_text()), size, False)
    dist.init_process_group("gloo", store=store, rank=number, world_size=size)
    try:
        found = job(number)
    except BaseException:
        found = traceback.format_exc()
    Path(folder, f"{number}.new").write_bytes(pickle.dumps(found))
    Path(folder, f"{number}.new").rename(Path(folder, str(number)))
    # Whoever holds the store leaves last.
    store.add("done", 1)
    deadline = time.monotonic() + 5
    while number == 0 and store.add("done", 0) < size and time.monotonic() < deadline:
        time.sleep(0.01)
    os._exit(0)
