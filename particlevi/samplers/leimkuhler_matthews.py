"""The Leimkuhler-Matthews scheme: overdamped Langevin dynamics with averaged noise.

Step, with step size ``h`` and temperature ``T``, where ``R_k`` is used again in the next step::

    theta' = theta - h g(theta) + sqrt(h T / 2) (R_k + R_{k+1}),        R ~ N(0, I)

Target: ``exp(-U/T)``, with a bias of second order in ``h`` where that of SGLD is of first order,
at the same cost. On a Gaussian with curvature ``l`` the stationary variance is exactly ``T/l`` for
every stable step; gradient noise of variance ``s^2`` adds ``h s^2 / (l (2 - h l))``. Stable for
``h l < 2``.

Step size: as for SGLD.

Reference: Leimkuhler and Matthews, "Rational construction of stochastic numerical methods for
molecular sampling", 2013.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from particlevi.samplers._assemble import (
    SHOWN,
    GradientAt,
    Info,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
    standard_normal,
)
from particlevi.typing import Controls, Sampler, Schedule, Streams

__all__ = ["Memory", "leimkuhler_matthews"]


class Memory(NamedTuple):
    """The noise ``[P, D]`` of the last step."""

    noise: Tensor


def leimkuhler_matthews(target: Target, temperature: float | Schedule = 1.0) -> Sampler:
    """SGLD with averaged noise: ``theta' = theta - h g + sqrt(h T / 2) (R_k + R_{k+1})``.

    Samples ``exp(-U/T)`` with a bias of second order in the step size ``h``; exactly on a Gaussian
    for any stable step (``h l < 2``). Minibatch noise of variance ``s^2`` adds
    ``h s^2 / (l (2 - h l))``.

    Source: Leimkuhler and Matthews, "Rational construction of stochastic numerical methods for
    molecular sampling", 2013.

    Args:
        target: a potential, or a gradient estimator.
        temperature: T, a number or a schedule.

    Raises:
        ValueError: a negative temperature.
    """

    def memory(position: Tensor, streams: Streams) -> Memory:
        return Memory(standard_normal(position, streams).contiguous())

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        h, temperature = controls["step_size"], controls["temperature"]
        g, potential = gradient_at(position)
        info = Info(potential, configurational_temperature(position, g))
        diffusion = (0.5 * h * temperature).sqrt() * (memory.noise + noise)
        return position + (diffusion - h * g), Memory(noise.contiguous()), info

    return assemble(
        "leimkuhler_matthews",
        target,
        transition,
        settings={},
        schedules={"temperature": temperature},
        memory=memory,
        noise=gaussian,
        shown=SHOWN,
        max_step_size=lambda curvature: 2 / curvature,
    )
