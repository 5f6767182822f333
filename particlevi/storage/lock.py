"""One run per folder: a lock file that names the process which has it."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

if sys.platform != "win32":
    import fcntl

__all__ = ["LOCK_FILE", "locked"]

LOCK_FILE = ".particlevi-lock"
_MINE: set[str] = set()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder for oneself; it is made if it is not there, and removed if it stays empty.

    The lock of a process that has ended on this host, also by SIGKILL, is taken over. A folder in
    which nothing can be written needs no lock.

    Args:
        folder: of a run.

    Raises:
        RuntimeError: another run has it, here or on another host.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    token = uuid4().hex
    has_lock = False
    _MINE.add(token)
    try:
        has_lock = _take(folder / LOCK_FILE, token)
        yield
    finally:
        if has_lock:
            _give_back(folder / LOCK_FILE, token)
        _MINE.discard(token)
        if new:
            with suppress(OSError):
                folder.rmdir()


def _take(path: Path, token: str) -> bool:
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except PermissionError:
            return False
        except OSError as error:
            if error.errno == errno.EROFS:
                return False
            raise
        try:
            if not _alone(file, path):
                continue
            owner = _owner(file)
            if owner is not None and _alive(owner):
                raise RuntimeError(
                    f"{path.parent} is in use by another run, process {owner['pid']} on "
                    f"{owner['host']}: wait for its end, or choose another folder. If it is not "
                    f"running, delete {path}."
                )
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_self(token)).encode(), 0)
            return True
        finally:
            os.close(file)


def _give_back(path: Path, token: str) -> None:
    with suppress(OSError):
        file = os.open(path, os.O_RDWR)
        try:
            owner = _owner(file) if _alone(file, path) else None
            if owner is not None and owner["token"] == token:
                path.unlink()
        finally:
            os.close(file)


def _alone(file: int, path: Path) -> bool:
    """Nobody else reads or writes the lock until it is closed; False if it is no longer there."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _owner(file: int) -> dict[str, Any] | None:
    """What is written in the lock; None if its writer was killed before."""
    try:
        found = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return None
    complete = isinstance(found, dict) and {"pid", "host", "began", "token"} <= found.keys()
    return found if complete else None


def _self(token: str) -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "began": _began(pid), "token": token}


def _alive(owner: dict[str, Any]) -> bool:
    """Whether a process is running, as far as it can be told from here."""
    if owner["host"] != socket.gethostname():
        return True
    pid = int(owner["pid"])
    if pid == os.getpid():
        return owner["token"] in _MINE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    began = _began(pid)
    return began is None or owner["began"] is None or began == owner["began"]


def _began(pid: int) -> str | None:
    """When a process began, to tell it from a later one of the same number; None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return f"{boot} {fields[19]}" if fields[0] != "Z" else "ended"
