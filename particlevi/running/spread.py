"""A checkpoint of particles that are spread over processes: that of one process with them all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from particlevi.running.plan import Plan
from particlevi.running.saving import Saved
from particlevi.storage import checkpoint as files
from particlevi.storage.store import Store
from particlevi.streams import ParticleStreams
from particlevi.typing import JSON

__all__ = ["Archive", "cut", "gathered"]


def gathered(saved: Saved, plan: Plan) -> Saved:
    """The state of all particles, from that of those in each process."""
    axes = _particle_axes(plan, saved.tensors)
    fronted = [saved.tensors[name].movedim(axis, 0) for name, axis in axes.items()]
    whole = plan.world.gather([tensor.contiguous() for tensor in fronted])
    found = {
        name: tensor.movedim(0, axis).contiguous()
        for (name, axis), tensor in zip(axes.items(), whole, strict=True)
    }
    first = plan.world.mine.start
    lost = {first + chain: step for chain, step in saved.meta["diverged"].items()}
    settings = {**saved.meta["settings"], "num_particles": plan.world.total}
    everyone = {chain: step for part in plan.world.objects(lost) for chain, step in part.items()}
    meta = {**saved.meta, "settings": settings, "diverged": everyone}
    return Saved({**saved.tensors, **found}, meta)


def cut(saved: Saved, plan: Plan) -> Saved:
    """The state of the particles in this process, from that of all."""
    mine = plan.world.mine
    axes = _particle_axes(plan, saved.tensors)
    here = {
        name: saved.tensors[name].narrow(axis, mine.start, len(mine)) for name, axis in axes.items()
    }
    lost = {chain - mine.start: step for chain, step in saved.lost.items() if chain in mine}
    return Saved({**saved.tensors, **here}, {**saved.meta, "diverged": lost})


def _particle_axes(plan: Plan, tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The axis of the particles in every tensor of a checkpoint that has one.

    Of a method's and a tuner's own tensors it is the axis that grows when there are two particles
    and not one.
    """
    axes = {"divergence.early": 1} | {
        f"divergence.{name}": 0 for name in ("above_since", "above_from", "divergent")
    }
    axes |= {"moments.mean": 0, "moments.squares": 0}
    if not plan.source.shared:
        axes["source.order"] = 0
    for name in tensors:
        if name.startswith("streams.") and ".shared." not in name:
            axes[name] = 0
    one, two = (_state_of(plan, num) for num in (1, 2))
    for name, tensor in one.items():
        sizes = zip(tensor.shape, two[name].shape, strict=True)
        grown = [k for k, (a, b) in enumerate(sizes) if a != b]
        if grown:
            axes[name] = grown[0]
    return {name: axis for name, axis in axes.items() if name in tensors}


def _state_of(plan: Plan, num_particles: int) -> dict[str, Tensor]:
    potential = plan.sampler.potential
    blank = torch.zeros(
        num_particles, potential.num_params, dtype=potential.dtype, device=potential.device
    )
    streams = ParticleStreams(0, "a blank", device=potential.device)
    found = files.flatten(plan.sampler.init(blank, streams), "state")
    if plan.tuner is not None:
        control_room = plan.control_room()
        control_room.begin(blank)
        found |= files.flatten(control_room.tuner_state, "tuner")
    return found


class Archive:
    """The draws of all particles, in the files of a checkpoint.

    Args:
        plan: of the run in this process.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.count: int = 0
        self.total: Store | None = plan.open_store(plan.world.total) if plan.world.leads else None

    def flush(self, store: Store) -> JSON:
        """Write what is new in the stores of all processes; the receipt, for the leader."""
        values, stats = store.read(self.count, store.count)
        own = {name: value for name, value in stats.items() if value.ndim > 1}
        whole = self.plan.world.gather([values, *own.values()])
        self.count = store.count
        if self.total is None:
            return None
        found = {**stats, **dict(zip(own, whole[1:], strict=True))}
        for k in range(whole[0].shape[1]):
            self.total.append(whole[0][:, k], {n: _at(value, k) for n, value in found.items()})
        return self.total.flush()

    def restore(self, receipt: JSON, store: Store) -> None:
        """Hold the draws of a receipt, and put those of the particles here into ``store``."""
        everyone = self.plan.open_store(self.plan.world.total, receipt)
        self.total = everyone if self.plan.world.leads else None
        mine = self.plan.world.mine
        rows = slice(mine.start, mine.stop)
        values, stats = everyone.read(0, everyone.count)
        for k in range(everyone.count):
            here = {n: _at(v[rows] if v.ndim > 1 else v, k) for n, v in stats.items()}
            store.append(values[rows, k], here)
        self.count = store.count


def _at(value: Tensor, draw: int) -> Tensor | float:
    """A statistic ``[P, T]``, or ``[T]`` of all particles, at one draw."""
    return value[:, draw] if value.ndim > 1 else float(value[draw])
