"""Where draws go: a small protocol, and the store in memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

import torch
from torch import Tensor

from particlevi._checks import check_choice
from particlevi.drawset import DrawSet
from particlevi.storage import checkpoint as files
from particlevi.storage.keeping import Keep
from particlevi.storage.recording import Recorder
from particlevi.storage.rounding import Rounding
from particlevi.storage.team import Alone, Team
from particlevi.typing import JSON

__all__ = ["InMemory", "MemoryStore", "Part", "Recording", "Storage", "Store", "check_dtype"]


class Part(NamedTuple):
    """Consecutive draws: what was kept ``[P, T, K]`` and statistics ``[P, T]`` or ``[T]``."""

    values: Tensor
    stats: dict[str, Tensor]


class Store(Protocol):
    """Where the draws of a run go."""

    @property
    def count(self) -> int:
        """Draws appended so far."""
        ...

    def append(self, kept: Tensor, stats: Mapping[str, Tensor | float]) -> None:
        """One draw of every particle, ``[P, K]``; statistics ``[P]``, or one number for all."""
        ...

    def flush(self) -> JSON:
        """Make what was appended outlive the process; the receipt by which to ``restore`` it."""
        ...

    def read(self, start: int, stop: int) -> Part:
        """Draws ``start`` to ``stop``."""
        ...

    def describe(self, draws: DrawSet) -> None:
        """Write down what the run was, once it has ended, if the draws outlive the process."""
        ...

    def tend(self) -> None:
        """Do, when the monitor looks, what all processes of the run have to do at one time."""
        ...

    def abandon(self) -> None:
        """Do nothing more together with other processes: the run has failed."""
        ...


@dataclass(frozen=True, eq=False)
class Recording:
    """What is to be recorded of a run.

    Attributes:
        recorder: from particles to what is kept of them.
        num_particles: P, those whose states are draws in this store.
        num_draws: T, those of the warm-up included.
        num_warmup: draws of the warm-up among them.
        dtype: of the draws.
        folder: of the run's checkpoint, if any.
        known: what is known of the draws before the first, as fields of a ``DrawSet``.
        here: those of the P whose draws come from this process.
        team: the processes of the run, if they share the store.
    """

    recorder: Recorder
    num_particles: int
    num_draws: int
    num_warmup: int
    dtype: torch.dtype
    folder: Path | None
    known: Mapping[str, Any]
    here: range
    team: Team = field(default_factory=Alone)


class Storage(Protocol):
    """What is kept of a draw, and in what kind of store."""

    @property
    def keep(self) -> Keep:
        """What is kept of a draw."""
        ...

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the draws; that of the potential if None."""
        ...

    @property
    def warmup(self) -> bool:
        """Whether draws of the warm-up are kept too."""
        ...

    @property
    def shared(self) -> bool:
        """Whether all processes of a run put their draws in one place; else they are gathered."""
        ...

    @property
    def sharded(self) -> bool:
        """Whether they are not gathered at the end: each process has the draws of its chains."""
        ...

    def nbytes(self, num_particles: int, num_draws: int, size: int, dtype: torch.dtype) -> int:
        """Memory of the draws in bytes."""
        ...

    def check(self) -> None:
        """Refuse, before anything is computed, a place where no run can begin."""
        ...

    def open(self, recording: Recording, receipt: JSON = None) -> Store:
        """A store for draws ``[P, T, K]``; with a receipt, one that holds its draws and no others.

        Raises:
            FileNotFoundError: what the receipt names is missing.
            ValueError: it is damaged, or of another run.
        """
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Keep the draws in memory.

    Args:
        keep: what is kept of a draw: all parameters by default, name patterns such as ``["2.*"]``,
            coordinates ``LongTensor [K]``, one of ``pvi.storage.parameters``, ``outputs_at``,
            ``projections`` and ``moments``, or a list of them.
        dtype: of the draws; that of the potential if absent.
        warmup: keep every ``thin``-th step of the warm-up too.
        sharded: of a run over several processes, leave the draws where they were made: ``sample``
            gives every process those of its own chains, whose numbers are in ``draws.chains``,
            and the first has no others.

    Raises:
        TypeError: a dtype that is not one of floating-point numbers.

    Examples:
        >>> import torch
        >>> InMemory(keep="*.bias", dtype=torch.bfloat16).nbytes(4, 1000, 10, torch.bfloat16)
        80000
    """

    keep: Keep = None
    dtype: torch.dtype | None = None
    warmup: bool = False
    sharded: bool = False

    @property
    def shared(self) -> bool:
        """Each process has its draws in its memory."""
        return False

    def __post_init__(self) -> None:
        for name, flag in (("warmup", self.warmup), ("sharded", self.sharded)):
            check_choice(name, flag, [True, False])
        if self.dtype is not None:
            check_dtype(self.dtype)

    def nbytes(self, num_particles: int, num_draws: int, size: int, dtype: torch.dtype) -> int:
        """Memory of the draws in bytes."""
        return num_particles * num_draws * size * dtype.itemsize

    def check(self) -> None:
        """Memory can always be begun in."""

    def open(self, recording: Recording, receipt: JSON = None) -> Store:
        """A store for draws ``[P, T, K]``."""
        store = MemoryStore(
            recording.num_particles,
            recording.num_draws,
            recording.recorder.size,
            recording.dtype,
            recording.folder,
        )
        if receipt is not None:
            store.restore(receipt)
        return store


class MemoryStore:
    """Draws ``[P, T, K]`` and their statistics in memory, filled from the front.

    Args:
        num_particles, num_draws, size: P, T and K.
        dtype: of the draws.
        folder: where ``flush`` writes what is new, each time to a file of its own.
    """

    def __init__(
        self,
        num_particles: int,
        num_draws: int,
        size: int,
        dtype: torch.dtype,
        folder: Path | None = None,
    ):
        self.num_draws = num_draws
        self.folder = folder
        self.count: int = 0
        self.values: Tensor = torch.empty(num_particles, num_draws, size, dtype=dtype)
        self.stats: dict[str, Tensor] = {}
        self.saved: list[int] = [0]
        self.run: str = uuid4().hex
        self.rounding: Rounding = Rounding(dtype)

    def append(self, kept: Tensor, stats: Mapping[str, Tensor | float]) -> None:
        """One draw of every particle."""
        k = self.count
        self.values[:, k] = kept
        self.rounding.note(kept, self.values[:, k])
        for name, value in stats.items():
            if name not in self.stats:
                self.stats[name] = self._blank(value)
            self.stats[name][..., k] = value
        self.count += 1

    def _blank(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return torch.empty(self.values.shape[:2], dtype=value.dtype)
        return torch.empty(self.num_draws, dtype=torch.float64)

    def read(self, start: int, stop: int) -> Part:
        """Draws ``start`` to ``stop``, as views; a warning if storing has widened their law."""
        self.rounding.tell()
        return self._views(start, stop)

    def describe(self, draws: DrawSet) -> None:
        """They do not outlive the process."""

    def tend(self) -> None:
        """There is nothing to do."""

    def abandon(self) -> None:
        """The draws stay."""

    def _views(self, start: int, stop: int) -> Part:
        stats = {name: value[..., start:stop] for name, value in self.stats.items()}
        return Part(self.values[:, start:stop], stats)

    def flush(self) -> JSON:
        """Write what is new to a file in the folder; the receipt tells where each file ends."""
        first, last = self.saved[-1], self.count
        if last > first and self.folder is not None:
            values, stats = self._views(first, last)
            flat = {f"stats.{name}": value.contiguous() for name, value in stats.items()}
            known = {"run": self.run, "first": first, "lost": _lost(values)}
            files.write(self._file(first, last), {"values": values.contiguous(), **flat}, known)
            self.saved = [*self.saved, last]
        return {"run": self.run, "ends": list(self.saved)}

    def restore(self, receipt: JSON) -> None:
        """Read the files of a receipt.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or of another run.
        """
        assert isinstance(receipt, dict)
        ends = receipt["ends"]
        assert isinstance(ends, list)
        self.run = str(receipt["run"])
        self.saved = [end for end in ends if isinstance(end, int)]
        self.count = 0
        for first, last in itertools.pairwise(self.saved):
            path = self._file(first, last)
            tensors, known = files.read(path)
            self._check_part(path, tensors["values"], known, first, last)
            self._extend(tensors)

    def _check_part(self, path: Path, values: Tensor, known: Any, first: int, last: int) -> None:
        if known["run"] != self.run or known["first"] != first:
            raise ValueError(
                f"{path} holds draws of another run, or of another place in this one: put back "
                "the file that was written under this name."
            )
        wanted = (self.values.shape[0], last - first, self.values.shape[2])
        if values.shape != wanted or values.dtype != self.values.dtype:
            raise ValueError(
                f"{path} must hold {self.values.dtype} {list(wanted)}, got {values.dtype} "
                f"{list(values.shape)}."
            )
        if _lost(values) != known["lost"]:
            raise ValueError(f"{path} holds draws that are not finite and were when it was made.")

    def _file(self, first: int, last: int) -> Path:
        assert self.folder is not None
        return self.folder / f"draws-{first:09d}-{last:09d}.safetensors"

    def _extend(self, tensors: Mapping[str, Tensor]) -> None:
        start, stop = self.count, self.count + tensors["values"].shape[1]
        self.values[:, start:stop] = tensors["values"]
        for key, value in tensors.items():
            if not key.startswith("stats."):
                continue
            name = key.removeprefix("stats.")
            if name not in self.stats:
                shape = self.values.shape[:2] if value.ndim == 2 else (self.num_draws,)
                self.stats[name] = torch.empty(shape, dtype=value.dtype)
            self.stats[name][..., start:stop] = value
        self.count = stop


def _lost(values: Tensor) -> list[int]:
    """Particles of ``[P, T, K]`` some draws of which are not finite."""
    found: list[int] = (~torch.isfinite(values).flatten(1).all(1)).nonzero().flatten().tolist()
    return found


def check_dtype(dtype: object) -> None:
    """A floating-point type."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(
            "The dtype of a storage must be a floating-point torch.dtype such as torch.bfloat16, "
            f"got {dtype!r}."
        )
