"""The folder of a run's checkpoint: one run has it at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from particlevi.running.saving import STATE_FILE
from particlevi.running.world import RunWorld
from particlevi.storage.lock import locked
from particlevi.storage.sealed import remove_left_over

__all__ = ["new_run", "run_that_is_there"]


@contextmanager
def run_that_is_there(folder: Path, world: RunWorld) -> Iterator[None]:
    """Have the folder of a checkpoint for a run that goes on there."""
    with locked(folder) if world.leads else nullcontext():
        if world.leads:
            remove_left_over(folder)
        yield


@contextmanager
def new_run(folder: Path | None, world: RunWorld) -> Iterator[None]:
    """Have the folder of a checkpoint for a run that begins there."""
    if folder is None or not world.leads:
        yield
        return
    _check_folder(folder)
    with locked(folder):
        _check_folder(folder)
        remove_left_over(folder)
        yield


def _check_folder(folder: Path) -> None:
    """A run can begin there."""
    if (folder / STATE_FILE).exists():
        raise FileExistsError(
            f"{folder} already holds a run: go on with it by pvi.resume({str(folder)!r}, sampler, "
            "data), or choose another folder."
        )
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"checkpoint must be a folder, got the file {folder}.")
