"""Earlier iterates of the chains, from which self-averaged energies draw."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import (
    as_device,
    check_choice,
    check_finite,
    check_flag,
    check_positive_int,
)
from particlevi.typing import JSON, Progress, Streams

__all__ = ["Bank", "history"]

_SEED = 0x9E3779B97F4A7C15 % 2**63


class Bank(NamedTuple):
    """What is remembered.

    Attributes:
        values: entries ``[R, C, D]``, filled from the front: a row of entries per chain, or a
            single one from which all draw.
        num_particles: P, 0-d.
        seen: times that an entry was recorded, 0-d. Both on the CPU, so that reading them waits
            for nothing.
    """

    values: Tensor
    num_particles: Tensor
    seen: Tensor


@dataclass(frozen=True, eq=False)
class history:
    """How earlier iterates are remembered by ``structured`` and ``structured_dropout``.

    Entries are whole parameter vectors; those who draw from the bank pick every group from an
    entry of its own. Until there is a first entry, the estimators give the plain gradient.

    Memory: ``P * capacity * D`` numbers of ``dtype``, taken before the run starts and written at
    every checkpoint.

    Args:
        capacity: C, entries per chain.
        thin: steps between entries. The bank spans the last ``capacity * thin`` steps.
        after: the first step that is remembered; by default that at which the warm-up ends, so
            that no step of the warm-up is. An earlier one lets the chain settle on the
            self-averaged law before draws are kept.
        replace: ``"oldest"``: a ring buffer, a sliding window over the run. ``"random"``: a
            reservoir, a uniform sample of everything seen since ``after`` (Vitter, "Random
            sampling with a reservoir", 1985), which never forgets.
        pooled: draw from the entries of all chains instead of the chain's own. The bank's mean
            then settles P times as fast, but chains are no longer independent, and R-hat between
            them is optimistic.
        dtype: of the bank, ``torch.float32`` or ``torch.bfloat16``; the particles' if absent.
        device: of the bank; the particles' if absent.
        initial: entries ``[S, D]`` that every chain's bank starts with, for instance draws of an
            earlier run.
        frozen: never add to ``initial``.

    Raises:
        TypeError: initial is no tensor.
        ValueError: an argument out of its range, or a frozen bank without entries.

    >>> history(capacity=100, thin=10).nbytes(num_particles=4, num_params=1000, dtype=torch.float32)
    1600000
    """

    capacity: int = 200
    thin: int = 10
    after: int | None = None
    replace: str = "oldest"
    pooled: bool = False
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None
    initial: Tensor | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        check_positive_int("capacity", self.capacity)
        check_positive_int("thin", self.thin)
        check_choice("replace", self.replace, ["oldest", "random"])
        check_flag("pooled", self.pooled)
        check_flag("frozen", self.frozen)
        if self.device is not None:
            as_device("device", self.device)
        if self.after is not None:
            check_positive_int("after", self.after, minimum=0)
        floating = isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point
        if self.dtype is not None and not floating:
            raise ValueError(
                f"The dtype of a history must be a floating point torch.dtype, got {self.dtype!r}: "
                "torch.float32, or torch.bfloat16 for half the memory."
            )
        if self.initial is None:
            if self.frozen:
                raise ValueError(
                    "A frozen history without entries stays empty: pass initial=draws.flat(), or "
                    "leave frozen out so that the chains fill it."
                )
            return
        if not isinstance(self.initial, Tensor):
            raise TypeError(
                f"initial must be a tensor of entries [S, D], got {type(self.initial).__name__}: "
                "the draws of an earlier run are draws.flat()."
            )
        if self.initial.ndim != 2 or 0 in self.initial.shape:
            raise ValueError(
                "initial must hold at least one entry [S, D], got "
                f"{list(self.initial.shape)}: one parameter vector is theta.unsqueeze(0), and a "
                "history that the chains fill themselves has no initial."
            )
        check_finite("initial", self.initial, "Leave those entries out.")
        if len(self.initial) > self.capacity and not self.frozen:
            raise ValueError(
                f"initial holds {len(self.initial)} entries, more than the capacity "
                f"{self.capacity}: raise capacity or thin the entries."
            )

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The options as JSON."""
        digest = None
        if self.initial is not None:
            raw = self.initial.detach().cpu().double().contiguous().numpy().tobytes()
            digest = hashlib.sha256(raw).hexdigest()[:16]
        return {
            "capacity": self.capacity,
            "thin": self.thin,
            "after": self.after,
            "replace": self.replace,
            "pooled": self.pooled,
            "dtype": None if self.dtype is None else str(self.dtype).removeprefix("torch."),
            "initial": digest,
            "frozen": self.frozen,
        }

    def _shape(self, num_particles: int, num_params: int) -> tuple[int, int, int]:
        if self.frozen:
            assert self.initial is not None
            return 1, len(self.initial), num_params
        if self.pooled:
            return 1, num_particles * self.capacity, num_params
        return num_particles, self.capacity, num_params

    def nbytes(self, num_particles: int, num_params: int, dtype: torch.dtype) -> int:
        """Memory of the bank in bytes."""
        rows, capacity, size = self._shape(num_particles, num_params)
        return rows * capacity * size * (self.dtype or dtype).itemsize

    def init(self, particles: Tensor) -> Bank:
        """An empty bank, or one that holds ``initial``."""
        values = torch.zeros(
            self._shape(*particles.shape),
            dtype=self.dtype or particles.dtype,
            device=self.device or particles.device,
        )
        count = 0
        if self.initial is not None:
            count = len(self.initial)
            initial = self.initial.repeat_interleave(self._at_once(len(particles)), 0)
            values[:, : len(initial)] = initial.to(values)
        return Bank(values, torch.tensor(len(particles)), torch.tensor(count))

    def _at_once(self, num_particles: int) -> int:
        """Entries that a row of the bank takes at a time."""
        return num_particles if self.pooled and not self.frozen else 1

    def record(self, bank: Bank, particles: Tensor, progress: Progress) -> Bank:
        """The bank after a step that ended at ``particles``; its storage is used again.

        Raises:
            ValueError: a run that ends before the first entry would be used.
        """
        if self.frozen:
            return bank
        first = max(1, progress.num_warmup if self.after is None else self.after)
        if first >= progress.num_steps and self.initial is None:
            raise ValueError(
                f"The history would stay empty: its first entry comes at step {first} and the run "
                f"has {progress.num_steps} steps. Lower num_warmup, or pass "
                "pvi.gradients.history(after=...) with an earlier step."
            )
        age = progress.step - first
        if age < 0 or age % self.thin:
            return bank
        count = int(bank.seen)
        slot = self._slot(count)
        if slot is not None:
            rows, width = len(bank.values), self._at_once(len(particles))
            entries = self._finite(particles).view(rows, width, -1)
            bank.values[:, slot * width : (slot + 1) * width] = entries
        return bank._replace(seen=bank.seen + 1)

    def _slot(self, count: int) -> int | None:
        """Where entry number ``count`` goes: a function of the number alone."""
        if count < self.capacity:
            return count
        if self.replace == "oldest":
            return count % self.capacity
        generator = torch.Generator().manual_seed((_SEED + count) % 2**63)
        slot = int(torch.randint(count + 1, (), generator=generator))
        return slot if slot < self.capacity else None

    def _finite(self, particles: Tensor) -> Tensor:
        """Particles, in a pooled bank without those of chains that have diverged."""
        if not self.pooled:
            return particles
        finite = torch.isfinite(particles.sum(1))
        spare = particles[finite.int().argmax()]
        return torch.where(finite.unsqueeze(1), particles, spare)

    def draw(self, bank: Bank, num: int, num_groups: int, streams: Streams) -> Tensor:
        """Random entries ``[P, S, M]``, all independent and uniform.

        Numbers among the chain's own, or among those of all chains if pooled.
        """
        num_particles = int(bank.num_particles)
        used = min(int(bank.seen) * self._at_once(num_particles), bank.values.shape[1])
        shape = (num_particles, num, num_groups)
        return (streams.uniform(shape, torch.float64) * used).long()

    def rows(self, bank: Bank, entries: Tensor) -> Tensor:
        """The same as rows of ``bank.values.flatten(0, 1)``."""
        owners, capacity, _ = bank.values.shape
        if owners == 1:
            return entries
        first = torch.arange(0, owners * capacity, capacity, device=entries.device)
        return entries + first.view(-1, 1, 1)
