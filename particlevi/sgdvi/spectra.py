"""Spectra and autocorrelations of a trajectory beside those of a reversible one.

Slow decay of autocorrelations and missing power at low frequencies of the increments have been
read as signs of limit cycles. They are not: an autoregression ``x' = a x + e``, which looks the
same backwards in time, has increments with the power
``s^2 (2 - 2 cos w) / (1 + a^2 - 2 a cos w)``, zero at ``w = 0``, and autocorrelations ``a^lag``. So
this null stands beside every curve; the test for loops is ``circulation``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._checks import check_positive_int
from particlevi._shown import Shown
from particlevi.draws import Draws
from particlevi.sgdvi.series import as_series, block_error, is_stationary

__all__ = ["Spectra", "spectra"]

_COORDINATES = 64


@dataclass(frozen=True, eq=False, repr=False)
class Spectra(Shown):
    """Means over coordinates and chains, each beside that of the autoregression.

    Attributes:
        frequencies: in radians per draw, ``[W]``.
        power: of the increments of coordinates scaled to variance 1, ``[W]``.
        power_std: its standard deviation between coordinates, ``[W]``.
        power_error: its standard error, from the spread over blocks, ``[W]``.
        null_power: of the autoregressions with the same lag-1 autocorrelations, ``[W]``.
        lags: in draws, ``[L]``.
        autocorrelation: ``[L]``.
        autocorrelation_std: between coordinates, ``[L]``.
        autocorrelation_error: standard errors, from the spread over blocks, ``[L]``.
        null_autocorrelation: ``[L]``.
        factors: the lag-1 autocorrelation ``a`` of each coordinate, ``[D]``.
        stationary: whether the two halves of the run agree; None if it was too short to tell.
    """

    frequencies: Tensor
    power: Tensor
    power_std: Tensor
    power_error: Tensor
    null_power: Tensor
    lags: Tensor
    autocorrelation: Tensor
    autocorrelation_std: Tensor
    autocorrelation_error: Tensor
    null_autocorrelation: Tensor
    factors: Tensor
    stationary: bool | None


def spectra(draws: Draws | Tensor, *, num_frequencies: int = 64, max_lag: int = 100) -> Spectra:
    """Spectrum of increments and autocorrelation, with the reversible null beside them.

    The spectrum is the mean of periodograms of Hann-windowed stretches of ``2 num_frequencies``
    increments (Welch's method).

    Args:
        draws: stationary draws of SGD, or ``[P, T, D]``, evenly spaced.
        num_frequencies: W.
        max_lag: L - 1, in draws.

    Raises:
        ValueError: fewer draws per chain than that takes.
    """
    check_positive_int("num_frequencies", num_frequencies)
    check_positive_int("max_lag", max_lag)
    series = as_series(draws)
    window = 2 * num_frequencies
    needed = max(window + 1, max_lag + 2)
    if series.shape[1] < needed:
        raise ValueError(f"This takes at least {needed} draws per chain, got {series.shape[1]}.")
    centered = series - series.mean((0, 1))
    variance = centered.square().mean((0, 1))
    if (variance == 0).any():
        raise ValueError("The draws do not move in some coordinates: leave those out.")
    scaled = centered / variance.sqrt()
    lags = torch.arange(max_lag + 1)
    length = scaled.shape[1]
    correlation = torch.empty(max_lag + 1, scaled.shape[2], dtype=torch.float64)
    correlation_error = torch.empty(max_lag + 1, dtype=torch.float64)
    for k in lags.tolist():
        pairs = scaled[:, : length - k] * scaled[:, k:]
        correlation[k] = pairs.mean((0, 1))
        correlation_error[k] = block_error(pairs.mean(2, keepdim=True))[0]
    factors = correlation[1]
    shape = torch.hann_window(window, dtype=torch.float64)
    powers, totals = [], []
    for some in scaled.split(_COORDINATES, 2):
        pieces = some.diff(dim=1).unfold(1, window, num_frequencies)
        periodograms = torch.fft.rfft(pieces * shape).abs().square() / shape.square().sum()
        powers.append(periodograms.mean((0, 1)))
        totals.append(periodograms.sum(2))
    power, total = torch.cat(powers), torch.stack(totals).sum(0)
    frequencies = torch.linspace(0, math.pi, num_frequencies + 1, dtype=torch.float64)
    wave = frequencies.cos()
    null = ((1 - factors**2)[:, None] * (2 - 2 * wave)) / (
        1 + factors[:, None] ** 2 - 2 * factors[:, None] * wave
    )
    return Spectra(
        frequencies=frequencies[1:],
        power=power.mean(0)[1:],
        power_std=power.std(0, correction=0)[1:],
        power_error=block_error(total / len(power))[1:],
        null_power=null.mean(0)[1:],
        lags=lags,
        autocorrelation=correlation.mean(1),
        autocorrelation_std=correlation.std(1, correction=0),
        autocorrelation_error=correlation_error,
        null_autocorrelation=(factors ** lags[:, None]).mean(1),
        factors=factors,
        stationary=is_stationary(series),
    )
