"""Pictures: each takes a result and returns matplotlib axes. ``pip install particlevi[plots]``.

matplotlib is imported where it is used, so that the library does without it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi.comparison.table import Comparison
from particlevi.diagnostics.temperatures import chi_square_interval, temperature_set
from particlevi.draws import Draws
from particlevi.noise.spectrum import Spectrum
from particlevi.sgdvi.currents import Current
from particlevi.sgdvi.series import as_series
from particlevi.sgdvi.slices import Slice
from particlevi.sgdvi.spectra import Spectra

__all__ = [
    "current",
    "effective_temperature",
    "lag_covariance_loops",
    "potential_against_loss",
    "reversible_null",
    "spectrum",
    "temperatures",
]

_LEAST_TEMPERATURE = 1e-5


def _axes(axes: Any, num: int = 1, width: float = 5.5) -> Any:
    if axes is not None:
        return axes
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install particlevi[plots].") from error
    _, made = plt.subplots(1, num, figsize=(width * num, 4), layout="constrained")
    return made


def spectrum(found: Spectrum, axes: Any = None) -> Any:
    """Eigenvalues of the noise covariance by rank, and the threshold of its numerical rank.

    Args:
        found: from ``gradient_noise(...).spectrum()``.
        axes: to draw on.
    """
    axes = _axes(axes)
    values = found.eigenvalues.numpy()
    shown = values > values[0] * 1e-16
    axes.loglog(np.arange(1, len(values) + 1)[shown], values[shown], color="C0")
    threshold = found.threshold()
    axes.axhline(threshold, color="C3", linestyle="--", linewidth=1)
    above = int((values > threshold).sum())
    axes.annotate(
        f"float32 threshold: {above} of {found.num_params} above",
        (1, threshold),
        xytext=(0, 4),
        textcoords="offset points",
        color="C3",
        fontsize=8,
    )
    axes.set(
        xlabel="rank",
        ylabel="eigenvalue of C",
        title=f"Gradient noise: D = {found.num_params}, N = {found.num_data}",
    )
    return axes


def temperatures(draws: Draws, data: Any = None, *, thin: int = 1, axes: Any = None) -> Any:
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
    every = temperature_set(draws)
    target = float(every.mean())
    if float(every.max() - every.min()) > 1e-6 * abs(target):
        raise ValueError(
            f"These draws were taken at temperatures from {float(every.min()):.3g} to "
            f"{float(every.max()):.3g}; the picture is of one: draws.select(chains) picks chains."
        )
    found = draws.temperatures(data, thin=thin)
    if axes is None:
        axes = _axes(None)
        axes.figure.set_figheight(1.5 + 0.35 * len(found))
    rows = np.arange(len(found))
    for row, each in zip(rows, found.values(), strict=True):
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
    means, errors = ([getattr(each, name) for each in found.values()] for name in ("mean", "mcse"))
    axes.errorbar(means, rows, xerr=2 * np.array(errors), fmt="o", color="C0", ms=4, capsize=3)
    axes.axvline(target, color="k", linewidth=0.8)
    axes.set_yticks(rows, [_label(name) for name in found])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="temperature", title=f"Temperatures (set to {target:g})")
    return axes


def _label(name: str) -> str:
    if name.startswith("kinetic"):
        return name
    return "configurational" if name == "all" else f"configurational[{name}]"


def potential_against_loss(found: Slice, axes: Any = None) -> Any:
    """Effective potential with its band and the loss, scaled to it, on a line; contours on a plane.

    Args:
        found: from ``compare_potentials``.
        axes: one for a line, two for a plane.
    """
    if found.potential.ndim == 1:
        axes = _axes(axes)
        distance = (found.points - found.points[0]).double().norm(dim=-1).numpy()
        phi = found.potential.numpy()
        axes.plot(distance, phi, color="C0", label="effective potential Phi")
        if found.band is not None:
            band = found.band.numpy()
            axes.fill_between(
                distance, phi - 2 * band, phi + 2 * band, color="C0", alpha=0.25, lw=0
            )
        scaled = (found.potential - found.disagreement).numpy()
        axes.plot(distance, scaled, color="C1", linestyle="--", label=f"{found.scale:.3g} x loss")
        axes.set(
            xlabel="distance along the line",
            ylabel="potential (minimum 0)",
            title=f"Phi and loss: correlation {found.agreement:.3f}",
        )
        axes.legend()
        return axes
    if found.potential.ndim != 2:
        raise ValueError(f"A slice is a line or a plane, got {found.potential.ndim} dimensions.")
    axes = _axes(axes, 2)
    pictures = {"effective potential Phi": found.potential, "mean loss": found.loss}
    corner = found.points[0, 0]
    s = (found.points[:, 0] - corner).double().norm(dim=-1).numpy()
    t = (found.points[0] - corner).double().norm(dim=-1).numpy()
    for axis, (title, values) in zip(axes, pictures.items(), strict=True):
        drawn = axis.contourf(s, t, values.T.numpy(), levels=20)
        axis.figure.colorbar(drawn, ax=axis)
        axis.set(title=title, xlabel="distance along s", ylabel="distance along t")
    return axes


def current(found: Current, axes: Any = None) -> Any:
    """The probability current as arrows over the density; grey where it is within two errors of 0.

    Args:
        found: from ``probability_current``.
        axes: to draw on.
    """
    axes = _axes(axes)
    x, y = (axis.numpy() for axis in found.axes)
    axes.pcolormesh(x, y, found.density.T.numpy(), cmap="Blues", shading="nearest")
    flow = found.current.numpy()
    size = np.linalg.norm(flow, axis=-1)
    error = found.standard_error.norm(dim=-1).numpy()
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
    axes = _axes(axes)
    series = as_series(draws)[..., list(plane)]
    if series.shape[1] <= max_lag:
        raise ValueError(f"max_lag must be below {series.shape[1]}, got {max_lag}.")
    x, y = (series - series.mean((0, 1))).unbind(-1)
    length = x.shape[1]
    forward, backward = (
        torch.stack([(a[:, : length - s] * b[:, s:]).mean() for s in range(max_lag + 1)]).numpy()
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


def reversible_null(found: Spectra, axes: Any = None) -> Any:
    """Spectrum of increments and autocorrelations, each beside the reversible null.

    Args:
        found: from ``spectra``.
        axes: two.
    """
    first, second = axes = _axes(axes, 2)
    curves = (
        (first, found.frequencies, found.power, found.power_std, found.null_power),
        (
            second,
            found.lags,
            found.autocorrelation,
            found.autocorrelation_std,
            found.null_autocorrelation,
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


def effective_temperature(found: Comparison, axes: Any = None) -> Any:
    """Variance of each set of draws over the posterior's, by eigendirection of the Hessian.

    Ratios below 1e-5, of directions in which a method does not move, are below the picture.

    Args:
        found: from ``compare(..., train_data=...)``.
        axes: to draw on.

    Raises:
        ValueError: a comparison without Hessian.
    """
    if not found.temperatures:
        raise ValueError("No temperatures in this comparison: compare(..., train_data=(x, y)).")
    axes = _axes(axes)
    values = found.eigenvalues
    up = values > 0
    for k, (name, temperatures) in enumerate(found.temperatures.items()):
        axes.loglog(values[up], temperatures[up], ".", color=f"C{k}", label=name, markersize=4)
    axes.axhline(1, color="k", linewidth=0.8)
    # Where SGD has no noise its variance is rounding: that shall not set the scale.
    lowest = min(float(each[up].nan_to_num(1.0).min()) for each in found.temperatures.values())
    if lowest < _LEAST_TEMPERATURE:
        axes.set_ylim(bottom=_LEAST_TEMPERATURE)
    axes.set(
        xlabel="eigenvalue of the Hessian of the potential (nats)",
        ylabel="variance over the reference's",
        title="Effective temperature (posterior: 1)",
    )
    axes.legend()
    return axes
