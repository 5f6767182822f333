"""Circulation, and what is mistaken for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import as_list, check_is, check_positive_int, is_integer
from particlevi.draws import Draws
from particlevi.plots.axes import as_axes
from particlevi.sgdvi.currents import Current
from particlevi.sgdvi.series import as_series
from particlevi.sgdvi.spectra import Spectra

__all__ = ["current", "lag_covariance_loops", "reversible_null"]


def current(result: Current, axes: Any = None) -> Any:
    """The probability current as arrows over the density; grey where it is within two errors of 0.

    Args:
        result: from ``probability_current``.
        axes: to draw on.
    """
    check_is("result", result, Current, "what sgdvi.probability_current gives")
    axes = as_axes(axes)
    x, y = (axis.numpy() for axis in result.axes)
    axes.pcolormesh(x, y, result.density.T.numpy(), cmap="Blues", shading="nearest")
    flow = result.current.numpy()
    size = np.linalg.norm(flow, axis=-1)
    error = result.standard_error.norm(dim=-1).numpy()
    known = (size > 2 * error) & (size > 0)
    grid_x, grid_y = np.meshgrid(x, y, indexing="ij")
    scale = size.max() / max(x[1] - x[0], y[1] - y[0]) if size.max() > 0 else 1.0
    for mask, color in ((~known, "0.7"), (known, "C3")):
        axes.quiver(
            grid_x[mask],
            grid_y[mask],
            flow[mask, 0],
            flow[mask, 1],
            color=color,
            angles="xy",
            scale_units="xy",
            scale=scale,
            width=0.004,
        )
    axes.set(xlabel="first direction", ylabel="second direction", title="Probability current")
    return axes


def lag_covariance_loops(
    draws: Draws | Tensor, plane: tuple[int, int] = (0, 1), max_lag: int = 100, axes: Any = None
) -> Any:
    """Cross-covariances of two coordinates forwards and backwards in time.

    ``E[x_i(t) x_j(t + s)]`` and ``E[x_j(t) x_i(t + s)]`` against ``s`` are one curve for a process
    that looks the same in both directions of time; the area between them is circulation.

    Args:
        draws: stationary draws of SGD, or ``[P, T, D]``.
        plane: coordinates i and j.
        max_lag: in draws.
        axes: to draw on.
    """
    axes = as_axes(axes)
    check_positive_int("max_lag", max_lag, minimum=0)
    series = as_series(draws)
    pair, size = as_list("plane", plane, "two numbers of coordinates"), series.shape[2]
    if len(pair) != 2 or not all(is_integer(i) and -size <= i < size for i in pair):
        raise ValueError(f"plane must be two coordinates in 0 ... {size - 1}, got {plane!r}.")
    series = series[..., [int(i) for i in pair]]
    if series.shape[1] <= max_lag:
        raise ValueError(f"max_lag must be below {series.shape[1]}, got {max_lag}.")
    x, y = (series - series.mean((0, 1))).unbind(-1)
    length = x.shape[1]
    forward, backward = (
        torch.stack(
            [(a[:, : length - s] * b[:, s:]).mean() for s in range(int(max_lag) + 1)]
        ).numpy()
        for a, b in ((x, y), (y, x))
    )
    lags = np.arange(max_lag + 1)
    i, j = plane
    axes.plot(lags, forward, color="C0", label=f"x{i}(t) x{j}(t + s)")
    axes.plot(lags, backward, color="C1", label=f"x{j}(t) x{i}(t + s)")
    axes.fill_between(lags, forward, backward, color="0.85", lw=0)
    axes.axhline(0, color="k", linewidth=0.5)
    axes.set(xlabel="lag s (draws)", ylabel="covariance", title="Forwards and backwards in time")
    axes.legend()
    return axes


def reversible_null(result: Spectra, axes: Any = None) -> Any:
    """Spectrum of increments and autocorrelations, each beside the reversible null.

    Args:
        result: from ``spectra``.
        axes: two.
    """
    check_is("result", result, Spectra, "what sgdvi.spectra gives")
    first, second = axes = as_axes(axes, 2)
    curves = (
        (first, result.frequencies, result.power, result.power_std, result.null_power),
        (
            second,
            result.lags,
            result.autocorrelation,
            result.autocorrelation_std,
            result.null_autocorrelation,
        ),
    )
    for axis, x, mean, std, null in curves:
        axis.plot(x, mean, color="C0", label="SGD, mean and spread over coordinates")
        axis.fill_between(x, mean - std, mean + std, color="C0", alpha=0.2, lw=0)
        axis.plot(x, null, color="k", linestyle="--", label="reversible autoregression")
        axis.legend(fontsize=8)
    first.set(
        xlabel="frequency (radians per draw)",
        ylabel="power of increments",
        title="A dip at low frequency is no loop",
    )
    second.set(xlabel="lag (draws)", ylabel="autocorrelation", title="Nor is a slow decay")
    return axes
