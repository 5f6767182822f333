"""A set of draws as one safetensors file, which runs no code when it is read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from particlevi._checks import check_finite
from particlevi.drawset import DrawSet
from particlevi.potentials.potential import ModelPotential
from particlevi.storage import checkpoint as files
from particlevi.typing import Facts

__all__ = ["read", "write"]

Set = TypeVar("Set", bound=DrawSet)


def write(draws: DrawSet, path: Path) -> None:
    """See ``Draws.save``."""
    check_finite(
        "particles",
        draws.particles,
        "Draws that are not finite are not saved: leave them out, or run with a storage whose type "
        "holds them.",
    )
    tensors = {"particles": draws.particles}
    tensors |= {f"stats.{name}": value for name, value in draws.stats.items()}
    tensors |= {f"warmup_stats.{name}": value for name, value in draws.warmup_stats.items()}
    others = {
        "warmup": draws.warmup,
        "coordinates": draws.coordinates,
        "groups": draws.groups,
        "metric": draws.metric,
        "end": draws.end,
    }
    tensors |= {name: value for name, value in others.items() if value is not None}
    meta = {
        "chains": draws.chains,
        "diverged": draws.diverged,
        "interrupted": draws.interrupted,
        "minibatch": draws.minibatch,
        "seconds": draws.seconds,
        "num_steps": draws.num_steps,
        "output_shape": draws.output_shape,
        "shapes": {name: list(shape) for name, shape in draws.shapes.items()},
        "facts": asdict(draws.facts),
        "gradients": draws.gradients,
        "pooled": draws.pooled,
        "attrs": draws.attrs,
        "fingerprint": draws.fingerprint,
    }
    files.write(path, tensors, meta)


def read(kind: type[Set], path: Path, potential: ModelPotential | None) -> Set:
    """See ``pvi.load``."""
    tensors, meta = files.read(path)
    if potential is not None:
        given = dict(potential.fingerprint)
        differences = files.differences(meta["fingerprint"], given, "the potential's")
        if differences:
            listed = "\n  ".join(differences)
            raise ValueError(f"These draws are of another potential:\n  {listed}")
    check_finite("particles", tensors["particles"], "The file is damaged.")

    def group(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    shape = meta.pop("output_shape")
    return kind(
        particles=tensors["particles"],
        stats=group("stats."),
        warmup_stats=group("warmup_stats."),
        output_shape=None if shape is None else tuple(shape),
        potential=potential,
        shapes={name: tuple(s) for name, s in meta.pop("shapes").items()},
        diverged={int(chain): step for chain, step in meta.pop("diverged").items()},
        facts=Facts(**meta.pop("facts")),
        warmup=tensors.get("warmup"),
        coordinates=tensors.get("coordinates"),
        groups=tensors.get("groups"),
        metric=tensors.get("metric"),
        end=tensors.get("end"),
        **meta,
    )
