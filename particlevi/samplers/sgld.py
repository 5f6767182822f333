r"""Stochastic gradient Langevin dynamics.

Step, with step size ``h`` and temperature ``T``::

    theta' = theta - h g(theta) + sqrt(2 h T) xi,        xi ~ N(0, I)

Target: ``exp(-U/T)`` as ``h -> 0``. On a Gaussian with curvature ``l`` and gradient-noise variance
``s^2`` the stationary variance is exactly ``(2 T + h s^2) / (l (2 - h l))``: a bias of first order
in ``h``, from the step and from the noise alike. Stable for ``h l < 2``.

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
    configurational_temperature,
    gaussian,
)
from particlevi.typing import Controls, Sampler, Schedule

__all__ = ["Info", "sgld", "transition"]


class Info(NamedTuple):
    """Potential and configurational temperature ``[P]`` where the gradient was evaluated."""

    potential: Tensor
    configurational_temperature: Tensor


def transition(
    position: Tensor, memory: Nothing, gradient_at: GradientAt, noise: Tensor, controls: Controls
) -> tuple[Tensor, Nothing, Info]:
    """One step."""
    h, temperature = controls["step_size"], controls["temperature"]
    g, potential = gradient_at(position)
    info = Info(potential, configurational_temperature(position, g))
    return position - h * g + (2 * h * temperature).sqrt() * noise, memory, info


def sgld(target: Target, temperature: float | Schedule = 1.0) -> Sampler:
    """Stochastic gradient Langevin dynamics: ``theta' = theta - h g + sqrt(2 h T) xi``.

    Samples ``exp(-U/T)`` up to a bias of first order in the step size ``h``; on a Gaussian with
    curvature ``l`` and gradient-noise variance ``s^2`` the stationary variance is
    ``(2 T + h s^2) / (l (2 - h l))``. Stable for ``h l < 2``.

    Source: Welling and Teh, "Bayesian learning via stochastic gradient Langevin dynamics", 2011.

    Args:
        target: a potential, or a gradient estimator.
        temperature: T, a number or a schedule; 1 is the Bayes posterior, 0 gradient descent.

    Raises:
        ValueError: a negative temperature.
    """
    schedules: dict[str, Any] = {"temperature": temperature}
    return assemble("sgld", target, transition, settings={}, schedules=schedules, noise=gaussian)
