"""All that the package asks of ``torch.distributed``."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Peers"]


class Peers:
    """The processes of a group, numbered from 0, which go on without those that died.

    A collective in which a process dies raises RuntimeError in the others. ``regroup`` then makes
    a new group of those that are left; their numbers stay. It needs the store of the process group:
    under ``torchrun`` the agent holds it, otherwise process 0, which must then be among them.

    Args:
        group: a process group; the default one if None.
        patience: seconds to wait for the others before they count as dead; a collective fails
            after three times as long.
    """

    def __init__(self, group: Any = None, patience: float = 10.0) -> None:
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
        self._epoch = 0
        self._group: Any = self._new_group()

    def __deepcopy__(self, memo: dict[int, Any]) -> Peers:
        return self

    def _new_group(self) -> Any:
        return dist.new_group(
            [self.ranks[number] for number in self.alive],
            timeout=timedelta(seconds=3 * self.patience),
            use_local_synchronization=True,
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

    def copy_from(self, number: int, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors of one of them, in new storage."""
        source = self.ranks[number]
        return in_one(tensors, lambda flat: dist.broadcast(flat, source, group=self._group))

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
        store = dist.distributed_c10d._get_default_store()
        place = f"particlevi/peers/{self.ranks}/{self._epoch}"
        store.set(f"{place}/{self.number}", "alive")
        deadline = time.monotonic() + self.patience
        answered = [self.number]
        while time.monotonic() < deadline and len(answered) < len(self.alive):
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


def in_one(tensors: list[Tensor], collective: Callable[[Tensor], object]) -> list[Tensor]:
    """What a collective that writes its argument makes of all tensors, sent as one."""
    flat = torch.cat([t.reshape(-1) for t in tensors])
    collective(flat)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t).to(t.dtype) for part, t in zip(parts, tensors, strict=True)]
