"""Preconditioned SGLD with the RMSprop diagonal.

Step, with step size ``h``, temperature ``T`` and ``gbar = g / N``::

    V' = a V + (1 - a) gbar^2
    G  = 1 / (regularisation + sqrt(V'))
    theta' = theta - h G g(theta) + sqrt(2 h T G) xi,        xi ~ N(0, I)

Target: ``exp(-U/T)`` as ``h -> 0`` once G is frozen. While G moves with theta, the exact equation
has one more term in the drift, ``h T Gamma`` with Gamma the divergence of G. Published code leaves
it out, and then the bias does not vanish with ``h``: in the worst case, ``a = 0``, the law is
``exp(-U/T) / G``. As an option the part of it that comes from the present gradient is added::

    Gamma_i = -(1 - a) gbar_i Hbar_ii G_i^2 / sqrt(V'_i),        Hbar the Hessian of U / N

with the diagonal of the Hessian from central differences of g along a random vector of signs: two
more gradients. At ``a = 0`` that part is all of it and the law is ``exp(-U/T)``; at ``a`` near 1 it
is a small part, and freezing is the remedy.

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

from particlevi._checks import check_flag, check_fraction, check_positive
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers._assemble import (
    SHOWN,
    GradientAt,
    Info,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
)
from particlevi.samplers._rules import LESS_WHERE_HOT, overdamped_step
from particlevi.schedules import as_schedule
from particlevi.typing import (
    Controls,
    Landscape,
    Progress,
    Sampler,
    SamplerState,
    Schedule,
    Streams,
)

__all__ = ["Memory", "psgld"]


class Memory(NamedTuple):
    """Second moment of the mean gradient.

    Attributes:
        second_moment: V ``[P, D]``.
        weight: how much of the old V is kept, 0-d: 0 at first, then ``a``, 1 once frozen.
    """

    second_moment: Tensor
    weight: Tensor


def psgld(
    target: Target,
    temperature: float | Schedule = 1.0,
    decay: float = 0.99,
    regularisation: float = 1e-3,
    freeze: bool = True,
    divergence: bool = False,
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
        divergence: add the drift ``h T Gamma`` while G moves; two more gradients per step.

    Raises:
        ValueError: an argument out of its range.
    """
    check_fraction("decay", decay)
    check_positive("regularisation", regularisation)
    check_flag("freeze", freeze)
    check_flag("divergence", divergence)
    potential = as_estimator(target).potential
    num_data = potential.num_data or 1
    temperature_at = as_schedule("temperature", temperature)

    def randomness(state: SamplerState, streams: Streams) -> Any:
        xi = gaussian(state, streams)
        return (xi, gaussian(state, streams).sign()) if divergence else xi

    def curvature(position: Tensor, g: Tensor, gradient_at: GradientAt, signs: Tensor) -> Tensor:
        """``gbar Hbar_ii``, unbiased; exact for a diagonal Hessian."""
        width = torch.finfo(position.dtype).eps ** (1 / 3) * (
            1 + position.abs().amax(-1, keepdim=True)
        )
        ahead = gradient_at(position + width * signs).gradient
        behind = gradient_at(position - width * signs).gradient
        diagonal: Tensor = signs * (ahead - behind) / (2 * width)
        return g * diagonal / num_data**2

    def memory(position: Tensor, streams: Streams) -> Memory:
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
        xi = noise[0] if divergence else noise
        second_moment = a * memory.second_moment + (1 - a) * (g / num_data).square()
        preconditioner = 1 / (regularisation + second_moment.sqrt())
        drift = h * preconditioner * g
        if divergence:
            slope = (1 - a) * curvature(position, g, gradient_at, noise[1])
            root = second_moment.sqrt().clamp(min=torch.finfo(position.dtype).tiny)
            drift = drift + h * temperature * slope * preconditioner.square() / root
        diffusion = (2 * h * temperature * preconditioner).sqrt() * xi
        info = Info(energy, configurational_temperature(position, g))
        return position + (diffusion - drift), Memory(second_moment, a), info

    def step_rule(around: Landscape) -> tuple[float, str]:
        squares = around.gradient_at(around.points).square().mean(0) + around.noise
        preconditioner = 1 / (regularisation + squares.sqrt() / num_data)
        curvature = around.curvature(preconditioner.sqrt())
        noise = float((preconditioner * around.noise).mean()) / (temperature_at(0) or 1.0)
        step = overdamped_step(curvature, noise)
        return step, (
            "The step size is a tenth of the stable range h G l < 2, with the preconditioner of "
            f"the gradients where chains start and G l = {curvature:.4g}{LESS_WHERE_HOT}"
        )

    return assemble(
        "psgld",
        target,
        transition,
        settings={
            "decay": decay,
            "regularisation": regularisation,
            "freeze": freeze,
            "divergence": divergence,
        },
        schedules={"temperature": temperature},
        memory=memory,
        noise=randomness,
        gradients=3 if divergence else 1,
        remember=remember,
        step_rule=step_rule,
        shown=SHOWN,
    )
