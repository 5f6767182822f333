"""Warnings that show the line of the user's that called into the package."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from types import FrameType

from particlevi.errors import ParticleviWarning

__all__ = ["warn"]

_PACKAGE = str(Path(__file__).parent) + os.sep


def warn(message: str, category: type[Warning] = ParticleviWarning) -> None:
    """Warn at the line that called into the package, however deep the warning arises."""
    frame: FrameType | None = sys._getframe()
    depth = level = 1
    while frame is not None:
        depth += 1
        if frame.f_code.co_filename.startswith(_PACKAGE):
            level = depth
        frame = frame.f_back
    warnings.warn(message, category, stacklevel=level)
