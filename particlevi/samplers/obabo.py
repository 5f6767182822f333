"""OBABO, and with a Metropolis test at the end of every path: gradient-guided Monte Carlo.

One step of length ``h`` with friction ``f``, unit mass and ``c = exp(-f h / 2)``::

    p     <- c p + sqrt(T (1 - c^2)) xi_1
    p     <- p - h g / 2
    theta <- theta + h p
    p     <- p - h g(theta) / 2
    p     <- c p + sqrt(T (1 - c^2)) xi_2

The last gradient is the first of the next step, so that a step costs one gradient.

With a Metropolis test a step of the sampler is a path of K of these steps and the test. The three
lines in the middle are a leapfrog step, whose energy error
``dE = U(theta') - U(theta) + (p'.p' - p.p) / 2`` is summed over the path; the end is accepted with
probability ``min(1, exp(-sum dE / T))``, or else the state goes back to the beginning of the path,
with its momentum turned round. Every state between steps of the sampler has been tested.

Target: ``exp(-U/T)``. Without the test the bias is of second order in ``h``: on a Gaussian
with curvature ``l`` the stationary variance is ``(T/l) / (1 - h^2 l / 4)``, that of p exactly T.
Gradient noise of variance ``s^2`` adds ``h^2 s^2 (1 + c^2) / (l (1 - c^2) (4 - h^2 l))`` to the
first and ``h^2 s^2 c^2 / (2 (1 - c^2))`` to the second.
With the test the law is exactly ``exp(-U/T)``, for any potential. Stable for ``h^2 l < 4``.

References: Garriga-Alonso and Fortuin, "Exact Langevin dynamics with stochastic gradients", 2021;
Horowitz, "A generalized guided Monte Carlo algorithm", 1991.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int
from particlevi.samplers._assemble import (
    MOMENTUM_SHOWN,
    GradientAt,
    MomentumInfo,
    Target,
    assemble,
    configurational_temperature,
    momenta,
    standard_normal,
)
from particlevi.samplers._metropolis import (
    EXACT_ENERGY,
    chosen,
    kinetic_energy,
    leapfrog,
    metropolis,
    uniforms,
)
from particlevi.samplers.baoab import Memory
from particlevi.typing import (
    Controls,
    Gradient,
    Requirements,
    Sampler,
    SamplerState,
    Schedule,
    Streams,
)

__all__ = ["AdjustedInfo", "AdjustedMemory", "Memory", "obabo"]


class AdjustedMemory(NamedTuple):
    """Momentum and gradient ``[P, D]`` and potential ``[P]`` at the position.

    ``begun`` (0-d) is 0 before the first step, which only evaluates the last two.
    """

    momentum: Tensor
    gradient: Tensor
    potential: Tensor
    begun: Tensor


class AdjustedInfo(NamedTuple):
    """As ``MomentumInfo``, with probability of acceptance and energy error in nats, ``[P]``."""

    potential: Tensor
    configurational_temperature: Tensor
    kinetic_temperature: Tensor
    acceptance: Tensor
    energy_error: Tensor


def obabo(
    target: Target,
    friction: float = 1.0,
    temperature: float | Schedule = 1.0,
    metropolis_every: int | None = None,
) -> Sampler:
    """Underdamped Langevin dynamics by the O B A B O splitting, exact if Metropolis-corrected.

    Samples ``exp(-U/T)`` with a bias of second order in the step size ``h``; on a Gaussian the
    stationary variance is ``(T/l) / (1 - h^2 l / 4)`` and the kinetic temperature exactly T. One
    gradient per step. Stable for ``h^2 l < 4``.

    With ``metropolis_every=K`` a step is a path of K O B A B O steps that ends in an accept-reject
    test, and costs K gradients: every draw follows ``exp(-U/T)`` exactly. The first step of a run
    only evaluates the gradient.

    Source: Garriga-Alonso and Fortuin, "Exact Langevin dynamics with stochastic gradients", 2021.

    Args:
        target: a potential, or a gradient estimator; under a test one whose gradient is that of
            the potential it reports.
        friction: in 1/time, ``dp = ... - friction p dt``.
        temperature: T, a number or a schedule.
        metropolis_every: K; no test if absent. The test is by the energy of all the data, so a
            minibatch is refused.

    Raises:
        ValueError: a friction that is not positive, a negative temperature, K below 1; under a
            test, an estimator such as ``structured`` and, at the first step, a minibatch.
    """
    check_positive("friction", friction)
    if metropolis_every is not None:
        check_positive_int("metropolis_every", metropolis_every)
    adjusted = metropolis_every is not None
    length = int(metropolis_every or 1)

    def memory(position: Tensor, streams: Streams) -> Memory | AdjustedMemory:
        p, zeros = momenta(position, streams, temperature), torch.zeros_like(position)
        if not adjusted:
            return Memory(p, zeros)
        return AdjustedMemory(p, zeros, zeros[:, 0].clone(), position.new_zeros(()))

    def noise(state: SamplerState, streams: Streams) -> tuple[Tensor, ...]:
        normal = [standard_normal(state.position, streams) for _ in range(2 * length)]
        uniform = [uniforms(state.position, 1, streams)] if adjusted else []
        return (*normal, *uniform)

    def move(
        position: Tensor, p: Tensor, g: Tensor, at: GradientAt, xi: Any, h: Tensor, T: Tensor
    ) -> tuple[Tensor, Tensor, Gradient, Tensor]:
        """The end of a step, and what it changed the kinetic energy by."""
        c = (-0.5 * friction * h).exp()
        spread = (T * (1 - c**2)).sqrt()
        p = c * p + spread * xi[0]
        before = kinetic_energy(p)
        position, p, end = leapfrog(position, p, g, at, h)
        change = kinetic_energy(p) - before
        return position, c * p + spread * xi[1], end, change

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, MomentumInfo]:
        h, temperature = controls["step_size"], controls["temperature"]
        position, p, (g, potential), _ = move(
            position, memory.momentum, memory.gradient, gradient_at, noise, h, temperature
        )
        configurational = configurational_temperature(position, g)
        info = MomentumInfo(potential, configurational, p.square().mean(-1))
        return position, Memory(p, g), info

    def adjusted_transition(
        position: Tensor,
        memory: AdjustedMemory,
        gradient_at: GradientAt,
        noise: Any,
        controls: Controls,
    ) -> tuple[Tensor, AdjustedMemory, AdjustedInfo]:
        h, temperature = controls["step_size"] * memory.begun, controls["temperature"]
        end, p, g, potential = position, memory.momentum, memory.gradient, memory.potential
        error = torch.zeros_like(potential)
        for k in range(length):
            xi = noise[2 * k : 2 * k + 2]
            end, p, (g, potential), change = move(end, p, g, gradient_at, xi, h, temperature)
            error = error + change
        error = error + (potential - memory.potential)
        accepted, probability = metropolis(error, temperature, noise[-1][:, 0])
        first = memory.begun == 0
        accepted, probability = accepted | first, torch.where(first, 1.0, probability)
        position = chosen(accepted, end, position)
        p = chosen(accepted, p, -memory.momentum)
        g = chosen(accepted, g, memory.gradient)
        potential = chosen(accepted, potential, memory.potential)
        configurational = configurational_temperature(position, g)
        error = torch.where(first, 0.0, error)
        info = AdjustedInfo(potential, configurational, p.square().mean(-1), probability, error)
        return position, AdjustedMemory(p, g, potential, torch.ones_like(memory.begun)), info

    return assemble(
        "obabo",
        target,
        adjusted_transition if adjusted else transition,
        memory=memory,
        noise=noise,
        settings={"friction": friction, "metropolis_every": metropolis_every},
        schedules={"temperature": temperature},
        gradients=length,
        requires=EXACT_ENERGY if adjusted else Requirements(),
        energy_error=(lambda info: info.energy_error) if adjusted else None,
        shown=MOMENTUM_SHOWN | ({"acceptance": "accepted"} if adjusted else {}),
        max_step_size=lambda curvature: 2 / curvature**0.5,
    )
