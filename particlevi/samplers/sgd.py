"""Stochastic gradient descent at a constant rate, as a sampler.

Step, with step size ``h`` and momentum ``m``::

    v' = m v + g(theta)
    theta' = theta - h v'

Target: none that is set; what it samples is decided by the minibatch noise. On a Gaussian with
curvature ``l`` and gradient-noise variance ``s^2``, without momentum, the stationary variance is
``h s^2 / (l (2 - h l))``. Stable for ``h l < 2 (1 + m)``.

Step size: a learning rate on the mean loss is ``h N``; the prior is the weight decay.

Reference: Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian
inference", 2017.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_fraction
from particlevi.samplers._assemble import (
    SHOWN,
    GradientAt,
    Info,
    Target,
    assemble,
    configurational_temperature,
)
from particlevi.typing import Controls, Sampler, Streams

__all__ = ["Memory", "sgd"]


class Memory(NamedTuple):
    """The running sum of gradients ``[P, D]``."""

    velocity: Tensor


def sgd(target: Target, momentum: float = 0.0) -> Sampler:
    """Constant-rate SGD on P independent replicas: ``v' = m v + g; theta' = theta - h v'``.

    It has no temperature: the noise is the minibatches' own. Without momentum, on a Gaussian with
    curvature ``l`` and gradient-noise variance ``s^2``, the stationary variance is
    ``h s^2 / (l (2 - h l))``. Stable for ``h l < 2 (1 + m)``. A learning rate on the mean loss is
    ``h N``.

    Source: Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian
    inference", 2017.

    Args:
        target: a potential, or a gradient estimator.
        momentum: m in [0, 1), as in ``torch.optim.SGD``.

    Raises:
        ValueError: momentum outside [0, 1).
    """
    check_fraction("momentum", momentum)

    def memory(position: Tensor, streams: Streams) -> Memory:
        return Memory(torch.zeros_like(position))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        g, potential = gradient_at(position)
        velocity = momentum * memory.velocity + g
        info = Info(potential, configurational_temperature(position, g))
        return position - controls["step_size"] * velocity, Memory(velocity), info

    return assemble(
        "sgd",
        target,
        transition,
        settings={"momentum": momentum},
        memory=memory,
        shown=SHOWN,
        max_step_size=lambda curvature: 2 * (1 + momentum) / curvature,
    )
