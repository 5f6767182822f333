"""The stationary law of Adam-like SGD, whose preconditioner is the gradient's own size.

Adam divides by the root of a running mean of squared gradients. For ``beta_2`` near 1 that hardly
moves: it is an expectation over the law of the iterates, which depends on it in turn::

    s = diag(F S F + k C),    H = diag(1 / (sqrt(s) + epsilon)),    S = covariance under H

The momentum ``m' = beta_1 m + (1 - beta_1) g`` is that of SGD with the rate ``(1 - beta_1) eta``.
Of first order in ``1 - beta_2``: the running mean itself fluctuates.

Reference: Kingma and Ba, "Adam: a method for stochastic optimization", 2015; Mandt, Hoffman and
Blei, "Stochastic gradient descent as approximate Bayesian inference", 2017, for diagonal
preconditioners.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_fraction, check_nonnegative, check_positive
from particlevi.noise.scalings import FreshBatching, batch_factor
from particlevi.sgdvi.chains import GaussianChain, sgd_chain
from particlevi.sgdvi.stationary import checked_matrices

__all__ = ["AdamLaw", "adam_law"]

_MOST_ROUNDS = 500


class AdamLaw(NamedTuple):
    """Adam's law for frozen second moments.

    Attributes:
        chain: of the iterates.
        second_moment: ``s [D]``, the mean of the squared gradient.
        preconditioner: ``1 / (sqrt(s) + epsilon) [D]``.
    """

    chain: GaussianChain
    second_moment: Tensor
    preconditioner: Tensor


def adam_law(
    hessian: Tensor,
    noise: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    beta1: float = 0.9,
    epsilon: float = 1e-8,
    batching: FreshBatching = "replacement",
    num_data: int | None = None,
) -> AdamLaw:
    """The iterates of Adam at a constant rate, for ``beta_2`` near 1.

    Args:
        hessian: ``F [D, D]`` of the mean loss.
        noise: ``C [D, D]``, divisor N.
        learning_rate: ``eta``, Adam's own.
        batch_size: b.
        beta1: of the momentum.
        epsilon: added to the root.
        batching: see ``particlevi.noise.batch_factor``.
        num_data: N; needed for subsets.

    Raises:
        ValueError: matrices that do not fit, directions without noise, a rate beyond stability, or
            no fixed point.

    Examples:
        >>> f, c = torch.diag(torch.tensor([1.0, 0.1])), torch.eye(2)
        >>> law = adam_law(f, c, learning_rate=0.001, batch_size=4)
        >>> law.second_moment
        tensor([0.2502, 0.2500], dtype=torch.float64)
    """
    check_positive("learning_rate", learning_rate)
    check_fraction("beta1", beta1)
    check_nonnegative("epsilon", epsilon)
    f, c, _ = checked_matrices(hessian, noise, 0.0, None)
    own = batch_factor(batch_size, num_data, batching) * np.diag(c)
    if (own <= 0).any():
        raise ValueError("noise has parameters without noise: leave them out.")
    moment = own.copy()
    for _ in range(_MOST_ROUNDS):
        h = 1 / (np.sqrt(moment) + epsilon)
        chain = sgd_chain(
            hessian,
            noise,
            learning_rate=(1 - beta1) * learning_rate,
            batch_size=batch_size,
            momentum=beta1,
            preconditioner=torch.from_numpy(h),
            batching=batching,
            num_data=num_data,
        )
        again = own + np.diag(f @ chain.covariance.numpy() @ f)
        moved = np.abs(again / moment - 1).max()
        moment = again
        if moved < 1e-13:
            break
    else:
        raise ValueError("The second moments have no fixed point at this rate: lower it.")
    return AdamLaw(chain, torch.from_numpy(moment), torch.from_numpy(h))
