"""The stationary law of SGD that shuffles its data and goes through them once per epoch.

The noise of the batches of one epoch is that of disjoint random parts of the data. For batches of
``b_s`` data, averaged over orders, with ``C`` the per-sample covariance (divisor N)::

    Cov(xi_s, xi_t) = C (N delta_st / b_s - 1) / (N - 1)

which sums to zero over a whole epoch. With steps ``z' = A z + G xi`` of ``z = (x, v)`` and n
batches, the covariance at the ends of epochs solves the linear equation::

    P = A^n P A'^n + [sum_s (N / b_s) A^k G C G' A'^k  -  W C W'] / (N - 1)
    k = n - 1 - s,    W = sum_s A^(n - 1 - s) G

because orders of different epochs are independent. Directions that forget within an epoch spread
as with independent batches; slower ones far less, because later batches take back what earlier ones
did. In the limit of small rates the continuous-time form is that of Kuhn and Rosenow.

Reference: Kuhn and Rosenow, "Correlated noise in epoch-based stochastic gradient descent:
implications for weight variances", 2023 (arXiv 2306.05300); the discrete equation is derived here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_flag, check_fraction, check_positive, check_positive_int
from particlevi._shown import Shown
from particlevi.sgdvi._linear import (
    Array,
    check_stable_steps,
    momentum_steps,
    solve_discrete,
    symmetric_part,
)
from particlevi.sgdvi.stationary import checked_matrices

__all__ = ["EpochLaw", "epoch_law"]


@dataclass(frozen=True, eq=False, repr=False)
class EpochLaw(Shown):
    """Mean and covariance of the iterates of epoch SGD.

    Attributes:
        mean: ``[D]``.
        end: the covariance of the iterate after the last batch of an epoch, ``[D, D]``.
        average: the mean covariance over the iterates of an epoch, ``[D, D]``: that of draws which
            are kept at every step.
        num_batches: n, steps per epoch.
    """

    mean: Tensor
    end: Tensor
    average: Tensor
    num_batches: int


def epoch_law(
    hessian: Tensor,
    noise: Tensor,
    *,
    num_data: int,
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    minimum: Tensor | None = None,
    drop_last: bool = False,
) -> EpochLaw:
    """The law of SGD over shuffled epochs, as of ``DataLoader(shuffle=True)``.

    Exact for a constant ``F`` and per-sample gradients that differ by constants, at any stable
    rate; the time is that of n products of matrices ``[2 D, 2 D]``. Every batch counts by its mean
    loss, as in a loop over the loader. ``pvi.sample`` gives a short last batch the weight of its
    data instead, so that slow directions are far colder there: take a batch size that divides N, or
    ``drop_last``.

    Source: Kuhn and Rosenow 2023 in continuous time; the discrete equation is derived here.

    Args:
        hessian: ``F [D, D]`` of the mean loss.
        noise: per-sample gradient covariance ``C [D, D]`` of the mean loss, divisor N.
        num_data: N.
        learning_rate: ``eta`` on the mean loss.
        batch_size: b, below N.
        momentum: m in [0, 1), as in ``torch.optim.SGD``.
        weight_decay: adds to ``F``.
        minimum: of the loss without decay, ``[D]``.
        drop_last: leave a short last batch out, as ``sample(batching="epoch")`` does and
            ``DataLoader`` does not by default.

    Raises:
        ValueError: matrices that do not fit, one batch of all data, or a rate beyond stability.

    Examples:
        >>> from particlevi.sgdvi import exact_law

        A direction that forgets within a few steps, and one that takes many epochs:

        >>> f, c = torch.diag(torch.tensor([1.0, 0.001])), torch.eye(2)
        >>> law = epoch_law(f, c, num_data=10_000, learning_rate=0.1, batch_size=10)
        >>> steps = exact_law(f, c, learning_rate=0.1, batch_size=10)
        >>> law.average.diag() / steps.covariance.diag()
        tensor([0.9813, 0.0325], dtype=torch.float64)
    """
    f, c, mean = checked_matrices(hessian, noise, weight_decay, minimum)
    check_positive("learning_rate", learning_rate)
    check_fraction("momentum", momentum)
    sizes = batch_sizes(num_data, batch_size, drop_last)
    step, inject = momentum_steps(f, learning_rate, momentum)
    check_stable_steps(step, learning_rate)
    powers, kicks = [], []
    power, spread, sums = np.eye(len(step)), np.zeros_like(step), np.zeros_like(inject)
    kick = inject @ c @ inject.T
    for size in sizes:
        power = step @ power
        spread = step @ spread @ step.T + num_data / size * kick
        sums = step @ sums + inject
        powers.append(power)
        kicks.append((spread - sums @ c @ sums.T) / (num_data - 1))
    end = solve_discrete(powers[-1], symmetric_part(kicks[-1]))
    moved = [a @ end @ a.T + b for a, b in zip(powers, kicks, strict=True)]
    return EpochLaw(
        mean=torch.from_numpy(mean),
        end=_positions(end, len(f)),
        average=_positions(np.mean(moved, axis=0), len(f)),
        num_batches=len(sizes),
    )


def _positions(joint: Array, size: int) -> Tensor:
    return torch.from_numpy(symmetric_part(joint[:size, :size]))


def batch_sizes(num_data: int, batch_size: int, drop_last: bool) -> list[int]:
    """The sizes of the batches of one epoch.

    Raises:
        ValueError: numbers out of range, or one batch of all data.
    """
    check_positive_int("num_data", num_data, minimum=2)
    check_positive_int("batch_size", batch_size)
    check_flag("drop_last", drop_last)
    if batch_size >= num_data:
        raise ValueError(
            f"batch_size must be below num_data={num_data}, got {batch_size}: batches of all data "
            "have no noise, so there is no law to speak of."
        )
    rest = num_data % batch_size
    return [batch_size] * (num_data // batch_size) + ([rest] if rest and not drop_last else [])
