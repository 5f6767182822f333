"""What is kept of a run, and whether it fits in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from particlevi.data import place
from particlevi.data.fingerprint import fingerprint
from particlevi.data.tensors import as_tensors
from particlevi.potentials.chunks import chunks
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import JSON, Batch

__all__ = [
    "Keep",
    "Recorder",
    "available_memory",
    "check_memory",
    "describe_keep",
    "outputs_at",
]


@dataclass(frozen=True, eq=False)
class outputs_at:
    """Keep the model's outputs at some inputs instead of its parameters.

    Args:
        inputs: one tensor ``[B, ...]``, or a tuple of them for a module with several inputs.
    """

    inputs: Any


Keep: TypeAlias = str | Sequence[str] | Tensor | outputs_at | None
"""Name patterns, coordinates ``LongTensor [K]``, or outputs; None for all parameters."""


class Recorder:
    """From particles ``[P, D]`` to what is kept of them ``[P, K]``.

    Args:
        potential: what is sampled.
        keep: None for all parameters, name patterns, coordinates ``LongTensor [K]``, or
            ``outputs_at(inputs)``.
    """

    def __init__(self, potential: ModelPotential, keep: Keep):
        self.potential = potential
        self.columns: Tensor | None = None
        self.inputs: Batch | None = None
        self.output_shape: tuple[int, ...] = ()
        self.parts: dict[str, tuple[int, ...]] = dict(potential.layout.shapes)
        """Names and shapes of what is kept, in its order."""
        if keep is None:
            self.size: int = potential.num_params
        elif isinstance(keep, outputs_at):
            inputs = keep.inputs if isinstance(keep.inputs, tuple) else (keep.inputs,)
            tensors = as_tensors(inputs, potential, "inputs")
            self.inputs = Batch(place(tensors, potential))
            with torch.no_grad():
                probe = potential.outputs(potential.init(1), self.inputs)
            self.output_shape = tuple(probe.shape[1:])
            self.size = probe[0].numel()
            self.parts = {"outputs": self.output_shape}
        else:
            self.columns = self._columns(keep)
            self.size = len(self.columns)

    def _columns(self, keep: Any) -> Tensor:
        num = self.potential.num_params
        if isinstance(keep, Tensor):
            inside = keep.ndim == 1 and keep.dtype == torch.long and len(keep) > 0
            if not inside or keep.min() < 0 or keep.max() >= num:
                raise ValueError(
                    f"keep as coordinates must be a LongTensor of numbers in 0 ... {num - 1}, "
                    f"got {keep.dtype} {list(keep.shape)}."
                )
            self.parts = {"theta": (len(keep),)}
            return keep.to(self.potential.device)
        patterns = [keep] if isinstance(keep, str) else keep
        if not isinstance(patterns, (list, tuple)) or not all(isinstance(p, str) for p in patterns):
            raise TypeError(
                "keep must be name patterns, coordinates LongTensor [K] or "
                f"pvi.outputs_at(inputs), got {keep!r}."
            )
        where = self.potential.layout.slices()
        idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in where)]
        if idle or not patterns:
            raise ValueError(f"keep={keep!r}: {idle} match none of the parameters {list(where)}.")
        chosen = [n for n in where if any(fnmatchcase(n, p) for p in patterns)]
        self.parts = {name: self.parts[name] for name in chosen}
        columns = [torch.arange(where[name].start, where[name].stop) for name in chosen]
        return torch.cat(columns).to(self.potential.device)

    def __call__(self, position: Tensor) -> Tensor:
        """What is kept of ``position [P, D]``."""
        if self.inputs is not None:
            with torch.no_grad():
                parts = [
                    self.potential.outputs(part, self.inputs).flatten(1)
                    for part, _ in chunks(position, None, self.potential.chunk_size)
                ]
            return torch.cat(parts)
        return position if self.columns is None else position[:, self.columns]


def describe_keep(keep: Keep) -> JSON:
    """What is kept as JSON, so that a run is not resumed with another choice."""
    if isinstance(keep, outputs_at):
        return {"kind": "outputs", "inputs": fingerprint(keep.inputs)}
    if isinstance(keep, Tensor):
        return {"kind": "coordinates", "coordinates": fingerprint(keep)}
    patterns: JSON = keep if keep is None else [keep] if isinstance(keep, str) else list(keep)
    return {"kind": "patterns", "patterns": patterns}


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
        "store=pvi.storage.InMemory(dtype=torch.bfloat16), or with keep=[name patterns] or "
        "keep=LongTensor for a subset of coordinates, keep=pvi.outputs_at(inputs) for predictions "
        "only, or, for an estimator that remembers iterates, a smaller history: "
        "pvi.gradients.history(capacity=..., dtype=torch.bfloat16), and fewer groups or masks, for "
        "each of which it evaluates a composite of every particle. What one evaluation takes, "
        "chunk_size=... of the potential bounds: so many particles are evaluated at once."
    )
