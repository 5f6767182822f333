"""Whether the parts of a set of draws belong together, and how they are picked and joined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_is, is_integer
from particlevi._warning import warn
from particlevi.potentials.potential import ModelPotential
from particlevi.streams import ParticleStreams

__all__ = [
    "check_agree",
    "check_particles",
    "check_stats",
    "check_width",
    "joined",
    "places",
    "raveled",
    "warn_of_others",
    "what_is_missing",
]


def check_particles(particles: Any) -> None:
    """Particles are a floating-point tensor ``[P, T, K]``."""
    if not isinstance(particles, Tensor):
        raise TypeError(f"particles must be a tensor [P, T, D], got {type(particles).__name__}.")
    if particles.ndim != 3:
        raise ValueError(
            f"particles must be [P, T, D], got {list(particles.shape)}. One chain is "
            "particles.unsqueeze(0), independent draws [S, D] are one chain of S draws."
        )
    if not particles.is_floating_point():
        raise ValueError(
            f"particles must be floating point, got {particles.dtype}: use particles.float()."
        )


def check_width(width: int, wanted: tuple[int, str] | None) -> None:
    """Particles are as wide as what they are draws of."""
    if wanted is not None and width != wanted[0]:
        raise ValueError(
            f"particles must be [P, T, {wanted[0]}], for {wanted[1]}, got a last dimension of "
            f"{width}. Draws of a part of the parameters need coordinates=LongTensor [K]."
        )


def check_stats(stats: Mapping[str, Tensor], particles: Tensor) -> None:
    """Statistics are ``[T]`` or ``[P, T]``."""
    chains, draws, _ = particles.shape
    for name, value in stats.items():
        if value.shape not in ((draws,), (chains, draws)):
            raise ValueError(
                f"The statistic {name!r} must be [{draws}] or [{chains}, {draws}], "
                f"got {list(value.shape)}."
            )


def places(axis: str, index: Any, size: int) -> slice | Tensor:
    """Which chains or draws: a slice where a view will do, or their numbers ``[n]``."""
    every = torch.arange(size)
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        return slice(start, stop, step) if step > 0 else every[list(range(size)[index])]
    if is_integer(index):
        index = [int(index)]
    try:
        chosen = torch.as_tensor(index).cpu()
    except (TypeError, ValueError, RuntimeError):
        chosen = torch.empty(0)
    if chosen.dtype == torch.bool and chosen.shape == (size,):
        return every[chosen]
    if chosen.ndim != 1 or chosen.dtype not in (torch.int64, torch.int32):
        raise IndexError(
            f"A {axis} index must be a number, a slice, numbers or a mask [{size}], got {index!r}."
        )
    if not len(chosen) or int(chosen.min()) < -size or int(chosen.max()) >= size:
        raise IndexError(f"{axis}s are 0 ... {size - 1}, got {chosen.tolist()}.")
    return chosen.long() % size


def joined(values: list[Tensor], shapes: Sequence[tuple[int, int]], along: str) -> Tensor:
    """One statistic of all parts; what is per draw becomes per chain where parts differ."""
    if along == "draws":
        if len({value.ndim for value in values}) == 1:
            return torch.cat(values, -1)
    elif all(value.ndim == 1 and torch.equal(value, values[0]) for value in values):
        return values[0]
    wide = [value.expand(shape) for value, shape in zip(values, shapes, strict=True)]
    return torch.cat(wide, 1 if along == "draws" else 0)


def what_is_missing(coordinates: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why the model cannot be evaluated at draws of some parameters only."""
    start, partial, missing = 0, [], []
    kept = set(coordinates.tolist())
    for name, shape in shapes.items():
        size = math.prod(shape)
        count = sum(k in kept for k in range(start, start + size))
        missing += [] if count else [name]
        partial += [name] if 0 < count < size else []
        start += size
    lost = f"nothing was kept of {missing}" if missing else "all tensors are there in part"
    lost += f", a part of {partial}" if partial else ""
    return (
        f"Only a part of the parameters was kept (keep=), {len(coordinates)} of them, so that the "
        f"model cannot be evaluated at these draws: {lost}. Keep all parameters "
        "(store=pvi.storage.InMemory(dtype=torch.bfloat16) halves them, and a path as store puts "
        "them on disk), or keep=pvi.outputs_at(inputs) if predictions are wanted at known inputs "
        "only."
    )


def raveled(potential: ModelPotential, state: Mapping[str, Tensor]) -> Tensor:
    """The parameters ``[D]`` of a module's state, or of values of a Pyro model's sites.

    Of a module's state with other running statistics, those of the same function.
    """
    check_is("each of state_dicts", state, Mapping, "a state_dict: tensors by name")
    names = potential.layout.shapes
    missing = [name for name in names if name not in state]
    if missing:
        message = f"A state_dict lacks {missing}, which are sampled; it has {list(state)}."
        if potential.likelihood is not None:
            message += (
                " A learned scale of the likelihood is one of these names: add it, "
                "state | {name: value}."
            )
        raise ValueError(message)
    if potential.predictive_fn is not None and potential.starts.named is not None:
        values = {name: state[name] for name in names}
        return potential.starts.named(values, 1, ParticleStreams(0))[0]
    carried_over = getattr(potential.model and potential.model.function, "carried_over", dict)
    tensors = {name: each.detach() for name, each in state.items() if isinstance(each, Tensor)}
    weights = carried_over(tensors)
    return potential.ravel({name: weights[name].to(potential.dtype) for name in names})


def warn_of_others(potential: ModelPotential, states: Sequence[Mapping[str, Tensor]]) -> None:
    """Tell which tensors of the nets that were saved are not used."""
    passed_over = getattr(potential.model and potential.model.function, "passed_over", None)
    if passed_over is None:
        return
    differing = sorted({name for state in states for name in passed_over(state)})
    if differing:
        warn(
            f"{differing} of these state_dicts are not sampled and differ from those of the "
            "potential's module, which are used for all draws: predictions are not those of the "
            "nets that were saved. Load a state_dict into the module before from_module to use its "
            "own. Running statistics are kept where scale and shift of their layer are sampled."
        )


def check_agree(
    parts: Sequence[tuple[str, Mapping[str, Any], tuple[int, ...]]], along: str
) -> None:
    """Sets of draws, by kind, fingerprint and shape, can be joined."""
    if not parts:
        raise ValueError("concat takes at least one set of draws, got none.")
    kind, fingerprint, shape = parts[0]
    axis = 0 if along == "draws" else 1
    for other_kind, other_fingerprint, other in parts[1:]:
        if other_kind != kind or other_fingerprint != fingerprint:
            raise ValueError(
                f"Parts must be of one kind and potential, got {kind} {fingerprint} and "
                f"{other_kind} {other_fingerprint}."
            )
        if other[axis] != shape[axis] or other[2] != shape[2]:
            raise ValueError(
                f"Parts joined along {along} must agree in all other dimensions, got "
                f"{list(shape)} and {list(other)}."
            )
