"""Draws from a file."""

from __future__ import annotations

from pathlib import Path

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
    return drawfile.read(Draws, Path(path), potential)
