"""All that the package asks of ``torch.distributed``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from particlevi._checks import check_choice
from particlevi.errors import ParticleviError

__all__ = ["Peers", "ProcessLostError", "Processes", "are_several", "peers_of"]

Processes: TypeAlias = Literal["all", "one"] | dist.ProcessGroup | DeviceMesh
"""Over which processes the particles of a run are spread."""


class ProcessLostError(ParticleviError, RuntimeError):
    """Another process of the run ended. What was drawn here is in ``draws``."""


class Peers:
    """The processes of a group, numbered from 0, which go on without those that died.

    A collective in which a process dies raises RuntimeError in the others. ``regroup`` then makes
    a new group of those that are left; their numbers stay. It needs the store of the process group:
    under ``torchrun`` the agent holds it, otherwise process 0, which must then be among them.

    Args:
        group: a process group; the default one if None.
        patience: seconds to wait for the others before they count as dead.
        timeout: seconds after which a collective fails; three times the patience if absent.
        borrowed: talk over ``group`` itself, and not over a group of its own.
    """

    def __init__(
        self,
        group: Any = None,
        patience: float = 10.0,
        timeout: float | None = None,
        borrowed: bool = False,
    ) -> None:
        if not dist.is_initialized():
            raise RuntimeError(
                "There is no process group: call torch.distributed.init_process_group first, "
                "in a program that torchrun started."
            )
        self.ranks: list[int] = dist.get_process_group_ranks(group or dist.group.WORLD)
        self.size: int = len(self.ranks)
        self.number: int = self.ranks.index(dist.get_rank())
        self.alive: list[int] = list(range(self.size))
        self.patience = patience
        self.timeout: float = 3 * patience if timeout is None else timeout
        self._epoch = 0
        self.num_sent: int = 0
        self._meeting = _next_meeting(self.ranks)
        self._borrowed = borrowed
        self._group: Any = group if borrowed else self._new_group()

    def __deepcopy__(self, memo: dict[int, Any]) -> Peers:
        return self

    def _new_group(self) -> Any:
        return dist.new_group(
            [self.ranks[number] for number in self.alive],
            timeout=timedelta(seconds=self.timeout),
            # Names of groups of some processes repeat; those of all are counted.
            use_local_synchronization=len(self.alive) < dist.get_world_size(),
        )

    def all_gather(self, value: Tensor) -> Tensor:
        """The values of all, ``[size, ...]``; NaN for those that died."""
        found = [torch.empty_like(value) for _ in self.alive]
        dist.all_gather(found, value.contiguous(), group=self._group)
        rows = torch.full((self.size, *value.shape), torch.nan, dtype=value.dtype)
        rows = rows.to(value.device)
        rows[self.alive] = torch.stack(found)
        return rows

    def sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """The sums over all, in new storage."""
        return in_one(tensors, lambda flat: dist.all_reduce(flat, group=self._group))

    def largest(self, tensors: list[Tensor]) -> list[Tensor]:
        """The largest over all, element by element, in new storage."""
        operation = dist.ReduceOp.MAX
        return in_one(tensors, lambda flat: dist.all_reduce(flat, operation, group=self._group))

    def copy_from(self, number: int, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors of one of them, in new storage."""
        source = self.ranks[number]
        return in_one(tensors, lambda flat: dist.broadcast(flat, source, group=self._group))

    def gather(self, tensors: list[Tensor]) -> list[Tensor]:
        """Tensors ``[P, ...]`` of all, one after the other, where P may differ between them."""
        counts = [0] * len(self.alive)
        dist.all_gather_object(counts, len(tensors[0]), group=self._group)
        most, found = max(counts), []
        for tensor in tensors:
            padded = tensor.new_zeros(most, *tensor.shape[1:])
            padded[: len(tensor)] = tensor
            parts = [torch.empty_like(padded) for _ in counts]
            dist.all_gather(parts, padded, group=self._group)
            found.append(torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]))
        return found

    def swap(self, flat: Tensor, into: Tensor, sent: list[int], received: list[int]) -> None:
        """A message of ``sent[r]`` numbers to every process r, for one of ``received[r]``."""
        dist.all_to_all_single(into, flat, received, sent, group=self._group)
        self.num_sent += flat.numel() - sent[self.alive.index(self.number)]

    def objects(self, value: Any) -> list[Any]:
        """The values of all; of processes of one program, so what they send is trusted."""
        found: list[Any] = [None] * len(self.alive)
        dist.all_gather_object(found, value, group=self._group)
        return found

    def objects_of_first(self, value: Any) -> Any:
        """The value of the first of them."""
        box = [value]
        dist.broadcast_object_list(box, self.ranks[self.alive[0]], group=self._group)
        return box[0]

    def close(self) -> None:
        """Part from the others, once all are here."""
        dist.barrier(group=self._group)
        group, self._group = self._group, None
        if not self._borrowed:
            dist.destroy_process_group(group)

    def leave(self, reason: str) -> None:
        """End for a reason, which ``lost`` tells the others."""
        if self._group is None:
            return
        _store().set(f"{self._place}/left/{self.number}", reason)
        group, self._group = self._group, None
        dist.destroy_process_group(group)

    def lost(self, reason: str) -> ProcessLostError:
        """The error to raise after a collective failed: who ended, and why."""
        before = set(self.alive)
        try:
            self.regroup()
        except RuntimeError as error:
            return ProcessLostError(str(error))
        gone = sorted(before - set(self.alive))
        if not gone:
            return ProcessLostError(f"The processes of the run lost touch: {reason}")
        told = [self._told(number) for number in gone]
        return ProcessLostError(f"The run ended because of {'; '.join(told)}.")

    def _left(self) -> int:
        """How many have ended for a reason that they gave."""
        return sum(bool(_store().check([f"{self._place}/left/{number}"])) for number in self.alive)

    def _told(self, number: int) -> str:
        key = f"{self._place}/left/{number}"
        known = _store().check([key])
        why = _store().get(key).decode() if known else "it died or was killed"
        return f"process {self.ranks[number]} ({why})"

    @property
    def _place(self) -> str:
        return f"particlevi/peers/{self.ranks}/{self._meeting}"

    def regroup(self) -> bool:
        """Go on without those that do not answer within ``patience``; whether anyone died.

        Raises:
            RuntimeError: the others have gone on without this one.
        """
        # Without a reference to the group its connections close, and whoever waits for this process
        # notices: no exception that holds a frame of the collective may be alive here.
        group, self._group = self._group, None
        dist.destroy_process_group(group)
        del group
        store = _store()
        place = f"{self._place}/{self._epoch}"
        store.set(f"{place}/{self.number}", "alive")
        deadline = time.monotonic() + self.patience
        answered = [self.number]
        while time.monotonic() < deadline and len(answered) < len(self.alive) - self._left():
            if store.check([f"{place}/decided"]):
                break
            time.sleep(0.02)
            answered = [n for n in self.alive if store.check([f"{place}/{n}"])]
        # The first to make up its mind decides for all.
        decided = json.loads(store.compare_set(f"{place}/decided", "", json.dumps(answered)))
        died = len(decided) < len(self.alive)
        self.alive = decided
        if self.number not in self.alive:
            raise RuntimeError(
                f"Worker {self.number} was taken for dead: it did not answer within "
                f"{self.patience} seconds. Give the workers more patience."
            )
        self._epoch += 1
        self._group = self._new_group()
        return died


