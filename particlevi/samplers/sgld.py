r"""Stochastic gradient Langevin dynamics.

Step, with step size ``h`` and temperature ``T``::

    theta' = theta - h g(theta) + sqrt(2 h T) xi,        xi ~ N(0, I)

Target: ``exp(-U/T)`` as ``h -> 0``. On a Gaussian with curvature ``l`` and gradient-noise variance
``s^2`` the stationary variance is exactly ``(2 T + h s^2) / (l (2 - h l))``: a bias of first order
in ``h``, from the step and from the noise alike. Stable for ``h l < 2``. Gradient noise that is
known is taken out of the injected noise, whose variance becomes ``2 h T - h^2 s^2``, and with it
out of the law.

Step size: Welling and Teh's epsilon is ``2 h``; a learning rate on the mean loss is ``h N``.

Reference: Welling and Teh, "Bayesian learning via stochastic gradient Langevin dynamics", 2011.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from particlevi.samplers._assemble import (
    GradientAt,
    Nothing,
    Target,
    assemble,
    check_gradient_noise,
    configurational_temperature,
    gaussian,
)
from particlevi.typing import Controls, Sampler, Schedule

__all__ = ["Info", "sgld"]


class Info(NamedTuple):
    """Potential and configurational temperature ``[P]`` where the gradient was evaluated."""

    potential: Tensor
    configurational_temperature: Tensor


def sgld(
    target: Target,
    temperature: float | Schedule = 1.0,
    gradient_noise: float | Tensor = 0.0,
) -> Sampler:
    """Stochastic gradient Langevin dynamics: ``theta' = theta - h g + sqrt(2 h T) xi``.

    Samples ``exp(-U/T)`` up to a bias of first order in the step size ``h``; on a Gaussian with
    curvature ``l`` and gradient-noise variance ``s^2`` the stationary variance is
    ``(2 T + h s^2) / (l (2 - h l))``. Stable for ``h l < 2``.

    Source: Welling and Teh, "Bayesian learning via stochastic gradient Langevin dynamics", 2011.

    Args:
        target: a potential, or a gradient estimator.
        temperature: T, a number or a schedule; 1 is the Bayes posterior, 0 gradient descent.
        gradient_noise: an estimate of the variance ``s^2`` of the gradient noise, one number or
            one per parameter ``[D]``. The injected variance ``2 h T`` is lowered by ``h^2 s^2``,
            but never below zero. Up to ``h s^2 = 2 T`` the stationary variance is then that without
            gradient noise.

    Raises:
        ValueError: a negative temperature or gradient noise.
    """
    gradient_noise, record = check_gradient_noise(gradient_noise, target)
    settings = {"gradient_noise": record}

    def transition(
        position: Tensor, memory: Nothing, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Nothing, Info]:
        h, temperature = controls["step_size"], controls["temperature"]
        g, potential = gradient_at(position)
        injected = (2 * h * temperature - h**2 * gradient_noise).clamp(min=0)
        info = Info(potential, configurational_temperature(position, g))
        return position - h * g + injected.sqrt() * noise, memory, info

    return assemble(
        "sgld",
        target,
        transition,
        settings=settings,
        schedules={"temperature": temperature},
        noise=gaussian,
    )
