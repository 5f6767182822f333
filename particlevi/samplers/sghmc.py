"""Stochastic gradient Hamiltonian Monte Carlo, by splitting.

The SDE, with friction ``f`` in 1/time and unit mass::

    d theta = p dt,      dp = -grad U(theta) dt - f p dt + sqrt(2 f T) dW

One step of length ``h`` is B A O A: a kick, half a drift, an exact Ornstein-Uhlenbeck step, half a
drift, with ``c = exp(-f h)``::

    p     <- p - h g(theta)
    theta <- theta + h p / 2
    p     <- c p + sqrt(T (1 - c^2)) xi,        xi ~ N(0, I)
    theta <- theta + h p / 2

Target: ``exp(-U/T)``. On a Gaussian the stationary variance of theta is exactly ``T/l`` for every
stable step, and that of p exactly T; elsewhere the bias is of second order in ``h``. Gradient
noise of variance ``s^2`` adds ``h^2 s^2 (1 + c) / (l (1 - c) (4 - h^2 l))``. Stable for
``h^2 l < 4``.

Step size: ``h`` is the time step of the SDE; a learning rate on the mean loss is about ``h^2 N``
and the momentum decay ``c``.

References: Chen, Fox and Guestrin, "Stochastic gradient Hamiltonian Monte Carlo", 2014; Leimkuhler
and Matthews, "Rational construction of stochastic numerical methods for molecular sampling", 2013.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_nonnegative, check_positive
from particlevi.samplers._assemble import (
    GradientAt,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
)
from particlevi.schedules import as_schedule
from particlevi.typing import Controls, Sampler, Schedule

__all__ = ["Info", "Memory", "sghmc"]


class Memory(NamedTuple):
    """Momenta ``[P, D]``."""

    momentum: Tensor


class Info(NamedTuple):
    """Potential and temperatures ``[P]``.

    The potential and the configurational temperature are those where the gradient was evaluated;
    the kinetic temperature ``p.p/D`` is that at the end of the step, whose mean is T exactly.
    """

    potential: Tensor
    configurational_temperature: Tensor
    kinetic_temperature: Tensor


def sghmc(
    target: Target,
    friction: float = 1.0,
    temperature: float | Schedule = 1.0,
    gradient_noise: float | Tensor = 0.0,
) -> Sampler:
    """Underdamped Langevin dynamics with minibatch gradients, by the B A O A splitting.

    Samples ``exp(-U/T)``: exactly on a Gaussian for any stable step (``h^2 l < 4``), with a bias
    of second order in the step size ``h`` elsewhere, plus that of the minibatch noise, which
    ``gradient_noise`` compensates. Momenta start at the target temperature.

    Source: Chen, Fox and Guestrin, "Stochastic gradient Hamiltonian Monte Carlo", 2014;
    Leimkuhler and Matthews, "Rational construction of stochastic numerical methods for molecular
    sampling", 2013.

    Args:
        target: a potential, or a gradient estimator.
        friction: in 1/time, ``dp = ... - friction p dt``.
        temperature: T, a number or a schedule.
        gradient_noise: an estimate of the variance ``s^2`` of the gradient noise, one number or
            one per parameter ``[D]``. The injected variance ``T (1 - c^2)`` is lowered by
            ``h^2 s^2 (1 + c)^2 / 4``, but never below zero. This keeps the diffusion of theta, so
            that what is left of the noise's bias on a Gaussian is of third order in ``h``,
            ``h^4 s^2 (1 + c) / (4 (1 - c) (4 - h^2 l))``; the kinetic temperature then lies
            ``h^2 s^2 / 2`` below T to leading order.

    Raises:
        ValueError: a friction that is not positive, a negative temperature or gradient noise.
    """
    check_positive("friction", friction)
    if isinstance(gradient_noise, Tensor):
        check_finite("gradient_noise", gradient_noise, "Estimate it again.")
        if (gradient_noise < 0).any():
            raise ValueError("gradient_noise is a variance: it must not be negative.")
    else:
        check_nonnegative("gradient_noise", gradient_noise)
    start = as_schedule("temperature", temperature)

    def memory(position: Tensor, generator: torch.Generator) -> Memory:
        noise = torch.randn(
            position.shape, generator=generator, dtype=position.dtype, device=position.device
        )
        return Memory(noise * start(0) ** 0.5)

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        h, temperature = controls["step_size"], controls["temperature"]
        g, potential = gradient_at(position)
        configurational = configurational_temperature(position, g)
        c = (-friction * h).exp()
        injected = temperature * (1 - c**2) - (0.5 * (1 + c) * h) ** 2 * gradient_noise
        p = memory.momentum - h * g
        position = position + 0.5 * h * p
        p = c * p + injected.clamp(min=0).sqrt() * noise
        position = position + 0.5 * h * p
        return position, Memory(p), Info(potential, configurational, p.square().mean(-1))

    summary = gradient_noise if isinstance(gradient_noise, float | int) else "per parameter"
    return assemble(
        "sghmc",
        target,
        transition,
        settings={"friction": friction, "gradient_noise": summary},
        schedules={"temperature": temperature},
        memory=memory,
        noise=gaussian,
    )
