"""Temperatures of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from particlevi.data import DataLike
from particlevi.diagnostics.temperatures import chi_square_interval, every, temperature_set
from particlevi.drawset import DrawSet, check_draws
from particlevi.plots.axes import as_axes

__all__ = ["temperatures"]


def temperatures(draws: DrawSet, data: DataLike = None, *, thin: int = 1, axes: Any = None) -> Any:
    """Kinetic and configurational temperature, in total and of each tensor.

    Points are means over the run with two Monte-Carlo standard errors to each side. Grey bars are
    99 % intervals of a single draw, ``T chi2_D / D``; beside them stands the share of the draws
    inside, 99 % for exact Gaussian draws.

    Args:
        draws: of chains at one temperature, with all parameters kept.
        data: as given to ``sample``.
        thin: for the configurational temperatures, use every ``thin``-th draw.
        axes: to draw on.

    Raises:
        ValueError: several temperatures, or draws that have none; see ``Draws.temperatures``.
    """
    check_draws(draws)
    set_to = temperature_set(draws)
    target = float(set_to.mean())
    if float(set_to.max() - set_to.min()) > 1e-6 * abs(target):
        raise ValueError(
            f"These draws were taken at temperatures from {float(set_to.min()):.3g} to "
            f"{float(set_to.max()):.3g}; the picture is of one: draws.select(chains) picks chains."
        )
    measured = every(draws, data, thin=thin)
    given = axes is not None
    axes = as_axes(axes)
    if not given:
        axes.figure.set_figheight(1.5 + 0.35 * len(measured))
    rows = np.arange(len(measured))
    for row, each in zip(rows, measured.values(), strict=True):
        low, high = chi_square_interval(target, each.size)
        axes.barh(row, high - low, left=low, height=0.6, color="0.88")
        axes.annotate(
            f"{each.inside:.1%}",
            (high, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color="0.4",
            fontsize=8,
        )
    means, errors = (
        [getattr(each, name) for each in measured.values()] for name in ("mean", "mcse")
    )
    axes.errorbar(means, rows, xerr=2 * np.array(errors), fmt="o", color="C0", ms=4, capsize=3)
    axes.axvline(target, color="k", linewidth=0.8)
    axes.set_yticks(rows, [_label(name) for name in measured])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="temperature", title=f"Temperatures (set to {target:g})")
    return axes


def _label(name: str) -> str:
    if name.startswith("kinetic"):
        return name
    return "configurational" if name == "all" else f"configurational[{name}]"
