"""Methods side by side."""

from __future__ import annotations

from typing import Any

from particlevi._checks import check_is
from particlevi.comparison.table import Comparison
from particlevi.plots.axes import as_axes

_LEAST_TEMPERATURE = 1e-5

__all__ = ["effective_temperature"]


def effective_temperature(result: Comparison, axes: Any = None) -> Any:
    """Variance of each set of draws over the posterior's, by eigendirection of the Hessian.

    Bars are two standard errors to each side.

    Ratios below 1e-5, of directions in which a method does not move, are below the picture.

    Args:
        result: from ``compare(..., train_data=...)``.
        axes: to draw on.

    Raises:
        ValueError: a comparison without Hessian.
    """
    check_is("result", result, Comparison, "what compare gives")
    if not result.temperatures:
        raise ValueError("No temperatures in this comparison: compare(..., train_data=(x, y)).")
    axes = as_axes(axes)
    values = result.eigenvalues
    up = values > 0
    for k, (name, temperatures) in enumerate(result.temperatures.items()):
        color = f"C{k}"
        axes.loglog(values[up], temperatures[up], ".", color=color, label=name, markersize=4)
        errors = 2 * result.temperature_errors[name][up]
        axes.errorbar(
            values[up], temperatures[up], yerr=errors, fmt="none", color=color, linewidth=0.5
        )
    axes.axhline(1, color="k", linewidth=0.8)
    # Where SGD has no noise its variance is rounding: that shall not set the scale.
    lowest = min(float(each[up].nan_to_num(1.0).min()) for each in result.temperatures.values())
    if lowest < _LEAST_TEMPERATURE:
        axes.set_ylim(bottom=_LEAST_TEMPERATURE)
    axes.set(
        xlabel="eigenvalue of the Hessian of the potential (nats)",
        ylabel="variance over the reference's",
        title="Effective temperature (posterior: 1)",
    )
    axes.legend()
    return axes
