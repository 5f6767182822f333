"""A few directions in which draws spread further than a scale for each parameter tells.

Among thousands of parameters it is often a few combinations that chains are slow in: a mean and all
the effects around it. In units of the standard deviations, of n draws of D parameters, the largest
eigenvalues of the covariance show them, if they stand out: noise alone has eigenvalues up to
``b = (1 + sqrt(D / n))^2``, with n the number of independent draws. As that is not known, b is
taken to be the eigenvalue after the last that could count, and one counts that is 1.5 times as
large. A true eigenvalue l shows as ``l (1 + g / (l - 1))`` with ``g = (sqrt(b) - 1)^2``, which is
solved for l.

References: Baik and Silverstein, "Eigenvalues of large sample covariance matrices of spiked
population models", 2006; Seyboldt, Carlson and Carpenter, "Preconditioning Hamiltonian Monte Carlo
by minimizing Fisher divergence", 2024, for low-rank metrics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.typing import JSON, Controls, Progress, World

__all__ = [
    "RANK",
    "LowRank",
    "directions",
    "hold",
    "most_rows",
    "no_directions",
    "renew",
    "shown_by_both",
]

RANK = 8
_STANDS_OUT = 1.5
_ROWS, _FEWEST_ROWS, _NUMBERS = 512, 32, 1 << 24


def most_rows(num_params: int) -> int:
    """Draws that are held at once: 512, or as many as 128 MB take; 0 below 32."""
    rows = min(_ROWS, _NUMBERS // num_params)
    return rows if rows >= _FEWEST_ROWS else 0


def directions(draws: Tensor, scale: Tensor, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Orthonormal directions ``[D, rank]`` in units of the scale, and the spread along them.

    Directions that do not stand out are zero, with a spread of 1. Draws that repeat count once.

    Args:
        draws: ``[n, D]``.
        scale: standard deviations ``[D]``.
        rank: how many directions at most.

    >>> generator = torch.Generator().manual_seed(0)
    >>> draws = torch.randn(200, 50, generator=generator)
    >>> draws = draws + 3 * torch.randn(200, 1, generator=generator)
    >>> basis, spread = directions(draws, torch.ones(50))
    >>> (spread > 1).tolist()
    [True, False, False, False, False, False, False, False]
    """
    basis = scale.new_zeros(len(scale), rank)
    spread = scale.new_ones(rank)
    finite = torch.unique(draws[torch.isfinite(draws).all(1)], dim=0)
    if len(finite) < 2 * rank:
        return basis, spread
    z = ((finite - finite.mean(0)) / scale).double()
    values, vectors = torch.linalg.eigh(z @ z.mT / (len(z) - 1))
    values, vectors = values.flip(0)[: rank + 1], vectors.flip(1)[:, :rank]
    edge = values[rank].clamp(min=1)
    excess = (edge.sqrt() - 1).square()
    known = values[:rank]
    half = known + 1 - excess
    true = 0.5 * (half + (half.square() - 4 * known).clamp(min=0).sqrt())
    count = (known > _STANDS_OUT * edge) & (true > 1)
    found = torch.nn.functional.normalize(z.mT @ vectors, dim=0)
    basis = torch.where(count, found, 0.0).to(basis)
    return basis, torch.where(count, true.clamp(min=1).sqrt(), 1.0).to(spread)


class LowRank(NamedTuple):
    """Directions, and the draws of a window from which the next ones come.

    Attributes:
        basis: ``[D, K]``; K = 0 where none are wanted.
        spread: along them, ``[K]``.
        draws: ``[N, D]`` of the window.
        filled: how many there are, 0-d.
    """

    basis: Tensor
    spread: Tensor
    draws: Tensor
    filled: Tensor

    @property
    def controls(self) -> Controls:
        """Of a metric, beside the scale."""
        return {"basis": self.basis, "spread": self.spread} if len(self.spread) else {}

    @property
    def report(self) -> dict[str, JSON]:
        """How many directions the metric has beside the scales, and the largest spread."""
        if not len(self.spread):
            return {}
        found, largest = int((self.spread > 1).sum()), float(self.spread.max())
        return {"directions": found, "largest_spread": largest}


def no_directions(like: Tensor, wanted: bool) -> LowRank:
    """None yet, for particles ``[P, D]``."""
    size, rank = like.shape[1], RANK if wanted else 0
    return LowRank(
        like.new_zeros(size, rank),
        like.new_ones(rank),
        like.new_zeros(most_rows(size) if wanted else 0, size),
        torch.zeros((), dtype=torch.long),
    )


def hold(
    found: LowRank, position: Tensor, progress: Progress, ends: Sequence[int], world: World
) -> LowRank:
    """With the draws ``[P, D]`` of this step, if it is among those of the window that are kept.

    They are spread evenly over the window, of those that end after ``ends``, and end with it.
    """
    if not len(found.draws):
        return found
    spans = itertools.pairwise([progress.num_warmup // 10, *ends])
    first, last = next((span for span in spans if progress.step <= span[1]), (0, 0))
    if not last:
        return found
    chains, filled = int(world.sum(torch.ones_like(position[:, 0]))), int(found.filled)
    every = max(1, math.ceil((last - first) * chains / len(found.draws)))
    if (last - progress.step) % every or filled + chains > len(found.draws):
        return found
    draws = found.draws.clone()
    (draws[filled : filled + chains],) = world.gather([position])
    return found._replace(draws=draws, filled=found.filled + chains)


def renew(found: LowRank, scale: Tensor, chains: int | None = None) -> LowRank:
    """The directions of the window's draws in units of the scale ``[D]``; the window is empty.

    With the number of chains, only as many as both halves of the chains show.
    """
    if not len(found.spread):
        return found
    draws = found.draws[: int(found.filled)]
    basis, spread = directions(draws, scale)
    if chains is not None:
        seen = torch.arange(len(spread), device=spread.device) < shown_by_both(draws, scale, chains)
        basis, spread = torch.where(seen, basis, 0.0), torch.where(seen, spread, 1.0)
    return LowRank(basis, spread, found.draws, torch.zeros_like(found.filled))


def shown_by_both(draws: Tensor, scale: Tensor, chains: int) -> int:
    """How many of the widest directions of each half of the chains are wide in the other half.

    They count down to the first that does not have a quarter of its variance there. Draws of a
    chain that follow each other closely look like a wide direction, but not in other chains.

    Args:
        draws: ``[n, D]``, those of all chains after each other, again and again.
        scale: standard deviations ``[D]``.
        chains: how many there are.
    """
    first = torch.arange(len(draws), device=draws.device) % chains < chains // 2
    known = torch.isfinite(draws).all(1)
    z = (draws - draws[known].mean(0)) / scale
    shown = []
    for half in (first, ~first):
        basis, spread = directions(draws[half & known], scale)
        there = (z[~half & known] @ basis).square().mean(0)
        as_wide = (spread > 1) & (there > 0.25 * spread.square())
        shown.append(int(as_wide.long().cumprod(0).sum()))
    return min(shown)
