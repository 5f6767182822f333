"""What is kept of a run, and whether it fits in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from particlevi.potentials.potential import ModelPotential
from particlevi.storage.keeping import Keep, Piece, as_kept, moments, outputs_at, parameters
from particlevi.typing import JSON

__all__ = ["Recorder", "available_memory", "check_memory", "describe_keep"]


class Recorder:
    """From particles ``[P, D]`` to what is kept of them ``[P, K]``.

    Args:
        potential: what is sampled.
        keep: see ``Keep``.
    """

    def __init__(self, potential: ModelPotential, keep: Keep):
        self.potential = potential
        kept = as_kept(keep)
        self.moments: bool = any(isinstance(each, moments) for each in kept)
        named = {each.name: each.open(potential) for each in kept if each.name != moments.name}
        pieces = list(named.values())
        self.parts: dict[str, tuple[int, ...]] = _joined(pieces)
        """Names and shapes of what is kept, in its order."""
        self.size: int = sum(map(math.prod, self.parts.values()))
        self.of: list[Callable[[Tensor], Tensor]] = [piece.of for piece in pieces]
        own = named.get(parameters.name)
        self.whole: bool = len(named) == 1 and own is not None and own.coordinates is None
        """Whether all parameters are kept, and nothing beside them."""
        self.columns: Tensor | None = None if own is None else own.coordinates
        self.output_shape: tuple[int, ...] | None = None
        self.kept: dict[str, tuple[int, ...]] = {}
        if not named:
            self.columns = torch.empty(0, dtype=torch.long)
        elif list(named) == [outputs_at.name]:
            self.output_shape = self.parts[outputs_at.name]
        elif list(named) != [parameters.name]:
            self.kept = {name: _shape(name, piece) for name, piece in named.items()}

    def __call__(self, position: Tensor) -> Tensor:
        """What is kept of ``position [P, D]``."""
        found = [of(position) for of in self.of]
        if len(found) == 1:
            return found[0]
        return torch.cat(found, 1) if found else position[:, :0]


def _shape(name: str, piece: Piece) -> tuple[int, ...]:
    """Of a piece as a whole."""
    if name == parameters.name or len(piece.shapes) != 1:
        return (sum(map(math.prod, piece.shapes.values())),)
    return next(iter(piece.shapes.values()))


def _joined(pieces: Sequence[Piece]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for piece in pieces:
        twice = sorted(found.keys() & piece.shapes)
        if twice:
            raise ValueError(
                f"Two kept arrays would have the names {twice}: give the tensors of the model "
                "other names, or keep fewer things."
            )
        found |= piece.shapes
    return found


def describe_keep(keep: Keep) -> JSON:
    """What is kept as JSON, so that a run is not resumed with another choice."""
    told = [each.describe() for each in as_kept(keep)]
    return told[0] if len(told) == 1 else told


def available_memory() -> int:
    """Bytes that this process can still take, as far as the system tells."""
    limits = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limit, usage = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and usage.exists() and limit.read_text().strip().isdigit():
        limits.append(int(limit.read_text()) - int(usage.read_text()))
    return min(limits) if limits else 2**62


def check_memory(needed: Mapping[str, int]) -> None:
    """Refuse a run that cannot fit, before it starts.

    Args:
        needed: bytes by what takes them.

    Raises:
        MemoryError: with the sizes and the ways out.
    """
    total, available = sum(needed.values()), available_memory()
    if total <= available:
        return
    parts: Sequence[str] = [f"{name} {size / 1e9:.2f} GB" for name, size in needed.items() if size]
    raise MemoryError(
        f"The run needs {total / 1e9:.2f} GB ({', '.join(parts)}) but {available / 1e9:.2f} GB are "
        "available. Ways out: a larger thin with fewer num_draws, fewer particles, "
        "store='draws.zarr' to write draws to disk, "
        "store=pvi.storage.InMemory(dtype=torch.bfloat16), or with keep=[name patterns] or "
        "keep=LongTensor for a subset of coordinates, keep=pvi.outputs_at(inputs) for predictions "
        "only, or, for an estimator that remembers iterates, a smaller history: "
        "pvi.gradients.history(capacity=..., dtype=torch.bfloat16), and fewer groups or masks, for "
        "each of which it evaluates a composite of every particle. What one evaluation takes, "
        "chunk_size=... of the potential bounds: so many particles are evaluated at once."
    )
