"""Where a picture is drawn. matplotlib is imported here only, when it is first used."""

from __future__ import annotations

from typing import Any

__all__ = ["as_axes"]


def as_axes(axes: Any, num: int = 1, width: float = 5.5) -> Any:
    """The axes given, or ``num`` new ones side by side."""
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install particlevi[plots].") from error
    _, made = plt.subplots(1, num, figsize=(width * num, 4), layout="constrained")
    return made
