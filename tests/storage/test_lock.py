"""One run per folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import torch

import particlevi as pvi
from particlevi.storage import lock
from particlevi.storage.lock import LOCK_FILE, locked

HOLD = """
import runpy, sys, time
from pathlib import Path
with runpy.run_path(sys.argv[2])["locked"](Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), lock.__file__], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def sample(folder):
    """A run in a folder."""
    normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=2)
    return pvi.sample(
        pvi.sgld(normal),
        step_size=0.1,
        num_particles=1,
        num_draws=2,
        progress=False,
        checkpoint=folder,
    )


def test_a_second_process_is_refused(holder, tmp_path):
    with pytest.raises(RuntimeError, match=f"in use by another run, process {holder.pid} on"):
        sample(tmp_path)


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    sample(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_process_that_is_killed_but_not_yet_waited_for_has_ended(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with locked(tmp_path):
        pass


def test_a_later_process_of_the_same_number_has_not_the_lock(tmp_path):
    earlier = {"pid": os.getppid(), "host": socket.gethostname(), "began": "x", "token": "x"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(earlier))
    with locked(tmp_path):
        pass


def test_the_lock_of_another_host_is_kept(tmp_path):
    (tmp_path / LOCK_FILE).write_text(
        json.dumps({"pid": 1, "host": "elsewhere", "began": None, "token": "x"})
    )
    with pytest.raises(RuntimeError, match="process 1 on elsewhere"), locked(tmp_path):
        pass


def test_a_lock_whose_writer_was_killed_before_writing_is_taken(tmp_path):
    (tmp_path / LOCK_FILE).write_bytes(b"")
    with locked(tmp_path):
        pass


def test_a_second_run_of_the_same_process_is_refused(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(RuntimeError, match=f"process {os.getpid()} on"),
        locked(tmp_path),
    ):
        pass


def test_of_many_threads_that_start_at_once_one_has_the_folder(tmp_path):
    begin, end = threading.Barrier(8), threading.Barrier(8)
    outcomes = []

    def run():
        begin.wait()
        try:
            with locked(tmp_path):
                outcomes.append("has it")
                end.wait()
        except RuntimeError:
            outcomes.append("refused")
            end.wait()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(outcomes) == ["has it"] + ["refused"] * 7


def test_a_run_that_was_refused_leaves_no_folder(tmp_path):
    folder = tmp_path / "run"
    bad = pvi.from_log_density(lambda theta: theta.sum() * torch.nan, num_params=2)
    with pytest.raises(ValueError, match="not finite at the start"):
        pvi.sample(pvi.sgld(bad), step_size=0.1, num_particles=1, checkpoint=folder)
    assert not folder.exists()


def test_a_process_is_told_from_a_later_one_of_its_number_by_when_it_began():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as later:
        began = lock._began(later.pid)
        later.communicate(b"\n")
    assert began is not None
    assert began != lock._began(os.getpid())
    assert lock._began(os.getpid()) == lock._began(os.getpid())
