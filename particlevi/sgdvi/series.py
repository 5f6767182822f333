"""Runs as tensors ``[P, T, D]``, cut into nearly independent blocks and checked for drift."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from particlevi._checks import check_finite
from particlevi.draws import Draws

__all__ = ["NotStationaryWarning", "as_series", "block_labels", "is_stationary"]


class NotStationaryWarning(UserWarning):
    """The first and the second half of a run have different laws."""


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
    if not isinstance(draws, Tensor) or draws.ndim not in (2, 3) or 0 in draws.shape:
        shape = list(draws.shape) if isinstance(draws, Tensor) else type(draws).__name__
        raise ValueError(f"{what} must be Draws or a tensor [P, T, D] or [T, D], got {shape}.")
    series = draws.detach().double()
    check_finite(what, series, "Leave out runs that diverged.")
    return series.unsqueeze(0) if series.ndim == 2 else series


def block_labels(series: Tensor, num_blocks: int) -> Tensor:
    """Block numbers ``[P, T]`` of ``[P, T, D]``: whole chains, or stretches of few chains.

    Blocks are independent of each other as far as they are longer than the run's memory.
    """
    num_chains, num_draws = series.shape[:2]
    if num_chains >= num_blocks or num_draws == 1:
        count = min(num_blocks, num_chains)
        return (torch.arange(num_chains) * count // num_chains)[:, None].expand(-1, num_draws)
    per_chain = min(num_draws, math.ceil(num_blocks / num_chains))
    within = torch.arange(num_draws) * per_chain // num_draws
    return torch.arange(num_chains)[:, None] * per_chain + within


def is_stationary(series: Tensor, what: str = "The run", level: float = 1e-3) -> bool | None:
    """Whether means and variances of the two halves agree; warns if they do not.

    A t-test on each coordinate and its square, over independent chains or over 10 batches in each
    half of a single run, at ``level`` divided by the number of tests. None for fewer draws than
    that takes.

    Args:
        series: ``[P, T, D]``.
        what: its name in the warning.
        level: of the test.
    """
    from scipy.special import stdtrit

    chains, length, size = series.shape
    centered = series - series.mean((0, 1))
    values = torch.cat([centered, centered.square()], dim=-1)
    if chains >= 8 and length >= 2:
        change = values[:, length // 2 :].mean(1) - values[:, : length // 2].mean(1)
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
        warnings.warn(
            f"{what} was too short to be stationary: means or variances of its two halves differ "
            f"by {score:.1f} standard errors (limit {bound:.1f}). Start later or run longer.",
            NotStationaryWarning,
            stacklevel=3,
        )
    return score <= bound