def peers_of(
    processes: Processes, axes: Sequence[str], patience: float, timeout: float
) -> dict[str, Peers] | None:
    """The processes along each axis, and ``"everyone"``; None if there is one process.

    Args:
        processes: ``"all"`` or a group lie along the first axis; a mesh names its axes.
        axes: the names that a mesh may have.
        patience: as for ``Peers``.
        timeout: as for ``Peers``.

    Raises:
        ValueError: an unknown choice, a mesh with other axes, or one that lacks processes.
        TypeError: something else.
    """

    def made(group: Any) -> Peers:
        return Peers(group, patience, timeout, borrowed=group is not None)

    if isinstance(processes, str):
        check_choice("processes, if not a group or a mesh,", processes, ["all", "one"])
        if not are_several(processes):
            return None
        everyone = made(None)
        return {axes[0]: everyone, "everyone": everyone}
    if isinstance(processes, dist.ProcessGroup):
        everyone = made(processes)
        return {axes[0]: everyone, "everyone": everyone}
    if not isinstance(processes, DeviceMesh):
        raise TypeError(
            'processes must be "all", "one", a process group or a DeviceMesh, got '
            f"{type(processes).__name__}."
        )
    names = processes.mesh_dim_names or ()
    if not names or any(name not in axes for name in names):
        raise ValueError(
            f"The axes of the mesh must be named {' and '.join(axes)}, got {list(names)}: "
            f'init_device_mesh("cpu", (2, 2), mesh_dim_names={tuple(axes)}).'
        )
    if processes.size() != dist.get_world_size():
        raise ValueError(
            f"The mesh has {processes.size()} of {dist.get_world_size()} processes: it must hold "
            "all of them."
        )
    along = {name: made(processes.get_group(name)) for name in names}
    everyone = made(None) if len(names) > 1 else along[names[0]]
    return {**along, "everyone": everyone}


def are_several(processes: Processes) -> bool:
    """Whether these are several, or a group or mesh, which may be of one.

    It makes the process group that ``torchrun`` promised.
    """
    if processes != "all":
        return processes != "one"
    if not dist.is_available():
        return False
    started = "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if started and not dist.is_initialized():
        dist.init_process_group()
    return dist.is_initialized() and dist.get_world_size() > 1


_meetings: dict[tuple[int, ...], int] = {}


def _next_meeting(ranks: list[int]) -> int:
    """How often these processes have met before: a name that all of them know."""
    key = tuple(ranks)
    _meetings[key] = _meetings.get(key, -1) + 1
    return _meetings[key]


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def in_one(tensors: list[Tensor], collective: Callable[[Tensor], object]) -> list[Tensor]:
    """What a collective that writes its argument makes of all tensors, sent as one."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    collective(flat)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]
