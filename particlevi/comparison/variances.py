"""The variance of a stationary process from chains that may be short: within chains, unbiased.

The variance about a chain's mean is too small by that of the mean, ``tau / T`` of it for an
autocorrelation time tau. The variogram ``g_k = E (x_{t+k} - x_t)^2 / 2 = s^2 (1 - rho_k)`` knows no
mean, so that it is unbiased at every lag and does not see that chains are in different modes. Its
plateau beyond the memory is the variance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Variance", "stationary_variance"]

_UNCORRELATED = 0.05
_ITERATIONS = 8


class Variance(NamedTuple):
    """Variances ``[D]`` and their relative squared standard errors ``[D]``."""

    value: Tensor
    relative_error: Tensor


def stationary_variance(values: Tensor) -> Variance:
    """The variance of each coordinate of chains ``[P, T, D]``, T at least 2.

    The plateau is the mean of the variogram over all lags from the first at which the correlation
    is below .05 (half the chain at most, so that a longer memory leaves a bias downwards). The
    error is that of a Gaussian process with these autocorrelations.

    Examples:
        >>> values = torch.randn(4, 500, 3, generator=torch.Generator().manual_seed(0))
        >>> variance = stationary_variance(values.cumsum(0))  # means differ between chains
        >>> variance.relative_error  # 2 / 2000 and a little for the four means
        tensor([0.0010, 0.0010, 0.0010], dtype=torch.float64)
    """
    chains, length, _ = values.shape
    gaps, pairs = _variogram(values.double())
    lag = torch.arange(length).unsqueeze(1)
    plateau = _tail_sum(gaps) / _tail_sum(pairs.unsqueeze(1))
    variance = plateau[min(1, length - 1)]
    curve = gaps / pairs.unsqueeze(1)
    cut = torch.zeros_like(variance, dtype=torch.long)
    for _ in range(_ITERATIONS):
        correlation = _correlation(curve, variance)
        below = (correlation.abs() < _UNCORRELATED) & (lag > 0)
        first = torch.where(below.any(0), below.double().argmax(0), length // 2)
        cut = first.clamp(max=max(length // 2, 1))
        variance = torch.maximum(variance, plateau.gather(0, cut.unsqueeze(0))[0])
    kept = (lag < cut) & (lag > 0)
    correlation = _correlation(curve, variance) * kept
    share = 1 - lag / length
    time = (1 + 2 * (correlation * share).sum(0)).clamp(min=0) / length
    squares = (1 + 2 * (correlation.square() * share).sum(0)) / length
    # The autocorrelations are estimates too, which counts where there are few independent draws.
    inflation = 1 + (2 * time).clamp(max=0.3)
    return Variance(variance, inflation * 2 * (squares + time.square()) / chains)


def _correlation(curve: Tensor, variance: Tensor) -> Tensor:
    return torch.where(variance > 0, 1 - curve / variance, torch.zeros_like(curve))


def _tail_sum(values: Tensor) -> Tensor:
    return values.flip(0).cumsum(0).flip(0)


def _variogram(values: Tensor) -> tuple[Tensor, Tensor]:
    """``sum (x_{t+k} - x_t)^2 / 2`` by lag, mean over chains ``[T, D]``, and the pairs ``[T]``."""
    length = values.shape[1]
    centered = values - values.mean(1, keepdim=True)
    total = torch.zeros(length, values.shape[2], dtype=values.dtype)
    for chain in centered:
        spectrum = torch.fft.rfft(chain, 2 * length, dim=0)
        products = torch.fft.irfft(spectrum * spectrum.conj(), 2 * length, dim=0)[:length]
        squares = torch.cat([torch.zeros_like(chain[:1]), chain.square().cumsum(0)])
        total += 0.5 * (squares[1:].flip(0) + squares[-1:] - squares[:length]) - products
    return total / len(values), torch.arange(length, 0, -1, dtype=values.dtype)
