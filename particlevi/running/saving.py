"""A run as a checkpoint, and back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from particlevi.running.divergence import DivergenceWatch
from particlevi.running.plan import Plan
from particlevi.schedules import describe
from particlevi.storage import checkpoint as files
from particlevi.streams import ParticleStreams
from particlevi.tuning.memory import remember
from particlevi.typing import SamplerState

__all__ = ["STATE_FILE", "Saved", "Saver"]

STATE_FILE = "state.safetensors"
_SECONDS_BETWEEN = 60.0


class Saver:
    """When to write a checkpoint.

    Args:
        folder: None if none is to be written.
        every: steps between checkpoints; about once a minute if None.
    """

    def __init__(self, folder: Path | None, every: int | None):
        self.wanted: bool = folder is not None
        self.every = every
        self._noted = time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether it is time, after so many steps."""
        if not self.wanted:
            return False
        if self.every is not None:
            return step % self.every == 0
        return time.perf_counter() - self._noted > _SECONDS_BETWEEN

    def next(self, step: int) -> int:
        """The first step after this one at which it is time by the count of steps."""
        assert self.every is not None
        return (step // self.every + 1) * self.every

    def regular(self, step: int) -> bool:
        """Whether it is time by the number of steps, and not by the clock."""
        return self.every is not None and self.due(step)

    def note(self) -> None:
        """A checkpoint has been written."""
        self._noted = time.perf_counter()


@dataclass(frozen=True)
class Saved:
    """The state of a run as flat tensors, and what else there is to know as JSON."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        plan: Plan,
        state: SamplerState,
        tuner_state: Any,
        streams: Mapping[str, ParticleStreams],
        divergence: DivergenceWatch,
        moments: Mapping[str, Tensor],
        progress: Mapping[str, Any],
    ) -> Saved:
        """All that a run needs to go on exactly."""
        tensors = files.flatten(state, "state")
        if tuner_state is not None:
            tensors |= files.flatten(tuner_state, "tuner")
        tensors |= {f"source.{name}": value for name, value in plan.source.state().items()}
        tensors |= {f"divergence.{name}": v for name, v in divergence.tensors().items()}
        tensors |= {f"moments.{name}": value for name, value in moments.items()}
        for name, each in streams.items():
            tensors |= {f"streams.{name}.{key}": value for key, value in each.state().items()}
        tensors["global_rng"] = torch.get_rng_state()
        if state.position.is_cuda:
            tensors["cuda_rng"] = torch.cuda.get_rng_state(state.position.device)
        step_size = plan.schedules.get("step_size")
        chosen = remember(plan.sampler, plan.tuner)
        if chosen is not None:
            tensors |= {f"chosen.{name}": value for name, value in chosen.tensors.items()}
        meta = {
            "chosen": None if chosen is None else chosen.words,
            "sampler": plan.identity,
            "data": plan.data_fingerprint,
            "settings": asdict(plan.settings),
            "step_size": None if step_size is None else describe(step_size),
            "keep": plan.keep,
            "diverged": divergence.lost,
            **progress,
        }
        return cls(_apart(tensors), meta)

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """The checkpoint in a folder.

        Raises:
            FileNotFoundError: no checkpoint there.
            ValueError: a damaged file, or one of another kind.
        """
        return cls(*files.read(folder / STATE_FILE))

    def write(self, folder: Path) -> None:
        """Replace the checkpoint in a folder."""
        files.write(folder / STATE_FILE, self.tensors, self.meta)

    @property
    def position(self) -> Tensor:
        """Of the particles, ``[P, D]``."""
        return self.tensors["state.position"]

    @property
    def lost(self) -> dict[int, int]:
        """Chains that had diverged, with their steps."""
        return {int(chain): step for chain, step in self.meta["diverged"].items()}

    def tree(self, name: str, template: Any) -> Any:
        """What was saved under ``name``, in the shape of ``template``."""
        return files.unflatten(template, self.tensors, name)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors saved under ``name``."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def restore_global_generators(self, device: torch.device) -> None:
        """Torch's own generators as they were, for models and loaders that take from them."""
        torch.set_rng_state(self.tensors["global_rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(self.tensors["cuda_rng"], device)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none of which shares its storage with another, as a file wants them."""
    seen: set[int] = set()
    found = {}
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found
