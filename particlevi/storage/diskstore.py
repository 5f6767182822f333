"""The store of a run whose draws go to disk."""

from __future__ import annotations

import errno
import json
import math
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from particlevi._warning import warn
from particlevi.drawset import DrawSet
from particlevi.drawset.lazy import LazyTensor
from particlevi.storage import drawfile
from particlevi.storage.behind import Behind
from particlevi.storage.chunking import block_length, chunk_shape, is_large
from particlevi.storage.groups import Names, Own, check_name, group_names, group_names_of
from particlevi.storage.hierarchy import DRAW, Hierarchy
from particlevi.storage.rounding import Rounding
from particlevi.storage.series import Series, plain, write_together
from particlevi.storage.store import Part, Recording
from particlevi.storage.team import Team
from particlevi.storage.zarrsource import ZarrSource, read_stats
from particlevi.typing import JSON

__all__ = ["DiskStore"]

_SECONDS = 30.0
_STATS_BYTES = 2**20
_LOOKED_AT = 2**16
_TYPES = {torch.float64: "f8", torch.float32: "f4", torch.float16: "f2", torch.bfloat16: "f4"}


class DiskStore:
    """Draws ``[P, T, K]`` and their statistics in a hierarchy; made by ``create`` or ``reopen``.

    What a commit has announced is whole and stays: chunks are replaced by chunks that hold the
    same draws and more, and the number of draws grows after they are there. Of several processes
    each writes the chunks that hold its chains only; the first writes all other files, and says
    how many draws there are once every process has written them.

    A large draw is written by a thread, from the tensor itself, which must stay as it is. It is
    announced when the next one comes or the monitor looks, so that there is one at a time.
    """

    def __init__(self, hierarchy: Hierarchy, recording: Recording, run: str, count: int):
        self.hierarchy = hierarchy
        self.recording = recording
        self.team: Team = recording.team
        self.run = run
        self.count: int = count
        self.committed: int = count
        self.failed: bool = False
        self.noted: float = time.monotonic()
        width = recording.recorder.size
        self.rounding: Rounding = Rounding(recording.dtype, max(1, width // _LOOKED_AT))
        draw = recording.num_particles * width * recording.dtype.itemsize
        self.length: int = block_length(draw, recording.num_draws)
        self.large: bool = is_large(draw)
        self.behind: Behind = Behind()
        self.values: dict[str, dict[str, Series]] = {}
        self.stats: dict[str, dict[str, Series]] = {}
        self.names: Names = group_names(recording.known["facts"].kind)
        self.own: Own = Own(recording)

    @classmethod
    def create(cls, path: Path, recording: Recording, compress: bool) -> DiskStore:
        """A hierarchy with room for the draws, and none in it."""
        team, run = recording.team, str(recording.team.said(uuid4().hex))
        empty = torch.empty(recording.num_particles, 0, recording.recorder.size)
        known = DrawSet(particles=empty, **recording.known)

        def make() -> None:
            if team.leads:
                made = cls(Hierarchy(path, _attributes(known, run, recording)), recording, run, 0)
                made._warn_of_space()
                for warm in (True, False):
                    if made._room(warm):
                        made._make(warm, compress)
                made.describe(known)

        team.together(make)
        store = cls(Hierarchy(path), recording, run, 0)
        store._open_series()
        return store

    @classmethod
    def reopen(cls, path: Path, recording: Recording, receipt: Mapping[str, JSON]) -> DiskStore:
        """The draws of a receipt; those after them are made anew, over the old ones."""
        team, run, count = recording.team, str(receipt["run"]), receipt["count"]
        assert isinstance(count, int)

        def prepare() -> None:
            if team.leads:
                hierarchy = Hierarchy(path)
                hierarchy.remove_left_over()
                found = cls(hierarchy, recording, run, count)
                for warm in (True, False):
                    if found._room(warm):
                        found._make_room(warm)
                found.hierarchy.commit()

        team.together(lambda: _check(path, receipt, count))
        team.together(prepare)
        store = cls(Hierarchy(path), recording, run, count)
        store._open_series()
        return store

    def _room(self, warm: bool) -> int:
        num_warmup = self.recording.num_warmup
        return num_warmup if warm else self.recording.num_draws - num_warmup

    def _filled(self, warm: bool) -> int:
        num_warmup = self.recording.num_warmup
        return min(self.count, num_warmup) if warm else max(0, self.count - num_warmup)

    def _warn_of_space(self) -> None:
        recording = self.recording
        wanted = recording.num_particles * recording.num_draws * recording.recorder.size
        wanted *= recording.dtype.itemsize
        free = shutil.disk_usage(self.hierarchy.path).free
        if wanted > free:
            warn(
                f"The draws take {wanted / 1e9:.1f} GB if none is left out, and "
                f"{free / 1e9:.1f} GB are free at {self.hierarchy.path}.",
            )

    def _make(self, warm: bool, compress: bool) -> None:
        """Arrays of the draws, and coordinates."""
        recording, room = self.recording, self._room(warm)
        names, length = self.names.prefixed(warm), min(self.length, room)
        tensors = {
            (names.raw(self.own.replaced, n), n): s for n, s in recording.recorder.parts.items()
        }
        tensors |= {(names.posterior, name): shape for name, shape in self.own.shapes.items()}
        said: dict[str, JSON] = {"torch_dtype": str(recording.dtype).removeprefix("torch.")}
        kind, squeeze = _TYPES[recording.dtype], compress or recording.dtype == torch.bfloat16
        for (group, name), shape in tensors.items():
            check_name(name)
            chunks = chunk_shape(recording.num_particles, length, shape, int(kind[1]))
            dims = (names.chain, DRAW, *(f"{name}_dim_{axis}" for axis in range(len(shape))))
            full = (recording.num_particles, room, *shape)
            self.hierarchy.add(
                group, name, full, chunks, dims, kind, squeeze=squeeze, attributes=said
            )
        for group in {names.posterior, *(group for group, _ in tensors)}:
            self._coordinates(group, room)

    def _coordinates(self, group: str, room: int) -> None:
        chains = np.arange(self.recording.num_particles)
        chain = self.names.chain
        self.hierarchy.put(group, chain, chains, (chain,))
        self.hierarchy.put(group, DRAW, np.arange(room), (DRAW,))
        self.hierarchy.counts[group] = 0
        known = self.recording.known.get("coordinates")
        if known is not None and f"{group}/theta" in self.hierarchy.nodes:
            self.hierarchy.put(group, "theta_dim_0", known.numpy(), ("theta_dim_0",))

    def _make_room(self, warm: bool) -> None:
        """Arrays that are there, made as long as the run."""
        names, room = self.names.prefixed(warm), self._room(warm)
        for group in (names.posterior, names.unconstrained, names.stats):
            for name in self.hierarchy.names(group) if group in self.hierarchy.nodes else []:
                if name != DRAW and DRAW in self.hierarchy.dims(f"{group}/{name}"):
                    self.hierarchy.make_room(group, name, room)
            if group in self.hierarchy.nodes:
                self._coordinates(group, room)
                self.hierarchy.counts[group] = self._filled(warm)

    def _open_series(self) -> None:
        """Go on with the arrays of the draws that are there."""
        for warm in (True, False):
            names = self.names.prefixed(warm)
            series = self.values[names.posterior] = dict[str, Series]()
            for group in (names.posterior, names.unconstrained):
                for name in self.hierarchy.names(group) if group in self.hierarchy.nodes else []:
                    if self.hierarchy.dims(f"{group}/{name}")[:2] == [names.chain, DRAW]:
                        series[f"{group}/{name}"] = self._series(
                            self.hierarchy.reader(group, name),
                            f"{group}/{name}",
                            self._filled(warm),
                            self.recording.dtype,
                        )

    def _series(self, like: Any, name: str, start: int, dtype: torch.dtype | None = None) -> Series:
        """An array as this process fills it: its chains, all, or none.

        Args:
            like: what tells shape, chunks, type and draws.
            name: ``"group/name"``.
            start: draws that are there.
            dtype: of what is put.
        """
        team, axis = self.team, len(like.shape[:2]) - 1
        staged = team.spread and axis > 0 and like.chunks[0] > 1
        mine = team.leads if staged or axis == 0 or not team.spread else team.writes
        return Series(
            self.hierarchy.array(*name.split("/")) if mine else None,
            axis,
            like.chunks[axis],
            start,
            dtype,
            rows=self.recording.here,
            staged=staged,
            like=like,
        )

    def append(self, kept: Tensor, stats: Mapping[str, Tensor | float]) -> None:
        """One draw of every particle, which is not copied if it is large.

        Raises:
            OSError: the disk is full, or fails in another way; of a large draw, at the next one.
            RuntimeError: the large draw before was changed since.
        """
        if self.large:
            self._commit_if_new()
        warm = self.count < self.recording.num_warmup
        names, place = self.names.prefixed(warm), self._filled(warm)
        try:
            self._put(names, place, kept, stats)
            self.count += 1
            if self._is_due(names, place):
                self.commit()
        except OSError as error:
            raise self._failure(error) from error

    def _is_due(self, names: Names, place: int) -> bool:
        """Whether the draws up to one at ``place`` of its group are to be announced at once."""
        if self.count in (self.recording.num_warmup, self.recording.num_draws):
            return True
        if self.large:
            return False
        series = [*self.values[names.posterior].values()]
        series += [each for each in self.stats[names.stats].values() if each.staged]
        late = self.team.alone and self._is_late()
        return late or any(each.due(place + 1) for each in series)

    def _put(
        self, names: Names, place: int, kept: Tensor, stats: Mapping[str, Tensor | float]
    ) -> None:
        series, parts = self.values[names.posterior], self.recording.recorder.parts
        sizes = [math.prod(shape) for shape in parts.values()]
        values: dict[str, Tensor] = {}
        for (name, shape), part in zip(parts.items(), kept.split(sizes, -1), strict=True):
            stored = part.unflatten(-1, shape) if shape else part[:, 0]
            values[f"{names.raw(self.own.replaced, name)}/{name}"] = stored
        if self.own.shapes:
            found = self.own.of(kept)
            values |= {f"{names.posterior}/{name}": found[name] for name in self.own.shapes}
        looked_at = kept[:, :: self.rounding.every]
        if kept.dtype != self.recording.dtype:
            self.rounding.note(looked_at, looked_at.to("cpu", self.recording.dtype))
        self._put_stats(names, place, stats)

        version = kept._version

        def put() -> None:
            for name, value in values.items():
                series[name].put(place, value)
            if kept._version != version:
                raise RuntimeError(
                    "The sampler changed the particles of a draw in place while it was being "
                    "written to disk: a step must give new tensors, such as position + change in "
                    "place of position.add_(change)."
                )

        if self.large:
            self.behind.start(put)
        else:
            put()

    def _put_stats(self, names: Names, place: int, stats: Mapping[str, Tensor | float]) -> None:
        series = self.stats.setdefault(names.stats, {})
        for name, value in stats.items():
            shown = "lp" if name == "potential" else name
            if shown not in series:
                series[shown] = self._new_stat(names, shown, value, place)
            series[shown].put(place, -value if name == "potential" else value)

    def _new_stat(self, names: Names, name: str, value: Tensor | float, place: int) -> Series:
        if f"{names.stats}/{name}" in self.hierarchy.nodes:
            found = self.hierarchy.reader(names.stats, name)
            return self._series(found, f"{names.stats}/{name}", place)
        warm = names.posterior.startswith("warmup_")
        room, num = self._room(warm), self.recording.num_particles
        full = (num, room) if isinstance(value, Tensor) else (room,)
        dims = (names.chain, DRAW) if isinstance(value, Tensor) else (DRAW,)
        dtype, attributes = np.dtype("f8"), dict[str, JSON]()
        if isinstance(value, Tensor):
            dtype = plain(value[:0]).dtype
            attributes = {"torch_dtype": str(value.dtype).removeprefix("torch.")}
        length = max(2, min(room, _STATS_BYTES // (8 * num)))
        chunks = (num, length) if isinstance(value, Tensor) else (length,)
        check_name(name)
        if self.team.leads:
            self.hierarchy.add(names.stats, name, full, chunks, dims, dtype, attributes=attributes)
            if f"{names.stats}/{DRAW}" not in self.hierarchy.nodes:
                self._coordinates(names.stats, room)
        return self._series(_Blank(full, chunks, dtype), f"{names.stats}/{name}", place)

    def commit(self) -> None:
        """Put all draws on disk, and then say how many there are."""
        try:
            self.behind.wait()
        except Exception:
            self._fail()
            raise
        for warm in (True, False):
            names, filled = self.names.prefixed(warm), self._filled(warm)
            series = [*self.values[names.posterior].values()]
            series += self.stats.get(names.stats, {}).values()
            for each in series:
                if not each.staged:
                    each.write(filled)
            write_together([each for each in series if each.staged], filled, self.team)
            for group in (names.posterior, names.unconstrained, names.stats):
                if group in self.hierarchy.nodes:
                    self.hierarchy.counts[group] = filled
        self.team.together(_nothing)  # All have written.
        if self.team.leads:
            self.hierarchy.commit()
        self.team.together(_nothing)
        self.committed, self.noted = self.count, time.monotonic()

    def _is_late(self) -> bool:
        return time.monotonic() - self.noted > _SECONDS

    def tend(self) -> None:
        """Announce a large draw that is written, and what several processes have kept for long."""
        if self.team.alone:
            due = self.large and not self.behind.busy
        else:
            due = bool(self.team.said(self._is_late()))
        if due:
            self._commit_if_new()

    def abandon(self) -> None:
        """End with the draws that were announced, where others are not to be waited for."""
        if not self.team.alone:
            with suppress(Exception):
                self.behind.wait()
            self._fail()

    def _fail(self) -> None:
        """End with the draws that were announced."""
        self.failed, self.count = True, self.committed

    def _failure(self, error: OSError) -> OSError:
        """What went wrong with the disk; the draws that were whole before stay."""
        self._fail()
        what = "The disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        return type(error)(
            error.errno,
            f"{what}: no more draws can be written to {self.hierarchy.path}. The "
            f"{self.committed} draws before are whole, and pvi.load reads them",
        )

    def flush(self) -> JSON:
        """Put all draws on disk; the receipt by which ``reopen`` finds them."""
        self._commit_if_new()
        return {"run": self.run, "count": self.count, "path": str(self.hierarchy.path)}

    def _commit_if_new(self) -> None:
        if self.failed or self.committed == self.count:
            return
        try:
            self.commit()
        except OSError as error:
            raise self._failure(error) from error

    def read(self, start: int, stop: int) -> Part:
        """Draws ``start`` to ``stop``, which stay on disk; statistics, in memory."""
        self._commit_if_new()
        self.rounding.tell()
        warm = self.recording.num_warmup > 0 and start < self.recording.num_warmup
        first = 0 if warm else self.recording.num_warmup
        names = self.names.prefixed(warm)
        parts = {
            f"{names.raw(self.own.replaced, name)}/{name}": shape
            for name, shape in self.recording.recorder.parts.items()
        }
        path, here = self.hierarchy.path, self.recording.here
        values = LazyTensor.of(
            ZarrSource(path, parts, self.recording.dtype),
            here,
            range(start - first, stop - first),
            self.recording.recorder.size,
        )
        known = self.hierarchy if self.team.leads else Hierarchy(path)
        stats = read_stats(known, names.stats, start - first, stop - first)
        rows = slice(here.start, here.stop)
        return Part(values, {n: v[rows] if v.ndim > 1 else v for n, v in stats.items()})

    def describe(self, draws: DrawSet) -> None:
        """Write down what the run was."""
        if self.failed or not self.team.leads:
            return
        attributes = _attributes(draws, self.run, self.recording)
        self.hierarchy.attributes = attributes
        for name, value in drawfile.tensors_of(draws).items():
            dims = [f"{name}_dim_{axis}" for axis in range(value.ndim)]
            self.hierarchy.put("constant_data", name, plain(value), dims)
        self.hierarchy.commit()


@dataclass(frozen=True)
class _Blank:
    """An array without draws, which the first process makes."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]

    def __getitem__(self, where: Any) -> int:
        return 0


def _nothing() -> None:
    """Wait for the others."""


def _check(path: Path, receipt: Mapping[str, JSON], count: int) -> None:
    """The draws of a receipt are there."""
    if not path.exists():
        raise FileNotFoundError(
            f"The draws of the run are not in {path}: they were written to {receipt['path']}; "
            "give the place where they are, store=path."
        )
    hierarchy = Hierarchy(path)
    if hierarchy.attributes.get("run") != receipt["run"]:
        raise ValueError(
            f"{path} holds the draws of another run: give the store of this one, which was "
            f"{receipt['path']}."
        )
    if sum(hierarchy.counts.get(n, 0) for n in group_names_of(hierarchy)) < count:
        raise ValueError(f"{path} holds fewer draws than the checkpoint tells, {count}.")


def _attributes(draws: DrawSet, run: str, recording: Recording) -> dict[str, JSON]:
    """Of the root: numbers and strings, which netCDF holds too, and all else as JSON."""
    shown: dict[str, JSON] = {"inference_library": "particlevi", "run": run}
    others = {
        **draws.attrs,
        "interacting": draws.interacting,
        "interrupted": draws.interrupted,
        "diverged": draws.diverged,
        "chains": draws.chains,
    }
    for name, value in others.items():
        plain = isinstance(value, (str, int, float)) and not isinstance(value, bool)
        shown[name] = value if plain else json.dumps(value, default=float)
    if math.isfinite(draws.seconds):
        shown["sampling_time"] = draws.seconds
    shown["particlevi"] = json.dumps(
        {
            **drawfile.meta_of(draws),
            "parts": {name: list(s) for name, s in recording.recorder.parts.items()},
            "rows": recording.known["chains"],
            "own": sorted(Own(recording).replaced),
            "dtype": str(recording.dtype).removeprefix("torch."),
        },
        default=float,
    )
    return shown
