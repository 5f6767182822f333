"""The level of SGD's gradient noise: one temperature, and how three papers write it.

Reference: Chaudhari and Soatto, "Stochastic gradient descent performs variational inference,
converges to limit cycles for deep networks", 2018; Ziyin, Li and Ueda, "Law of balance and
stationary distribution of stochastic gradient descent", 2023; Mandt, Hoffman and Blei, "Stochastic
gradient descent as approximate Bayesian inference", 2017.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from particlevi._checks import check_choice, check_fraction, check_positive, check_positive_int

__all__ = ["FreshBatching", "Scalings", "batch_factor", "scalings", "temperature"]

FreshBatching = Literal["replacement", "subset"]
"""Independent indices, or subsets, drawn anew for each step: the laws of ``sample`` but epochs."""


class Scalings(NamedTuple):
    """One noise level in the words of three papers; with momentum ``eta`` is ``eta / (1 - m)``.

    Attributes:
        chaudhari_soatto: ``1/beta = eta/(2b)`` in ``dx = -grad f dt + sqrt(2/beta C) dW``, with
            ``eta`` of time per step.
        ziyin: ``T = eta/b`` in ``dx = -grad f dt + sqrt(T C) dW``, with ``eta`` of time per step.
        mandt: ``eps^2/b``, the noise variance per step over ``C`` in
            ``dx = -eps grad f dt + (eps/sqrt b) B dW``, ``B B' = C``, one unit of time per step.
    """

    chaudhari_soatto: float
    ziyin: float
    mandt: float


def temperature(
    learning_rate: float,
    batch_size: int,
    *,
    momentum: float = 0.0,
    batching: FreshBatching = "replacement",
    num_data: int | None = None,
) -> float:
    """The temperature ``T = eta / (2 (1 - m)) k`` of SGD, ``k = batch_factor``; ``eta/(2b)`` plain.

    It is that of ``dx = -grad f dt + sqrt(2 T C) dW`` with ``eta / (1 - m)`` of time per step,
    which SGD follows where ``eta`` times the curvature is far below ``1 - m``.

    SGD that shuffles the data and goes through them once per epoch has no temperature: its noise
    sums to zero over an epoch, so that directions slower than an epoch are far colder than fast
    ones. See ``particlevi.sgdvi.epoch_law``.

    Args:
        learning_rate: ``eta`` on the mean loss.
        batch_size: b.
        momentum: m in [0, 1), as in ``torch.optim.SGD``.
        batching: see ``batch_factor``.
        num_data: N; needed for subsets.

    Examples:
        >>> temperature(0.1, 10)
        0.005
        >>> round(temperature(0.1, 10, momentum=0.9), 12)
        0.05
    """
    check_positive("learning_rate", learning_rate)
    check_fraction("momentum", momentum)
    factor = batch_factor(batch_size, num_data, batching)
    return 0.5 * learning_rate * factor / (1.0 - momentum)


def scalings(
    learning_rate: float,
    batch_size: int,
    *,
    momentum: float = 0.0,
    batching: FreshBatching = "replacement",
    num_data: int | None = None,
) -> Scalings:
    """The noise level of SGD as three papers write it.

    Source: Chaudhari and Soatto 2018; Ziyin, Li and Ueda, "Law of balance and stationary
    distribution of stochastic gradient descent", 2023; Mandt, Hoffman and Blei 2017.

    Args:
        learning_rate: ``eta`` on the mean loss.
        batch_size: b.
        momentum: m in [0, 1).
        batching: see ``batch_factor``.
        num_data: N; needed for subsets.

    Examples:
        >>> scalings(0.1, 10)
        Scalings(chaudhari_soatto=0.005, ziyin=0.01, mandt=0.001)
    """
    level = temperature(
        learning_rate, batch_size, momentum=momentum, batching=batching, num_data=num_data
    )
    return Scalings(level, 2 * level, 2 * level * learning_rate / (1.0 - momentum))


def batch_factor(
    batch_size: int, num_data: int | None = None, batching: FreshBatching = "replacement"
) -> float:
    """The covariance of a minibatch's mean gradient over the per-sample covariance ``C``.

    ``1/b`` for independent indices; ``(1/b) (N - b)/(N - 1)`` for subsets without repetition.

    Args:
        batch_size: b.
        num_data: N; needed for subsets.
        batching: ``"replacement"``, where a datum can be in a batch twice, or ``"subset"``, as in
            ``sample``. ``"epoch"`` has the covariance of subsets, but its batches are correlated
            over an epoch, which no factor of one batch can express.

    Raises:
        ValueError: ``batching="epoch"``; see ``particlevi.sgdvi.epoch_law``.

    Examples:
        >>> batch_factor(10)
        0.1
        >>> batch_factor(10, num_data=10, batching="subset")
        0.0
    """
    check_positive_int("batch_size", batch_size)
    if str(batching) == "epoch":
        raise ValueError(
            'batching="epoch" has no noise level of its own: its noise sums to zero over an '
            "epoch. Use particlevi.sgdvi.epoch_law, which solves for its law."
        )
    check_choice("batching", batching, ["replacement", "subset"])
    if batching == "replacement":
        return 1.0 / batch_size
    if num_data is None:
        raise ValueError('Batches without replacement (batching="subset") need num_data.')
    check_positive_int("num_data", num_data, minimum=2)
    if batch_size > num_data:
        raise ValueError(f"batch_size must be at most num_data={num_data}, got {batch_size}.")
    return (num_data - batch_size) / (num_data - 1) / batch_size
