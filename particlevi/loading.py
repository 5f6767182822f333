"""Draws from a file."""

from __future__ import annotations

from pathlib import Path

from particlevi._checks import as_path, check_is
from particlevi.draws import Draws
from particlevi.potentials.potential import ModelPotential
from particlevi.storage import drawfile

__all__ = ["load"]


def load(path: str | Path, potential: ModelPotential | None = None) -> Draws:
    """Draws that ``Draws.save`` wrote.

    Args:
        path: the file.
        potential: the potential they are of, made again, for predictions.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the potential is another one; the difference is named.
    """
    if potential is not None:
        check_is("potential", potential, ModelPotential, "a potential, as from_module makes")
    return drawfile.read(Draws, as_path("path", path), potential)
