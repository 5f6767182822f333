"""BAOAB: the symmetric splitting of underdamped Langevin dynamics.

One step of length ``h`` with friction ``f``, unit mass and ``c = exp(-f h)``::

    p     <- p - h g / 2
    theta <- theta + h p / 2
    p     <- c p + sqrt(T (1 - c^2)) xi,        xi ~ N(0, I)
    theta <- theta + h p / 2
    p     <- p - h g(theta) / 2

The last gradient is the first of the next step, so that a step costs one gradient. (The very first
half kick is left out: the momenta are drawn as they are after it.) The positions are those of
``sghmc``, which kicks once; here momenta and potential belong to the end of the step.

Target: ``exp(-U/T)``, with a bias of second order in ``h``. On a Gaussian with curvature ``l`` the
stationary variance of theta is exactly ``T/l`` for every stable step, that of p
``T (1 - h^2 l / 4)``, and the two are independent. Gradient noise of variance ``s^2`` adds
``h^2 s^2 (1 + c) / (l (1 - c) (4 - h^2 l))`` to the first. Stable for ``h^2 l < 4``.

Step size: ``h`` is the time step; a learning rate on the mean loss is about ``h^2 N``.

Reference: Leimkuhler and Matthews, "Rational construction of stochastic numerical methods for
molecular sampling", 2013.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_positive
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
from particlevi.typing import Controls, Facts, Sampler, Schedule, Streams

__all__ = ["Memory", "baoab", "drift"]


class Memory(NamedTuple):
    """Momenta, and the gradient at the position, ``[P, D]`` each."""

    momentum: Tensor
    gradient: Tensor


def drift(
    position: Tensor, p: Tensor, noise: Tensor, h: Tensor, c: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """A O A: what lies between two kicks. The temperature is 0-d, or ``[P, 1]``."""
    position = position + 0.5 * h * p
    p = c * p + (temperature * (1 - c**2)).sqrt() * noise
    return position + 0.5 * h * p, p


def baoab(target: Target, friction: float = 1.0, temperature: float | Schedule = 1.0) -> Sampler:
    """Underdamped Langevin dynamics by the symmetric B A O A B splitting.

    Samples ``exp(-U/T)``: exactly on a Gaussian for any stable step (``h^2 l < 4``), with a bias
    of second order in the step size ``h`` elsewhere. One gradient per step. ``sghmc`` takes the
    same positions and can compensate minibatch noise; this one reports potential and temperatures
    at the end of the step.

    Source: Leimkuhler and Matthews, "Rational construction of stochastic numerical methods for
    molecular sampling", 2013.

    Args:
        target: a potential, or a gradient estimator.
        friction: in 1/time, ``dp = ... - friction p dt``.
        temperature: T, a number or a schedule.

    Raises:
        ValueError: a friction that is not positive, a negative temperature.
    """
    check_positive("friction", friction)

    def memory(position: Tensor, streams: Streams) -> Memory:
        momentum = momenta(position, streams, temperature)
        return Memory(momentum, torch.zeros_like(position))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, MomentumInfo]:
        h, temperature = controls["step_size"], controls["temperature"]
        c = (-controls.get("friction", friction) * h).exp()
        p = memory.momentum - 0.5 * h * memory.gradient
        position, p = drift(position, p, noise, h, c, temperature)
        g, potential = gradient_at(position)
        p = p - 0.5 * h * g
        configurational = configurational_temperature(position, g)
        info = MomentumInfo(potential, configurational, p.square().mean(-1))
        return position, Memory(p, g), info

    return assemble(
        "baoab",
        target,
        transition,
        settings={"friction": friction},
        tunable={"friction": friction},
        schedules={"temperature": temperature},
        memory=memory,
        noise=gaussian,
        shown=MOMENTUM_SHOWN,
        max_step_size=lambda curvature: 2 / curvature**0.5,
        facts=Facts(kinetic="leapfrog"),
    )
