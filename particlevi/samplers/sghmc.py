"""Stochastic gradient Hamiltonian Monte Carlo.

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

Two Euler forms are there to match other libraries. With ``a = f h``, ``e = h^2`` and
``q = 2 a e T + e^2 s^2``, their laws on a Gaussian are::

    symplectic   p <- (1 - a) p - h g + sqrt(2 a T) xi;  theta <- theta + h p (the new p)
                 Var theta = q (2 - a) / (a e l (4 - 2 a - e l)),     e l < 4 - 2 a
                 Var p = 2 q / (a e (4 - 2 a - e l)), above T also as h -> 0 at fixed a
    explicit     the same with the old p in the second line
                 Var theta = q (2 - a + e l) / (e l (a - e l) (4 - 2 a + e l)),
                 e l < a and 2 a < 4 + e l

Step size: ``h`` is the time step of the SDE; a learning rate on the mean loss is about ``h^2 N``
and the momentum decay ``c``, or ``1 - a`` in the Euler forms.

References: Chen, Fox and Guestrin, "Stochastic gradient Hamiltonian Monte Carlo", 2014; Leimkuhler
and Matthews, "Rational construction of stochastic numerical methods for molecular sampling", 2013.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from torch import Tensor

from particlevi._checks import check_choice, check_positive
from particlevi.samplers._assemble import (
    MOMENTUM_SHOWN,
    GradientAt,
    MomentumInfo,
    Nothing,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
    momenta,
)
from particlevi.samplers._noise import Average, Noise
from particlevi.typing import Controls, Facts, Sampler, Schedule, Streams

__all__ = ["Memory", "sghmc"]


class Memory(NamedTuple):
    """Momenta ``[P, D]``, and what is known of the gradient noise."""

    momentum: Tensor
    noise: Average | Nothing = Nothing()


def sghmc(
    target: Target,
    friction: float = 1.0,
    temperature: float | Schedule = 1.0,
    gradient_noise: float | Tensor | str = 0.0,
    integrator: str = "baoa",
) -> Sampler:
    """Underdamped Langevin dynamics with minibatch gradients, one gradient per step.

    By the B A O A splitting it samples ``exp(-U/T)`` exactly on a Gaussian for any stable step
    (``h^2 l < 4``), with a bias of second order in the step size ``h`` elsewhere, plus that of the
    minibatch noise, which ``gradient_noise`` compensates. Momenta start at the target temperature.

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
            ``h^2 s^2 / 2`` below T to leading order. In the Euler forms ``2 f h T`` is lowered by
            ``h^2 s^2`` and nothing is left. ``"online"`` estimates it per parameter and chain, as
            a moving average over a thousand steps of what the two halves of each batch tell; for
            batches drawn afresh at every step, of at least 2 data. A warning tells when it is
            more than can be taken out.
        integrator: ``"baoa"``; or the Euler forms ``"symplectic"`` (position moved by the new
            momentum, the form of the paper's own code and of the BNN literature) and
            ``"explicit"`` (by the old one; unstable unless ``friction > h l``), whose laws are in
            the module's documentation.

    Raises:
        ValueError: a friction that is not positive, a negative temperature or gradient noise, an
            unknown integrator; at the first step, batches of an epoch under compensation, since
            their noise is not independent from step to step.
    """
    check_positive("friction", friction)
    check_choice("integrator", integrator, ["baoa", "symplectic", "explicit"])
    known = Noise(gradient_noise, target)

    def memory(position: Tensor, streams: Streams) -> Memory:
        return Memory(momenta(position, streams, temperature), known.memory(position))

    def splitting(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Any]:
        h, temperature = controls["step_size"], controls["temperature"]
        (g, potential), s2, average = known(gradient_at, position, memory.noise)
        configurational = configurational_temperature(position, g)
        c = (-controls.get("friction", friction) * h).exp()
        injected = temperature * (1 - c**2) - (0.5 * (1 + c) * h) ** 2 * s2
        p = memory.momentum - h * g
        position = position + 0.5 * h * p
        p = c * p + injected.clamp(min=0).sqrt() * noise
        position = position + 0.5 * h * p
        info = MomentumInfo(potential, configurational, p.square().mean(-1))
        return position, Memory(p, average), known.report(info, s2, injected, position)

    def euler(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Any]:
        h, temperature = controls["step_size"], controls["temperature"]
        (g, potential), s2, average = known(gradient_at, position, memory.noise)
        configurational = configurational_temperature(position, g)
        injected = 2 * friction * h * temperature - h**2 * s2
        p = (1 - friction * h) * memory.momentum - h * g + injected.clamp(min=0).sqrt() * noise
        position = position + h * (p if integrator == "symplectic" else memory.momentum)
        info = MomentumInfo(potential, configurational, p.square().mean(-1))
        return position, Memory(p, average), known.report(info, s2, injected, position)

    def compensable(controls: Controls) -> float:
        h, temperature = float(controls["step_size"]), float(controls["temperature"])
        if integrator != "baoa":
            return 2 * friction * temperature / h
        c = math.exp(-float(controls.get("friction", friction)) * h)
        return temperature * (1 - c**2) / (0.5 * (1 + c) * h) ** 2

    def max_step_size(curvature: float) -> float:
        if integrator == "baoa":
            return 2 / math.sqrt(curvature)
        if integrator == "symplectic":
            return (math.sqrt(friction**2 + 4 * curvature) - friction) / curvature
        spread = friction**2 - 4 * curvature
        return (friction - math.sqrt(max(spread, 0.0))) / curvature

    kinetic: Literal["target", "below", "above"] = "below" if known.present else "target"
    if integrator != "baoa":
        kinetic = "above"

    return assemble(
        "sghmc",
        target,
        splitting if integrator == "baoa" else euler,
        settings={
            "friction": friction,
            "gradient_noise": known.record,
            "integrator": integrator,
        },
        tunable={"friction": friction} if integrator == "baoa" else {},
        schedules={"temperature": temperature},
        memory=memory,
        noise=gaussian,
        requires=known.requires,
        shown=MOMENTUM_SHOWN | known.shown,
        max_step_size=max_step_size,
        warning=known.warning(compensable),
        facts=Facts(kinetic=kinetic),
    )
