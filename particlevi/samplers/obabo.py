"""OBABO, with a Metropolis correction every few steps: gradient-guided Monte Carlo.

One step of length ``h`` with friction ``f``, unit mass and ``c = exp(-f h / 2)``::

    p     <- c p + sqrt(T (1 - c^2)) xi_1
    p     <- p - h g / 2
    theta <- theta + h p
    p     <- p - h g(theta) / 2
    p     <- c p + sqrt(T (1 - c^2)) xi_2

The last gradient is the first of the next step, so that a step costs one gradient.

The three lines in the middle are a leapfrog step, whose energy error
``dE = U(theta') - U(theta) + (p'.p' - p.p) / 2`` is summed over K steps; then the path is kept with
probability ``min(1, exp(-sum dE / T))``, or else the state goes back to where it was K steps ago,
with its momentum turned round.

Target: ``exp(-U/T)``. Without the correction the bias is of second order in ``h``: on a Gaussian
with curvature ``l`` the stationary variance is ``(T/l) / (1 - h^2 l / 4)``, that of p exactly T.
Gradient noise of variance ``s^2`` adds ``h^2 s^2 (1 + c^2) / (l (1 - c^2) (4 - h^2 l))`` to the
first and ``h^2 s^2 c^2 / (2 (1 - c^2))`` to the second.
With the correction, the states after each test follow ``exp(-U/T)`` exactly, for any potential.
Stable for ``h^2 l < 4``.

References: Garriga-Alonso and Fortuin, "Exact Langevin dynamics with stochastic gradients", 2021;
Horowitz, "A generalized guided Monte Carlo algorithm", 1991.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int
from particlevi.samplers._assemble import (
    GradientAt,
    MomentumInfo,
    Target,
    assemble,
    configurational_temperature,
    momenta,
    standard_normal,
)
from particlevi.samplers.baoab import Memory
from particlevi.typing import Controls, Gradient, Sampler, SamplerState, Schedule

__all__ = ["AdjustedInfo", "AdjustedMemory", "Memory", "Point", "obabo"]


class Point(NamedTuple):
    """Where a path began: all that a rejection brings back."""

    position: Tensor
    momentum: Tensor
    gradient: Tensor
    potential: Tensor


class AdjustedMemory(NamedTuple):
    """What the Metropolis test needs.

    Attributes:
        momentum, gradient: ``[P, D]``.
        potential: at the position, ``[P]``.
        start: the state at the last test.
        energy_error: summed since then, ``[P]``.
        acceptance: probability at the last test, ``[P]``.
        steps: made since then, 0-d; -1 before the first step, which only evaluates the gradient.
    """

    momentum: Tensor
    gradient: Tensor
    potential: Tensor
    start: Point
    energy_error: Tensor
    acceptance: Tensor
    steps: Tensor


class AdjustedInfo(NamedTuple):
    """As ``MomentumInfo``, with the probability of acceptance at the last test, ``[P]``."""

    potential: Tensor
    configurational_temperature: Tensor
    kinetic_temperature: Tensor
    acceptance: Tensor


def _leapfrog(
    position: Tensor, p: Tensor, gradient: Tensor, gradient_at: GradientAt, h: Tensor
) -> tuple[Tensor, Tensor, Gradient]:
    p = p - 0.5 * h * gradient
    position = position + h * p
    found = gradient_at(position)
    return position, p - 0.5 * h * found.gradient, found


def _kinetic(p: Tensor) -> Tensor:
    return 0.5 * p.square().sum(-1)


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

    With ``metropolis_every=K`` every K-th step ends in an accept-reject test, and the states after
    tests follow ``exp(-U/T)`` exactly: choose ``thin`` and ``num_warmup`` as multiples of K. The
    first step of a run then only evaluates the gradient, so that step ``1 + K`` ends in the first
    test.

    Source: Garriga-Alonso and Fortuin, "Exact Langevin dynamics with stochastic gradients", 2021.

    Args:
        target: a potential, or a gradient estimator.
        friction: in 1/time, ``dp = ... - friction p dt``.
        temperature: T, a number or a schedule.
        metropolis_every: K; no test if absent. The test is by the energy of all the data, so a
            minibatch is refused.

    Raises:
        ValueError: a friction that is not positive, a negative temperature, K below 1; at the
            first step, a minibatch under a Metropolis test.
    """
    check_positive("friction", friction)
    adjusted = metropolis_every is not None
    if metropolis_every is not None:
        check_positive_int("metropolis_every", metropolis_every)

    def memory(position: Tensor, generator: torch.Generator) -> Memory | AdjustedMemory:
        p = momenta(position, generator, temperature)
        zeros, none = torch.zeros_like(position), position.new_zeros(len(position))
        if not adjusted:
            return Memory(p, zeros)
        begin = Point(position.clone(), p.clone(), zeros.clone(), none)
        acceptance, steps = torch.ones_like(none), position.new_tensor(-1.0)
        return AdjustedMemory(p, zeros, none.clone(), begin, none.clone(), acceptance, steps)

    def noise(state: SamplerState, generator: torch.Generator) -> tuple[Tensor, ...]:
        position = state.position
        first = standard_normal(position, generator)
        second = standard_normal(position, generator)
        if not adjusted:
            return first, second
        uniform = torch.rand(
            len(position), generator=generator, dtype=position.dtype, device=position.device
        )
        return first, second, uniform

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, MomentumInfo]:
        h, temperature = controls["step_size"], controls["temperature"]
        c = (-0.5 * friction * h).exp()
        spread = (temperature * (1 - c**2)).sqrt()
        p = c * memory.momentum + spread * noise[0]
        position, p, (g, potential) = _leapfrog(position, p, memory.gradient, gradient_at, h)
        p = c * p + spread * noise[1]
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
        begun, temperature = memory.steps >= 0, controls["temperature"]
        h = controls["step_size"] * begun
        c = (-0.5 * friction * h).exp()
        spread = (temperature * (1 - c**2)).sqrt()

        p = c * memory.momentum + spread * noise[0]
        before = _kinetic(p)
        position, p, (g, potential) = _leapfrog(position, p, memory.gradient, gradient_at, h)
        error = potential - memory.potential + _kinetic(p) - before
        energy_error = torch.where(begun, memory.energy_error + error, 0.0)
        p = c * p + spread * noise[1]

        steps = memory.steps + 1
        test = (steps == metropolis_every) | ~begun
        probability = (-energy_error / temperature).exp().clamp(max=1)
        accepted = (noise[2] < probability) | ~begun
        here, there = Point(position, p, g, potential), memory.start
        back = there._replace(momentum=-there.momentum)
        rejected = test & ~accepted
        now = Point(*(_choose(rejected, old, new) for old, new in zip(back, here, strict=True)))
        begin = Point(*(_choose(test, new, old) for new, old in zip(now, there, strict=True)))
        acceptance = torch.where(test & begun, probability, memory.acceptance)
        kept = AdjustedMemory(
            now.momentum,
            now.gradient,
            now.potential,
            begin,
            torch.where(test, 0.0, energy_error),
            acceptance,
            torch.where(test, torch.zeros_like(steps), steps),
        )
        configurational = configurational_temperature(now.position, now.gradient)
        kinetic = now.momentum.square().mean(-1)
        info = AdjustedInfo(now.potential, configurational, kinetic, acceptance)
        return now.position, kept, info

    return assemble(
        "obabo",
        target,
        adjusted_transition if adjusted else transition,
        settings={"friction": friction, "metropolis_every": metropolis_every},
        schedules={"temperature": temperature},
        memory=memory,
        noise=noise,
        full_batch=adjusted,
        max_step_size=lambda curvature: 2 / curvature**0.5,
    )


def _choose(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """``torch.where`` with a condition ``[P]`` or 0-d over tensors ``[P]`` or ``[P, D]``."""
    if condition.ndim and yes.ndim == 2:
        condition = condition.unsqueeze(-1)
    return torch.where(condition, yes, no)
