"""The stochastic gradient Nose-Hoover thermostat.

The SDE, with unit mass, diffusion ``A`` in 1/time and one thermostat ``x`` per chain::

    d theta = p dt
    dp      = -g(theta) dt - x p dt + sqrt(2 A T) dW
    dx      = (p.p / D - T) dt

The friction ``x`` adjusts itself until the kinetic temperature is T, whatever the gradient noise,
known or not.

One step of length ``h`` is B A D O D A, the O step exact under the present ``x``::

    p     <- p - h g(theta)
    theta <- theta + h p / 2
    x     <- x + h (p.p / D - T) / 2
    p     <- c p + sqrt(A T (1 - c^2) / x) xi,        c = exp(-x h),  xi ~ N(0, I)
    x     <- x + h (p.p / D - T) / 2
    theta <- theta + h p / 2

Target: ``exp(-U/T)``, if the gradient noise is Gaussian, equally strong in all directions and
everywhere, and independent from step to step. (Batches of an epoch take back what earlier ones did,
so that the friction which holds the kinetic temperature is too much.) As D grows the thermostat
comes to rest; then, on a Gaussian with curvature ``l`` and gradient noise of variance ``s^2``, it
rests where ``A / x = 1 - 2 h^2 s^2 (1 + c^2) / (T (1 - c^2) (4 - h^2 l))``, that is at
``A + h s^2 / (2 T)`` to leading order, and
``Var theta = T/l - h^2 s^2 (1 - c) / (l (1 + c) (4 - h^2 l))``, a bias of third order in ``h``; the
kinetic temperature is T in the mean of the two halves of the step, and at the end of it
``T - 2 h^2 s^2 / (4 - h^2 l)``. Stable for ``h^2 l < 4``.

Step size: ``h`` is the time step; a learning rate on the mean loss is about ``h^2 N``.

References: Ding, Fang, Babbush, Chen, Skeel and Neven, "Bayesian sampling using stochastic gradient
thermostats", 2014; Leimkuhler and Shang, "Adaptive thermostats for noisy gradient systems", 2016.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_positive
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers._assemble import (
    MOMENTUM_SHOWN,
    GradientAt,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
    momenta,
)
from particlevi.typing import Controls, Facts, Requirements, Sampler, Schedule, Streams

__all__ = ["Info", "Memory", "sgnht"]


class Memory(NamedTuple):
    """Momenta ``[P, D]`` and the thermostat ``[P]`` of each chain."""

    momentum: Tensor
    thermostat: Tensor


class Info(NamedTuple):
    """Potential, temperatures and thermostat ``[P]``.

    The potential and the configurational temperature are those where the gradient was evaluated;
    the kinetic temperature and the thermostat those at the end of the step.
    """

    potential: Tensor
    configurational_temperature: Tensor
    kinetic_temperature: Tensor
    thermostat: Tensor


def sgnht(target: Target, diffusion: float = 1.0, temperature: float | Schedule = 1.0) -> Sampler:
    """Underdamped Langevin dynamics whose friction adjusts itself to unknown gradient noise.

    One thermostat ``x`` per chain, for all parameters together, moves by ``dx = (p.p/D - T) dt``
    until the kinetic temperature is T. Samples ``exp(-U/T)`` under gradient noise that is Gaussian
    and the same in all directions: on a Gaussian with many parameters the bias is of third order
    in the step size ``h``. Stable for ``h^2 l < 4``.

    Source: Ding, Fang, Babbush, Chen, Skeel and Neven, "Bayesian sampling using stochastic gradient
    thermostats", 2014.

    Args:
        target: a potential, or a gradient estimator.
        diffusion: A, in 1/time: the friction if there were no gradient noise.
        temperature: T, a number or a schedule.

    Raises:
        ValueError: a diffusion that is not positive or beyond the particles' dtype, a negative
            temperature; at the first step, a batch of an epoch or of a ``DataLoader``.
    """
    check_positive("diffusion", diffusion)
    dtype = as_estimator(target).potential.dtype
    if diffusion > torch.finfo(dtype).max:
        raise ValueError(f"diffusion must be a number of {dtype}, got {diffusion!r}.")

    def memory(position: Tensor, streams: Streams) -> Memory:
        momentum = momenta(position, streams, temperature)
        return Memory(momentum, position.new_full((len(position),), diffusion))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        h, temperature = controls["step_size"], controls["temperature"]
        g, potential = gradient_at(position)
        configurational = configurational_temperature(position, g)
        p = memory.momentum - h * g
        position = position + 0.5 * h * p
        x = memory.thermostat + 0.5 * h * (p.square().mean(-1) - temperature)
        spread = (2 * diffusion * temperature * h * _decay_mean(2 * x * h)).sqrt()
        p = (-x * h).exp().unsqueeze(-1) * p + spread.unsqueeze(-1) * noise
        kinetic = p.square().mean(-1)
        x = x + 0.5 * h * (kinetic - temperature)
        position = position + 0.5 * h * p
        return position, Memory(p, x), Info(potential, configurational, kinetic, x)

    return assemble(
        "sgnht",
        target,
        transition,
        settings={"diffusion": diffusion},
        schedules={"temperature": temperature},
        memory=memory,
        noise=gaussian,
        shown=MOMENTUM_SHOWN | {"thermostat": "x"},
        max_step_size=lambda curvature: 2 / curvature**0.5,
        requires=Requirements(independent_data=True),
        facts=Facts(kinetic="held", thermostat=float(diffusion)),
    )


def _decay_mean(x: Tensor) -> Tensor:
    """``(1 - exp(-x)) / x``, the mean of ``exp(-u)`` over ``0 < u < x``; 1 at ``x = 0``."""
    small = x.abs() < 1e-4
    safe = torch.where(small, 1.0, x)
    return torch.where(small, 1 - 0.5 * x, -torch.expm1(-safe) / safe)
