"""SGHMC with one mass per tensor, adapted as in RMSprop: the form used for Bayesian neural nets.

For the tensors ``k = 1 ... K`` of the model, with ``gbar = g / N``::

    V_k <- a V_k + (1 - a) mean_{i in k} gbar_i^2                       at every step
    M_k <- sqrt(V_k + eps) / min_j sqrt(V_j + eps)                      every so many steps

and the B A O A step of ``sghmc`` in momenta ``q = M^(-1/2) p`` of unit mass, ``c = exp(-f h)``::

    q     <- q - h M^(-1/2) g(theta)
    theta <- theta + h M^(-1/2) q / 2
    q     <- c q + sqrt(T (1 - c^2)) xi,        xi ~ N(0, I)
    theta <- theta + h M^(-1/2) q / 2

so that nothing has to be rescaled when M changes. The smallest mass is 1: ``h`` is the step size
of the tensor with the smallest gradients. V and M start from the first gradient, so that the first
steps are no larger than the later ones.

Target: ``exp(-U/T)``, once M is frozen: it is then ``sghmc`` in the coordinates ``M^(1/2) theta``.
On a Gaussian the stationary variance is exactly that of the target, whatever the masses, for every
stable step. While M follows the chain, the law is only near it, the nearer the rarer the updates.
Stable for ``h^2 l < 4`` with ``l`` the largest curvature of ``M^(-1/2) H M^(-1/2)``.

Reference: Wenzel, Roth, Veeling, Swiatkowski, Tran, Mandt, Snoek, Salimans, Jenatton and Nowozin,
"How good is the Bayes posterior in deep neural networks really?", 2020.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_flag, check_fraction, check_positive, check_positive_int
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers._assemble import (
    MOMENTUM_SHOWN,
    GradientAt,
    MomentumInfo,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
    momenta,
)
from particlevi.samplers._rules import LESS_WHERE_HOT, momentum_step
from particlevi.schedules import as_schedule
from particlevi.typing import Controls, Landscape, Progress, Sampler, Schedule, Streams

__all__ = ["Memory", "psghmc"]


class Memory(NamedTuple):
    """Momenta and the preconditioner.

    Attributes:
        momentum: q ``[P, D]``.
        second_moment: V ``[P, K]``.
        mass: M ``[P, K]``, 0 before the first step.
        weight: how much of the old V is kept, 0-d: 0 at first, then ``a``.
    """

    momentum: Tensor
    second_moment: Tensor
    mass: Tensor
    weight: Tensor


def psghmc(
    target: Target,
    friction: float = 1.0,
    temperature: float | Schedule = 1.0,
    decay: float = 0.99,
    regularisation: float = 1e-7,
    update_every: int = 100,
    freeze: bool = True,
) -> Sampler:
    """SGHMC with one adapted mass per tensor, updated rarely.

    Frozen after warm-up it samples ``exp(-U/T)`` as ``sghmc`` does: exactly on a Gaussian for any
    stable step, with a bias of second order in ``h`` elsewhere.

    Source: Wenzel and others, "How good is the Bayes posterior in deep neural networks really?",
    2020.

    Args:
        target: a potential, or a gradient estimator.
        friction: in 1/time.
        temperature: T, a number or a schedule.
        decay: a in [0, 1), per step, of the moving average of squared mean gradients.
        regularisation: eps, added to it.
        update_every: steps between updates of the masses.
        freeze: leave the masses as they are at the end of warm-up, if there is one.

    Raises:
        ValueError: an argument out of its range.
    """
    check_positive("friction", friction)
    check_fraction("decay", decay)
    check_positive("regularisation", regularisation)
    check_positive_int("update_every", update_every)
    check_flag("freeze", freeze)
    potential = as_estimator(target).potential
    num_data = potential.num_data or 1
    temperature_at = as_schedule("temperature", temperature)
    groups = potential.groups("tensor")
    sizes = torch.bincount(groups).to(potential.dtype)

    def memory(position: Tensor, streams: Streams) -> Memory:
        blank = position.new_zeros(len(position), len(sizes))
        momentum = momenta(position, streams, temperature)
        return Memory(momentum, blank, blank.clone(), position.new_zeros(()))

    def masses(second_moment: Tensor) -> Tensor:
        root = (second_moment + regularisation).sqrt()
        return root / root.amin(-1, keepdim=True)

    def remember(memory: Memory, progress: Progress) -> Memory:
        memory = memory._replace(weight=memory.weight.new_tensor(decay))
        frozen = freeze and progress.step > progress.num_warmup > 0
        if frozen or progress.step % update_every:
            return memory
        return memory._replace(mass=masses(memory.second_moment))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, MomentumInfo]:
        h, temperature = controls["step_size"], controls["temperature"]
        g, energy = gradient_at(position)
        configurational = configurational_temperature(position, g)
        totals = torch.zeros_like(memory.mass).index_add(1, groups, (g / num_data).square())
        a = memory.weight
        second_moment = a * memory.second_moment + (1 - a) * totals / sizes
        mass = torch.where(memory.mass > 0, memory.mass, masses(second_moment))
        scale = mass.rsqrt().index_select(1, groups)
        c = (-friction * h).exp()
        q = memory.momentum - h * scale * g
        position = position + 0.5 * h * scale * q
        q = c * q + (temperature * (1 - c**2)).sqrt() * noise
        position = position + 0.5 * h * scale * q
        info = MomentumInfo(energy, configurational, q.square().mean(-1))
        return position, Memory(q, second_moment, mass, a), info

    def step_rule(around: Landscape) -> tuple[float, str]:
        squares = (around.gradient_at(around.points) / num_data).square().mean(0)
        squares = squares + around.noise / num_data**2
        second_moment = torch.zeros_like(sizes).index_add(0, groups, squares) / sizes
        scale = masses(second_moment).rsqrt().index_select(0, groups)
        curvature = around.curvature(scale)
        noise = float((scale.square() * around.noise).mean()) / (temperature_at(0) or 1.0)
        step = momentum_step(curvature, noise, friction)
        return step, (
            "The step size is a quarter of the stable range h^2 l < 4, with the masses of the "
            f"gradients where chains start and l / M = {curvature:.4g}{LESS_WHERE_HOT}"
        )

    return assemble(
        "psghmc",
        target,
        transition,
        settings={
            "friction": friction,
            "decay": decay,
            "regularisation": regularisation,
            "update_every": update_every,
            "freeze": freeze,
        },
        schedules={"temperature": temperature},
        memory=memory,
        noise=gaussian,
        remember=remember,
        step_rule=step_rule,
        shown=MOMENTUM_SHOWN,
    )
