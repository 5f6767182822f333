"""Draws from a file, or from a folder that a run writes to."""

from __future__ import annotations

from pathlib import Path

from particlevi._checks import as_path
from particlevi.draws import Draws
from particlevi.potentials.protocol import as_potential
from particlevi.storage import drawfile, zarrfile
from particlevi.typing import Potential

__all__ = ["load"]


def load(path: str | Path, potential: Potential | None = None) -> Draws:
    """Draws that ``Draws.save`` wrote, or those that a run with ``store=path`` has written so far.

    Draws of a store stay on disk, also while the run goes on: see ``pvi.storage.OnDisk``.

    Args:
        path: the file, or the folder.
        potential: the potential they are of, made again, for predictions.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the potential is another one; the difference is named.
    """
    place, model = as_path("path", path), None if potential is None else as_potential(potential)
    if place.is_dir():
        return zarrfile.read(Draws, place, model)
    return drawfile.read(Draws, place, model)
