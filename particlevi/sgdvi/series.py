"""Runs as tensors ``[P, T, D]``, cut into nearly independent blocks and checked for drift."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_positive_int, is_number
from particlevi._warning import warn
from particlevi.draws import Draws
from particlevi.errors import NotStationaryWarning

__all__ = ["as_series", "block_error", "block_labels", "is_stationary"]


_MOST_DRIFT = 0.5


def as_series(draws: Draws | Tensor, what: str = "draws") -> Tensor:
    """Draws as ``[P, T, D]`` in float64.

    Args:
        draws: draws of chains, or a tensor ``[P, T, D]``, ``[T, D]`` (one run) or ``[S, 1, D]``.
        what: their name in messages.

    Raises:
        ValueError: interacting particles, another shape, or values that are not finite.
    """
    if isinstance(draws, Draws):
        if draws.interacting:
            raise ValueError(f"{what} must be of independent chains, these particles interact.")
        draws = draws.particles
    real = isinstance(draws, Tensor) and not draws.is_complex() and draws.dtype != torch.bool
    if not real or draws.ndim not in (2, 3) or 0 in draws.shape:
        shape = list(draws.shape) if isinstance(draws, Tensor) else type(draws).__name__
        raise ValueError(f"{what} must be Draws or a tensor [P, T, D] or [T, D], got {shape}.")
    series = draws.detach().double()
    check_finite(what, series, "Leave out runs that diverged.")
    return series.unsqueeze(0) if series.ndim == 2 else series


def block_labels(series: Tensor, num_blocks: int) -> Tensor:
    """Block numbers ``[P, T]`` of ``[P, T, D]``: whole chains, or stretches of few chains.

    Blocks are independent of each other as far as they are longer than the run's memory.
    """
    check_positive_int("num_blocks", num_blocks)
    num_blocks, (num_chains, num_draws) = int(num_blocks), series.shape[:2]
    if num_chains >= num_blocks or num_draws == 1:
        count = min(num_blocks, num_chains)
        return (torch.arange(num_chains) * count // num_chains)[:, None].expand(-1, num_draws)
    per_chain = min(num_draws, math.ceil(num_blocks / num_chains))
    within = torch.arange(num_draws) * per_chain // num_draws
    return torch.arange(num_chains)[:, None] * per_chain + within


def block_error(values: Tensor, num_blocks: int = 20) -> Tensor:
    """Standard errors ``[...]`` of the mean of ``[P, T, ...]``, NaN for a single block."""
    labels = block_labels(values, num_blocks).flatten()
    sizes = torch.bincount(labels).to(values)
    flat = (values - values.mean((0, 1))).flatten(0, 1).flatten(1)
    sums = torch.zeros(len(sizes), flat.shape[1], dtype=flat.dtype).index_add_(0, labels, flat)
    count = len(sizes)
    if count < 2:
        return torch.full(values.shape[2:], math.nan, dtype=values.dtype)
    error = (sums / len(flat)).square().sum(0) * count / (count - 1)
    return error.sqrt().reshape(values.shape[2:])


def is_stationary(series: Tensor, what: str = "The run", level: float = 1e-3) -> bool | None:
    """Whether a run is stationary and longer than its memory; warns if it is not.

    A t-test of the two halves' means and variances on each coordinate, over independent chains or
    over 10 batches in each half of a single run, at ``level`` divided by the number of tests. None
    for fewer draws than that takes.

    Chains that drift in different ways pass that test on average. So 8 to 39 chains of at least 40
    draws must also be longer than their memory: the mean square of what a coordinate moves from a
    chain's first half to its second is at most half its variance within chains. It is ``4/n`` of it
    for ``n`` independent draws per chain, twice it for a random walk and three times for a constant
    drift. (Of more chains the ensemble is the sample, and short chains are no fault.)

    Args:
        series: ``[P, T, D]``.
        what: its name in the warning.
        level: of the test.
    """
    from scipy.special import stdtrit

    if not is_number(level) or not 0 < level < 1:
        raise ValueError(f"level must be a number between 0 and 1, got {level!r}.")
    series = as_series(series, "series")
    chains, length, size = series.shape
    centered = series - series.mean((0, 1))
    values = torch.cat([centered, centered.square()], dim=-1)
    if chains >= 8 and length >= 2:
        change = values[:, length // 2 :].mean(1) - values[:, : length // 2].mean(1)
        if chains < 40 <= length and not _longer_than_memory(series, change[:, :size], what):
            return False
        error, freedom = change.std(0) / math.sqrt(chains), chains - 1
        shift = change.mean(0)
    elif length >= 40:
        batches = values[:, : length // 20 * 20].unflatten(1, (20, -1)).mean(2)
        first, second = batches[:, :10].flatten(0, 1), batches[:, 10:].flatten(0, 1)
        error = ((first.var(0) + second.var(0)) / len(first)).sqrt()
        shift, freedom = second.mean(0) - first.mean(0), 2 * len(first) - 2
    else:
        return None
    moving = error > 0
    if not moving.any():
        return True
    score = float((shift[moving] / error[moving]).abs().max())
    bound = float(stdtrit(freedom, 1 - level / (2 * 2 * size)))
    if score > bound:
        warn(
            f"{what} was too short to be stationary: means or variances of its two halves differ "
            f"by {score:.1f} standard errors (limit {bound:.1f}). Start later or run longer.",
            NotStationaryWarning,
        )
    return score <= bound


def _longer_than_memory(series: Tensor, change: Tensor, what: str) -> bool:
    inside = (series - series.mean(1, keepdim=True)).square().mean((0, 1))
    moving = inside > 0
    drift = (change.square().mean(0)[moving] / inside[moving]).amax() if moving.any() else 0.0
    if drift <= _MOST_DRIFT:
        return True
    warn(
        f"{what} was too short to be stationary: between the halves of a chain a coordinate moves "
        f"by {float(drift) ** 0.5:.2g} standard deviations (limit {_MOST_DRIFT**0.5:.2g}), as "
        "slow drift does. Run longer, or start at least 40 chains from the stationary law.",
        NotStationaryWarning,
    )
    return False
