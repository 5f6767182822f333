"""Draws from a file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from particlevi._checks import check_finite
from particlevi.draws import Draws
from particlevi.potentials.potential import ModelPotential
from particlevi.storage import checkpoint as files

__all__ = ["load"]


def load(path: str | Path, potential: ModelPotential | None = None) -> Draws:
    """Draws that ``Draws.save`` wrote.

    Args:
        path: the file.
        potential: the potential they are of, made again, for predictions.

    Raises:
        ValueError: the potential is another one; the difference is named.
    """
    tensors, meta = files.read(Path(path))
    if potential is not None:
        given = dict(potential.fingerprint)
        found = files.differences(meta["fingerprint"], given, "the potential's")
        if found:
            raise ValueError("These draws are of another potential:\n  " + "\n  ".join(found))
    check_finite("particles", tensors["particles"], "The file is damaged.")

    def group(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    shape = meta.pop("output_shape")
    return Draws(
        particles=tensors["particles"],
        stats=group("stats."),
        warmup=tensors.get("warmup"),
        warmup_stats=group("warmup_stats."),
        coordinates=tensors.get("coordinates"),
        output_shape=None if shape is None else tuple(shape),
        potential=potential,
        shapes={name: tuple(s) for name, s in meta.pop("shapes").items()},
        diverged={int(chain): step for chain, step in meta.pop("diverged").items()},
        **meta,
    )
