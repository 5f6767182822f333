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

from typing import Any

from torch import Tensor

from particlevi.samplers._assemble import (
    SHOWN,
    GradientAt,
    Info,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
)
from particlevi.samplers._noise import Noise
from particlevi.typing import Controls, Sampler, Schedule, Streams

__all__ = ["sgld"]


def sgld(
    target: Target,
    temperature: float | Schedule = 1.0,
    gradient_noise: float | Tensor | str = 0.0,
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
            gradient noise. ``"online"`` estimates it per parameter and chain, as a moving average
            over a thousand steps of what the two halves of each batch tell; for batches drawn
            afresh at every step, of at least 2 data. A warning tells when it is more than can be
            taken out.

    Raises:
        ValueError: a negative temperature or gradient noise; at the first step, batches of an
            epoch under compensation, since their noise is not independent from step to step.
    """
    known = Noise(gradient_noise, target)

    def memory(position: Tensor, streams: Streams) -> Any:
        return known.memory(position)

    def transition(
        position: Tensor, memory: Any, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Any, Any]:
        h, temperature = controls["step_size"], controls["temperature"]
        (g, potential), s2, memory = known(gradient_at, position, memory)
        injected = 2 * h * temperature - h**2 * s2
        info = Info(potential, configurational_temperature(position, g))
        info = known.report(info, s2, injected, position)
        # Added to the noise first, a drift below the spacing of the positions is not lost.
        move = injected.clamp(min=0).sqrt() * noise - h * g
        return position + move, memory, info

    return assemble(
        "sgld",
        target,
        transition,
        settings={"gradient_noise": known.record},
        schedules={"temperature": temperature},
        memory=memory,
        noise=gaussian,
        requires=known.requires,
        shown=SHOWN | known.shown,
        max_step_size=lambda curvature: 2 / curvature,
        warning=known.warning(
            lambda controls: 2 * float(controls["temperature"]) / float(controls["step_size"])
        ),
    )
