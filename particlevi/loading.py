"""Draws from a file."""

from __future__ import annotations

from pathlib import Path

from particlevi.draws import Draws
from particlevi.potentials.protocol import as_potential
from particlevi.storage import drawfile
from particlevi.typing import Potential

__all__ = ["load"]


def load(path: str | Path, potential: Potential | None = None) -> Draws:
    """Draws that ``Draws.save`` wrote.

    Args:
        path: the file.
        potential: the potential they are of, made again, for predictions.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the potential is another one; the difference is named.
    """
    model = None if potential is None else as_potential(potential)
    return drawfile.read(Draws, Path(path), model)
