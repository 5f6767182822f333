"""Trajectory lengths by the change of squared distances: ChEES.

With a chain that goes from x to x', at a velocity v' there, and the mean m of the ensemble, all in
the coordinates in which the method moves, the criterion is how much squared distances change::

    C(t) = E (|x' - m|^2 - |x - m|^2)^2 / 4

It is a proxy of how fast the slowest second moments are forgotten. Its derivative by the logarithm
of the time t of a trajectory needs no derivative of the dynamics::

    dC / d log t = E t (|x' - m|^2 - |x - m|^2) (x' - m) . v'

On ``N(0, diag s_i^2)`` and the exact flow, ``C(t) = sum_i s_i^4 sin^2(t / s_i)``. Times are uniform
up to twice their mean, and scale with it. So the mean over proposals, weighted by the probability
of acceptance, gives both C and its derivative by the logarithm of the mean time T, and T follows::

    log T <- log T + 0.1 (d log C / d log T - 1/2)

a step for every P / 2 proposals of P chains, of at most 0.1, to a maximum of ``C / sqrt(T)``.

C alone has maxima at long T too, 2.7 and 4.3 beside 1.1 on the standard Gaussian, and with few
chains T went there: of four runs with 16 chains of ``mams`` in ten dimensions three ended at more
than twice the length of the first maximum. Divided by the square root they are lower and farther,
and none of the four did. On Gaussians in ten dimensions whose coordinates all correlate by 0, 0.5,
0.9 and 0.99, with the exact flow, time per effective draw of the slowest mean or square is 5.5,
13.7, 16.9 and 18.4 at the maximum of ``C / sqrt(T)``; 5.1, 16.9, 19.9 and 21.2 at that of C; 7.2,
17.0, 21.3 and 22.2 at that of ``C / T``.

The authors move all chains in step, and take one jitter for all of them from a Halton sequence.
Here every chain has a jitter and an end of its own.

Step size and length are tuned in turns. The acceptance of a trajectory holds the errors of all its
steps, also of those from before the last change of the step size, and the longer it is the later
it tells. So step sizes are tuned on
trajectories of 4 steps at most in the mean, and lengths with steps that stay as they are. The first
trajectories of a turn to end are the short ones, so none counts before the longest could have
ended, and T takes at most a quarter of a turn.

References: Hoffman, Radul and Sountsov, "An Adaptive-MCMC Scheme for Setting Trajectory Lengths in
Hamiltonian Monte Carlo", 2021, for C and its derivative; Sountsov and Hoffman, "Focusing on
Difficult Directions for Learning HMC Trajectory Lengths", 2021, for a criterion over T. The root,
the turns and the step on log T, which needs no scale since its slope has none, are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.typing import Proposals, World

__all__ = ["Lengths", "Turn", "begin_lengths", "changes", "climb", "turn"]

_RATE, _COST, _STEEPEST = 0.1, 0.5, 1.0
_SHARE = 0.5


class Turn(NamedTuple):
    """Steps in which lengths are learned: how many there are, and how many are done."""

    length: int
    done: int


def turn(step: int, ends: Sequence[int], num_warmup: int) -> Turn:
    """The turn in which a step, from 1, falls; of no length where the step size is tuned.

    Each span between the ends of windows has two turns of equal length: step size, length.

    >>> [turn(step, [8], 12).done for step in (1, 4, 5, 8, 9, 10, 11, 12)]
    [0, 0, 1, 4, 0, 0, 1, 2]
    """
    for first, last in itertools.pairwise([0, *ends, num_warmup]):
        middle = (first + last) // 2
        if middle < step <= last:
            return Turn(last - middle, step - middle)
    return Turn(0, 0)


class Lengths(NamedTuple):
    """Where the ascent stands; 0-d float64 tensors.

    Attributes:
        log_length: of the mean trajectory.
        log_average: of those so far.
        steps: how often it moved.
        criterion, slope, weight: sums over the proposals since it last moved.
    """

    log_length: Tensor
    log_average: Tensor
    steps: Tensor
    criterion: Tensor
    slope: Tensor
    weight: Tensor


def begin_lengths(length: Tensor) -> Lengths:
    """Before the first step."""
    log_length = length.double().log()
    zero = torch.zeros_like(log_length)
    return Lengths(log_length, log_length, zero, zero, zero, zero)


def changes(proposals: Proposals, center: Tensor) -> tuple[Tensor, Tensor]:
    """The criterion and its derivative by the log time at each proposal, ``[P]`` in float64.

    Args:
        proposals: in some coordinates.
        center: the mean of chains ``[D]`` or ``[1, D]`` in them.
    """
    away, before = proposals.end - center, proposals.start - center
    grown = away.square().sum(-1) - before.square().sum(-1)
    slope = proposals.time * grown * (away * proposals.velocity).sum(-1)
    return 0.25 * grown.double().square(), slope.double()


def climb(
    lengths: Lengths,
    proposals: Proposals,
    center: Tensor,
    shortest: Tensor,
    longest: Tensor,
    world: World,
) -> Lengths:
    """With these proposals, and a step if enough have come together; no further out of the range.

    Proposals that are not finite do not count.
    """
    criterion, slope = changes(proposals, center)
    counts = torch.isfinite(criterion) & torch.isfinite(slope) & (proposals.probability > 0)
    weight = torch.where(counts, proposals.probability.double(), 0.0)
    summed = lengths._replace(
        criterion=lengths.criterion + world.sum(torch.where(counts, weight * criterion, 0.0)),
        slope=lengths.slope + world.sum(torch.where(counts, weight * slope, 0.0)),
        weight=lengths.weight + world.sum(weight),
    )
    steepness = (summed.slope / summed.criterion - _COST).clamp(-_STEEPEST, _STEEPEST)
    low = torch.minimum(lengths.log_length, shortest.double().log())
    high = torch.maximum(lengths.log_length, longest.double().log())
    log_length = (lengths.log_length + _RATE * steepness).clamp(low, high)
    steps, zero = lengths.steps + 1, torch.zeros_like(log_length)
    share = steps.rsqrt()
    log_average = share * log_length + (1 - share) * lengths.log_average
    moved = Lengths(log_length, log_average, steps, zero, zero, zero)
    enough = summed.weight >= _SHARE * world.sum(torch.ones_like(weight))
    enough = enough & torch.isfinite(steepness)
    return Lengths(*(torch.where(enough, a, b) for a, b in zip(moved, summed, strict=True)))
