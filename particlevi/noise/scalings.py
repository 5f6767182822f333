"""The level of SGD's gradient noise, as three papers write it.

Reference: Chaudhari and Soatto, "Stochastic gradient descent performs variational inference,
converges to limit cycles for deep networks", 2018; Ziyin, Li and Ueda, "Law of balance and
stationary distribution of stochastic gradient descent", 2023; Mandt, Hoffman and Blei, "Stochastic
gradient descent as approximate Bayesian inference", 2017.
"""

from __future__ import annotations

from typing import NamedTuple

from particlevi._checks import check_positive, check_positive_int

__all__ = ["Scalings", "batch_factor", "scalings"]


class Scalings(NamedTuple):
    """One noise level in the words of three papers.

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


def scalings(learning_rate: float, batch_size: int) -> Scalings:
    """The noise level of SGD as three papers write it.

    Source: Chaudhari and Soatto 2018; Ziyin, Li and Ueda, "Law of balance and stationary
    distribution of stochastic gradient descent", 2023; Mandt, Hoffman and Blei 2017.

    >>> scalings(0.1, 10)
    Scalings(chaudhari_soatto=0.005, ziyin=0.01, mandt=0.001)
    """
    check_positive("learning_rate", learning_rate)
    check_positive_int("batch_size", batch_size)
    level = learning_rate / batch_size
    return Scalings(level / 2, level, learning_rate * learning_rate / batch_size)


def batch_factor(batch_size: int, num_data: int | None = None, replacement: bool = True) -> float:
    """The covariance of a minibatch's mean gradient over the per-sample covariance ``C``.

    ``1/b`` for independent indices; ``(1/b) (N - b)/(N - 1)`` for subsets without repetition.

    Args:
        batch_size: b.
        num_data: N; needed without replacement.
        replacement: whether a datum can be in a batch twice. ``sample(batching="replacement")``
            draws so, ``"subset"`` does not. ``"epoch"`` has the covariance of subsets but its
            batches are correlated over an epoch, which no covariance of one batch can express.

    >>> batch_factor(10)
    0.1
    >>> batch_factor(10, num_data=10, replacement=False)
    0.0
    """
    check_positive_int("batch_size", batch_size)
    if replacement:
        return 1.0 / batch_size
    if num_data is None:
        raise ValueError("Batches without replacement need num_data.")
    check_positive_int("num_data", num_data, minimum=2)
    if batch_size > num_data:
        raise ValueError(f"batch_size must be at most num_data={num_data}, got {batch_size}.")
    return (num_data - batch_size) / (num_data - 1) / batch_size
