"""Where a picture is drawn. matplotlib is imported here only, when it is first used."""

from __future__ import annotations

from typing import Any

from particlevi._checks import as_list, check_has

__all__ = ["as_axes"]


def as_axes(axes: Any, num: int = 1, width: float = 5.5) -> Any:
    """The axes given, or ``num`` new ones side by side."""
    if axes is not None:
        _check(axes, num)
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install particlevi[plots].") from error
    _, made = plt.subplots(1, num, figsize=(width * num, 4), layout="constrained")
    return made


def _check(axes: Any, num: int) -> None:
    given = [axes] if num == 1 else as_list("axes", axes, f"{num} axes of matplotlib")
    if len(given) != num:
        raise ValueError(f"axes must be {num} axes of matplotlib, got {len(given)}.")
    for each in given:
        check_has("axes", each, ["plot", "set_title"], "axes of matplotlib, as plt.subplots gives")
