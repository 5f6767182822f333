"""A set of draws as one safetensors file, which runs no code when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from particlevi._checks import check_finite
from particlevi.drawset import DrawSet
from particlevi.drawset.lazy import loaded
from particlevi.drawset.moments import Moments
from particlevi.potentials.potential import ModelPotential
from particlevi.storage import checkpoint as files
from particlevi.typing import Facts

__all__ = [
    "OTHERS",
    "check_potential",
    "fields_of",
    "meta_of",
    "others_of",
    "read",
    "tensors_of",
    "write",
]

_FIELDS = ("coordinates", "groups", "metric", "end")
_MOMENTS = ("moments_count", "moments_mean", "moments_variance")
OTHERS = (*_FIELDS, *_MOMENTS)
"""Tensors that are not draws, by the names that they have in a file."""

Set = TypeVar("Set", bound=DrawSet)


def write(draws: DrawSet, path: Path) -> None:
    """See ``Draws.save``."""
    check_finite(
        "particles",
        draws.particles,
        "Draws that are not finite are not saved: leave them out, or run with a storage whose type "
        "holds them.",
    )
    tensors = {"particles": loaded(draws.particles)}
    tensors |= {f"stats.{name}": value for name, value in draws.stats.items()}
    tensors |= {f"warmup_stats.{name}": value for name, value in draws.warmup_stats.items()}
    others = {"warmup": draws.warmup, **tensors_of(draws)}
    tensors |= {name: loaded(value) for name, value in others.items() if value is not None}
    files.write(path, tensors, meta_of(draws))


def tensors_of(draws: DrawSet) -> dict[str, Tensor]:
    """The tensors of a set of draws that are not draws."""
    found = {name: getattr(draws, name) for name in _FIELDS}
    if draws.moments is not None:
        count = torch.tensor([draws.moments.count])
        found |= dict(
            zip(_MOMENTS, (count, draws.moments.mean, draws.moments.variance), strict=True)
        )
    return {name: value for name, value in found.items() if value is not None}


def others_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``tensors_of`` gave, as fields of a set of draws."""
    found: dict[str, Any] = {name: tensors.get(name) for name in _FIELDS}
    if _MOMENTS[0] in tensors:
        count, mean, variance = (tensors[name] for name in _MOMENTS)
        found["moments"] = Moments(int(count), mean, variance)
    return found


def meta_of(draws: DrawSet) -> dict[str, Any]:
    """What else there is to know of a set of draws, as JSON."""
    return {
        "chains": draws.chains,
        "diverged": draws.diverged,
        "interrupted": draws.interrupted,
        "minibatch": draws.minibatch,
        "seconds": draws.seconds,
        "num_steps": draws.num_steps,
        "output_shape": draws.output_shape,
        "shapes": {name: list(shape) for name, shape in draws.shapes.items()},
        "kept": {name: list(shape) for name, shape in draws.kept.items()},
        "facts": asdict(draws.facts),
        "gradients": draws.gradients,
        "pooled": draws.pooled,
        "attrs": draws.attrs,
        "fingerprint": draws.fingerprint,
    }


def check_potential(meta: Mapping[str, Any], potential: ModelPotential | None) -> None:
    """The potential, if there is one, is that of the draws.

    Raises:
        ValueError: where it differs.
    """
    if potential is None:
        return
    given = dict(potential.fingerprint)
    differences = files.differences(meta["fingerprint"], given, "the potential's")
    if differences:
        listed = "\n  ".join(differences)
        raise ValueError(f"These draws are of another potential:\n  {listed}")


def fields_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What ``meta_of`` gave, as fields of a set of draws."""
    shape = meta["output_shape"]
    return {
        **meta,
        "output_shape": None if shape is None else tuple(shape),
        "shapes": {name: tuple(s) for name, s in meta["shapes"].items()},
        "kept": {name: tuple(s) for name, s in meta["kept"].items()},
        "diverged": {int(chain): step for chain, step in meta["diverged"].items()},
        "facts": Facts(**meta["facts"]),
    }


def read(kind: type[Set], path: Path, potential: ModelPotential | None) -> Set:
    """See ``pvi.load``."""
    tensors, meta = files.read(path)
    check_potential(meta, potential)
    check_finite("particles", tensors["particles"], "The file is damaged.")

    def group(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    return kind(
        particles=tensors["particles"],
        stats=group("stats."),
        warmup_stats=group("warmup_stats."),
        potential=potential,
        warmup=tensors.get("warmup"),
        **others_of(tensors),
        **fields_of(meta),
    )
