"""Preconditioned SGLD with the RMSprop diagonal.

Step, with step size ``h``, temperature ``T`` and ``gbar = g / N``::

    V' = a V + (1 - a) gbar^2
    G  = 1 / (regularisation + sqrt(V'))
    theta' = theta - h G g(theta) + sqrt(2 h T G) xi,        xi ~ N(0, I)

Target: ``exp(-U/T)`` as ``h -> 0`` once G is frozen. While G moves with theta, the correction term
that the exact equation has (the divergence of G) is left out, as in all published code, and the
bias does not vanish with ``h``: in the worst case, ``a = 0``, the law is ``exp(-U/T) / G``.
Frozen, it is SGLD with the step size ``h G`` in each coordinate, and its law. Stable for
``h G l < 2``.

V starts at the first squared gradient, so that the first steps are no larger than the later ones.

Reference: Li, Chen, Carlson and Carin, "Preconditioned stochastic gradient Langevin dynamics for
deep neural networks", 2016.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_fraction, check_positive
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers._assemble import (
    GradientAt,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
)
from particlevi.typing import Controls, Progress, Sampler, Schedule

__all__ = ["Info", "Memory", "psgld"]


class Memory(NamedTuple):
    """Second moment of the mean gradient.

    Attributes:
        second_moment: V ``[P, D]``.
        weight: how much of the old V is kept, 0-d: 0 at first, then ``a``, 1 once frozen.
    """

    second_moment: Tensor
    weight: Tensor


class Info(NamedTuple):
    """Potential and configurational temperature ``[P]`` where the gradient was evaluated."""

    potential: Tensor
    configurational_temperature: Tensor


def psgld(
    target: Target,
    temperature: float | Schedule = 1.0,
    decay: float = 0.99,
    regularisation: float = 1e-3,
    freeze: bool = True,
) -> Sampler:
    """SGLD preconditioned by RMSprop: ``theta' = theta - h G g + sqrt(2 h T G) xi``.

    ``G = 1 / (regularisation + sqrt(V))`` with V a moving average of the squared mean gradient
    ``(g/N)^2``. Frozen after warm-up it samples ``exp(-U/T)`` up to a bias of first order in
    ``h``; while G moves, the divergence term of the exact equation is left out and a bias remains
    at any step size. Stable for ``h G l < 2``.

    Source: Li, Chen, Carlson and Carin, "Preconditioned stochastic gradient Langevin dynamics for
    deep neural networks", 2016.

    Args:
        target: a potential, or a gradient estimator.
        temperature: T, a number or a schedule.
        decay: a in [0, 1), per step.
        regularisation: bounds G from above, in units of the mean gradient.
        freeze: keep G as it is at the end of warm-up.

    Raises:
        ValueError: an argument out of its range.
    """
    check_fraction("decay", decay)
    check_positive("regularisation", regularisation)
    potential = as_estimator(target).potential
    num_data = potential.num_data or 1

    def memory(position: Tensor, generator: torch.Generator) -> Memory:
        return Memory(torch.zeros_like(position), position.new_zeros(()))

    def remember(memory: Memory, progress: Progress) -> Memory:
        frozen = freeze and progress.step >= progress.num_warmup > 0
        return Memory(memory.second_moment, memory.weight.new_tensor(1.0 if frozen else decay))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        h, temperature = controls["step_size"], controls["temperature"]
        g, energy = gradient_at(position)
        a = memory.weight
        second_moment = a * memory.second_moment + (1 - a) * (g / num_data).square()
        preconditioner = 1 / (regularisation + second_moment.sqrt())
        drift = h * preconditioner * g
        diffusion = (2 * h * temperature * preconditioner).sqrt() * noise
        info = Info(energy, configurational_temperature(position, g))
        return position - drift + diffusion, Memory(second_moment, a), info

    return assemble(
        "psgld",
        target,
        transition,
        settings={"decay": decay, "regularisation": regularisation, "freeze": freeze},
        schedules={"temperature": temperature},
        memory=memory,
        noise=gaussian,
        remember=remember,
    )
