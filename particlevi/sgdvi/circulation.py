"""Whether SGD's trajectories loop, and how fast.

The area-enclosing rate in the plane of two coordinates::

    R_ij = E[x_i(t) x_j(t + s) - x_j(t) x_i(t + s)] / s

is the antisymmetric part of the lagged covariance. A process that looks the same backwards in time
has ``R = 0`` at every lag, whatever its potential; loops have not. Power spectra and
autocorrelations cannot tell the two apart (see ``spectra``). Near a minimum, in the limit of a
short lag, ``R = 2 T Q`` with the ``Q`` of ``stationary_law``.

Reference: Ghanta, Neu and Teitsworth, "Fluctuation loops in noise-driven linear dynamical systems",
2017; Chaudhari and Soatto, "Stochastic gradient descent performs variational inference, converges
to limit cycles for deep networks", 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int, check_seed
from particlevi._shown import Shown
from particlevi.draws import Draws
from particlevi.noise.covariance import Estimate
from particlevi.sgdvi._checks import as_directions
from particlevi.sgdvi.series import as_series, block_labels, is_stationary

__all__ = ["Circulation", "circulation", "entropy_production"]


@dataclass(frozen=True, eq=False, repr=False)
class Circulation(Shown):
    """Area-enclosing rates of all planes of coordinates, and the test against time reversal.

    Attributes:
        rates: ``R [D, D]``, antisymmetric, per unit of time; positive in ``[i, j]`` for loops from
            axis i towards axis j.
        standard_error: ``[D, D]``, from the spread over blocks.
        p_values: of each plane on its own, ``[D, D]``; 1 on the diagonal.
        p_value: of all planes together, by the largest rate over the root of the sum of its
            blocks' squares, a unit that is the same for every flip.
        lag: s, in units of time.
        num_blocks: that were flipped.
        stationary: whether the two halves of the run agree; None if it was too short to tell.
    """

    rates: Tensor
    standard_error: Tensor
    p_values: Tensor
    p_value: float
    lag: float
    num_blocks: int
    stationary: bool | None

    def q(self, temperature: float) -> tuple[Tensor, Tensor]:
        """``Q = R / (2T)`` of the linear theory and its standard errors, ``[D, D]`` each."""
        check_positive("temperature", temperature)
        return self.rates / (2 * temperature), self.standard_error / (2 * temperature)

    def strongest_plane(self) -> tuple[int, int]:
        """Coordinates whose rate is largest in units of its standard error, its rate positive."""
        score = torch.where(self.standard_error > 0, self.rates / self.standard_error, 0.0)
        at = int(score.argmax())
        return at // len(score), at % len(score)


def circulation(
    draws: Draws | Tensor,
    time_per_draw: float,
    *,
    lag: int = 1,
    directions: Tensor | None = None,
    num_blocks: int = 40,
    num_flips: int = 2000,
    seed: int = 0,
) -> Circulation:
    """Area-enclosing rates with a test against time reversal.

    Reversed in time, a block of the run has the opposite rates; so if the law is the same in both
    directions, flipping the signs of independent blocks changes nothing. The p-values compare the
    mean over blocks with that of randomly flipped ones; no law of the noise is assumed.

    Args:
        draws: stationary draws of SGD, or ``[P, T, D]``, all steps or evenly thinned.
        time_per_draw: ``eta`` times the steps from one draw to the next.
        lag: s in draws; short against the time of a loop, or the rate comes out too low.
        directions: ``[D, K]`` to project on first; for more than some hundred dimensions.
        num_blocks: whole chains, or stretches longer than the run's memory.
        num_flips: for the p-values, whose least value is ``1 / (num_flips + 1)``.
        seed: of the flips.

    Raises:
        ValueError: one coordinate, fewer draws than the lag takes, or fewer than 8 blocks.

    >>> x = torch.randn(20, 500, 2, generator=torch.Generator().manual_seed(0))
    >>> circulation(x, time_per_draw=0.1).p_value > 0.01
    True
    """
    check_positive("time_per_draw", time_per_draw)
    check_positive_int("num_flips", num_flips)
    check_seed("seed", seed)
    series = as_series(draws)
    if directions is not None:
        basis = as_directions("directions", directions, series.shape[-1])
        series = (series - series.mean((0, 1))) @ basis
    blocks, weights = _block_rates(series, lag, time_per_draw, num_blocks)
    count, size = len(blocks), series.shape[-1]
    if size < 2:
        raise ValueError("A loop needs a plane: got one coordinate.")
    if count < 8:
        raise ValueError(f"The test needs at least 8 blocks, got {count}: a longer run, or more.")
    rates = torch.einsum("k,kij->ij", weights, blocks)
    error = (weights.square()[:, None, None] * (blocks - rates).square()).sum(0).sqrt()
    error = error * math.sqrt(count / (count - 1))
    generator = torch.Generator().manual_seed(int(seed))
    i, j = torch.triu_indices(size, size, offset=1)
    pairs = weights[:, None] * blocks[:, i, j]
    # A unit that flips leave as it is: else the largest of the flipped rates is of another law.
    unit = pairs.square().sum(0).sqrt().clamp(min=torch.finfo(pairs.dtype).tiny)
    observed = rates[i, j].abs()
    above, largest = torch.zeros_like(observed), 0
    for chunk in range(0, num_flips, 100):
        flips = min(100, num_flips - chunk)
        signs = torch.randint(2, (flips, count), generator=generator).double() * 2 - 1
        flipped = (signs @ pairs).abs()
        above += (flipped >= observed).sum(0)
        largest += int(((flipped / unit).amax(1) >= (observed / unit).max()).sum())
    p_values = torch.ones(size, size, dtype=torch.float64)
    p_values[i, j] = p_values[j, i] = (1 + above) / (1 + num_flips)
    return Circulation(
        rates=rates,
        standard_error=error,
        p_values=p_values,
        p_value=(1 + largest) / (1 + num_flips),
        lag=lag * time_per_draw,
        num_blocks=count,
        stationary=is_stationary(series),
    )


def _block_rates(
    series: Tensor, lag: int, time_per_draw: float, num_blocks: int
) -> tuple[Tensor, Tensor]:
    """Rates ``[B, D, D]`` of each block and the share of the draws in each ``[B]``."""
    check_positive_int("lag", lag)
    check_positive_int("num_blocks", num_blocks)
    if series.shape[1] <= lag:
        raise ValueError(f"A lag of {lag} needs more draws per chain than {series.shape[1]}.")
    centered = series - series.mean((0, 1))
    before, after = centered[:, :-lag].flatten(0, 1), centered[:, lag:].flatten(0, 1)
    labels = block_labels(series[:, :-lag], num_blocks).flatten()
    sizes = torch.bincount(labels).double()
    rates = []
    for k in range(len(sizes)):
        moment = before[labels == k].T @ after[labels == k]
        rates.append((moment - moment.T) / (sizes[k] * lag * time_per_draw))
    return torch.stack(rates), sizes / sizes.sum()


def entropy_production(
    draws: Draws | Tensor, time_per_draw: float, *, lag: int = 1, num_blocks: int = 40
) -> Estimate:
    """A lower bound on the entropy production rate in nats per unit of time, from draws alone.

    ``(1/4) tr(B^-1 R S^-1 R')`` with ``S`` the covariance and ``B`` half the covariance of the
    increments per unit of time: the best bound that velocity fields linear in ``x`` can give, and
    the rate itself for linear dynamics. The square of the noise in ``R`` is taken off by pairing
    different blocks only, so that reversible runs give zero on average (and below it at times).

    Args:
        draws: as for ``circulation``.
        time_per_draw: likewise.
        lag: likewise.
        num_blocks: likewise.

    Returns:
        The rate; its standard error by the jackknife over blocks. A run that is too short to be
        stationary is warned of.
    """
    check_positive("time_per_draw", time_per_draw)
    series = as_series(draws)
    blocks, _ = _block_rates(series, lag, time_per_draw, num_blocks)
    if len(blocks) < 8:
        raise ValueError(f"An error bar needs at least 8 blocks, got {len(blocks)}.")
    is_stationary(series)
    flat = series.flatten(0, 1)
    steps = (series[:, lag:] - series[:, :-lag]).flatten(0, 1)
    spread = torch.linalg.inv(torch.cov(flat.T).reshape(len(blocks[0]), -1))
    kick = torch.linalg.inv(steps.T @ steps / (2 * len(steps) * lag * time_per_draw))
    whitened = blocks.flatten(1)
    paired = whitened @ torch.einsum("ij,bjk,kl->bil", kick, blocks, spread).flatten(1).T / 4

    def bound(inside: Tensor) -> Tensor:
        pairs = torch.outer(inside, inside)
        pairs.fill_diagonal_(0)
        return (pairs * paired).sum() / pairs.sum()

    count = len(blocks)
    everything = torch.ones(count, dtype=paired.dtype)
    left_out = torch.stack([bound(everything - one) for one in torch.eye(count).to(paired)])
    error = ((count - 1) * left_out.var(correction=0)).sqrt()
    return Estimate(float(bound(everything)), float(error))
