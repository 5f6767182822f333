"""Draws on disk in Zarr v3, as they are made.

One array ``(chain, draw, *shape)`` per named tensor in the group ``posterior``, statistics in
``sample_stats``, the warm-up in groups of its own. The names, dimensions and coordinates are
ArviZ's, so that ``xarray.open_datatree(path)`` is what ``Draws.to_arviz`` gives, also while the run
is going on. Where the model's own quantities are not what is sampled (constrained sites, learned
scales), they are in ``posterior`` and what is sampled in ``unconstrained_posterior``. Particles of
which only the last state is the sample are in ``particles``, since a reader would take them for
chains.

Memory: draws wait in a buffer of at most 64 MB for their chunk to be full. A chunk that is not full
yet is written when the run is saved, looked at or over, and every 30 seconds. Where one draw of all
particles is larger than half of the buffer, a thread writes it while the next steps are made.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch

from particlevi._checks import check_choice
from particlevi.storage.chunking import block_length, is_large
from particlevi.storage.diskstore import DiskStore
from particlevi.storage.hierarchy import check_zarr
from particlevi.storage.keeping import Keep
from particlevi.storage.store import InMemory, Recording, Storage, Store, check_dtype
from particlevi.storage.team import Team
from particlevi.typing import JSON

__all__ = ["OnDisk", "as_storage"]

_WRITERS_BYTES = 2**27
"""Copies of chunks on their way to disk: about ten at a time."""


@dataclass(frozen=True, eq=False)
class OnDisk:
    """Keep the draws on disk, in a Zarr v3 hierarchy that ArviZ and xarray read.

    Args:
        path: of the folder, which must not be there yet.
        keep: what is kept of a draw, as in ``InMemory``.
        dtype: of the draws; that of the potential if absent. ``torch.bfloat16`` is written as
            float32 with 16 bits of zeros, and compressed, since NumPy has no such type.
        warmup: keep every ``thin``-th step of the warm-up too.
        compress: pack the bytes (Blosc, Zstandard): some 10 % less room, and several times the
            time to write. Of bfloat16 half the bytes are zeros, and they are packed anyhow.

    Raises:
        ImportError: zarr is not installed.
        TypeError: a dtype that is not one of floating-point numbers.

    Examples:
        >>> import tempfile, torch, particlevi as pvi
        >>> normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=2)
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = folder.name + "/draws.zarr"
        >>> draws = pvi.sample(
        ...     pvi.sghmc(normal), step_size=0.5, num_particles=4, num_draws=100, progress=False,
        ...     store=pvi.storage.OnDisk(path, warmup=True),
        ... )
        >>> torch.equal(pvi.load(path, normal).particles, draws.particles)
        True
        >>> folder.cleanup()
    """

    path: str | Path
    keep: Keep = None
    dtype: torch.dtype | None = None
    warmup: bool = False
    compress: bool = False

    @property
    def shared(self) -> bool:
        """All processes of a run write to the path."""
        return True

    @property
    def sharded(self) -> bool:
        """The first process can read all of them."""
        return False

    def __post_init__(self) -> None:
        for name, flag in (("warmup", self.warmup), ("compress", self.compress)):
            check_choice(name, flag, [True, False])
        if self.dtype is not None:
            check_dtype(self.dtype)
        check_zarr()

    def nbytes(self, num_particles: int, num_draws: int, size: int, dtype: torch.dtype) -> int:
        """Memory of the draws in bytes: of those that wait, and of chunks being written."""
        draw = num_particles * size * dtype.itemsize
        held = 1 if is_large(draw) else block_length(draw, num_draws)
        return draw * held + min(draw * num_draws, _WRITERS_BYTES)

    def check(self) -> None:
        """Refuse a place where no run can begin.

        Raises:
            FileExistsError: there is something already.
            OSError: nothing can be written there.
        """
        path = Path(self.path).absolute()
        if path.exists():
            raise FileExistsError(
                f"{path} is there already: pvi.load({str(path)!r}) reads the draws of a run, "
                "pvi.resume goes on with one that wrote a checkpoint; or choose another path."
            )
        probe = _beside(path)
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise type(error)(
                error.errno, f"No draws can be written to {path} ({error.strerror})"
            ) from error

    def open(self, recording: Recording, receipt: JSON = None) -> Store:
        """A store for draws ``[P, T, K]``."""
        path = Path(self.path).absolute()
        if receipt is None:
            recording.team.together(self.check)
            if not recording.team.alone:
                _check_seen_by_all(path, recording.team)
            return DiskStore.create(path, recording, self.compress)
        if not isinstance(receipt, dict) or "path" not in receipt:
            raise ValueError(
                f"The run kept its draws in memory and in its checkpoint, not in {path}: leave "
                "store out, or give the one of the first run."
            )
        return DiskStore.reopen(path, recording, receipt)


def _beside(path: Path) -> Path:
    """A folder that is not there yet, in the nearest one that is."""
    there = next(parent for parent in path.parents if parent.exists())
    return there / f".{path.name}-{uuid4().hex[:8]}.partial"


def _check_seen_by_all(path: Path, team: Team) -> None:
    """All processes give one path and can write to one folder there.

    Raises:
        ValueError: in every process, with the number of one for which this does not hold.
    """
    probe, wanted = (Path(said) for said in team.said((str(_beside(path)), str(path))))

    def see() -> None:
        if path != wanted:
            raise ValueError(
                f"The draws of process {team.number} go to {path} and those of process 0 to "
                f"{wanted}: every process must give one path."
            )
        try:
            (probe / str(team.number)).touch(exist_ok=False)
        except OSError as error:
            raise ValueError(
                f"Process {team.number} cannot write where process 0 puts the draws, {path} "
                f"({error.strerror}): draws of several processes on disk need a folder that all of "
                "them see. Give a path there, or leave store out."
            ) from error

    try:
        team.together(lambda: probe.mkdir() if team.leads else None)
        team.together(see)
    finally:
        if team.leads:
            shutil.rmtree(probe, ignore_errors=True)


def as_storage(store: Storage | str | Path | None) -> Storage:
    """A storage from what ``sample`` was given: one, the path of one, or None for memory.

    Raises:
        TypeError: something else.
    """
    if store is None:
        return InMemory()
    if isinstance(store, (str, Path)):
        return OnDisk(store)
    if not all(hasattr(store, name) for name in ("open", "check", "nbytes", "keep")):
        raise TypeError(
            "store must be a path, pvi.storage.OnDisk(path) or pvi.storage.InMemory(), got "
            f"{type(store).__name__}."
        )
    return store
