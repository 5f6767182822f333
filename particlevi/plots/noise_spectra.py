"""Gradient noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from particlevi._checks import check_is
from particlevi.noise.spectrum import Spectrum
from particlevi.plots.axes import as_axes

__all__ = ["spectrum"]


def spectrum(result: Spectrum, axes: Any = None) -> Any:
    """Eigenvalues of the noise covariance by rank, and the threshold of its numerical rank.

    Args:
        result: from ``gradient_noise(...).spectrum()``.
        axes: to draw on.
    """
    check_is("result", result, Spectrum, "what noise.measure(...).spectrum() gives")
    axes = as_axes(axes)
    values = result.eigenvalues.numpy()
    shown = values > values[0] * 1e-16
    axes.loglog(np.arange(1, len(values) + 1)[shown], values[shown], color="C0")
    threshold = result.threshold()
    axes.axhline(threshold, color="C3", linestyle="--", linewidth=1)
    above = int((values > threshold).sum())
    axes.annotate(
        f"float32 threshold: {above} of {result.num_params} above",
        (1, threshold),
        xytext=(0, 4),
        textcoords="offset points",
        color="C3",
        fontsize=8,
    )
    axes.set(
        xlabel="rank",
        ylabel="eigenvalue of C",
        title=f"Gradient noise: D = {result.num_params}, N = {result.num_data}",
    )
    return axes
