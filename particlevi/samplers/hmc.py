"""Hamiltonian Monte Carlo on all the data: the reference that other samplers are held against.

One step draws momenta ``p ~ N(0, T I)``, makes L leapfrog steps of length ``h``::

    p     <- p - h g(theta) / 2
    theta <- theta + h p
    p     <- p - h g(theta) / 2

and accepts the end with probability ``min(1, exp(-dE / T))``, with ``E = U(theta) + p.p / 2``.

Target: ``exp(-U/T)`` exactly, for any ``h``. The lengths ``h`` are spread by a factor uniform in
``1 - jitter ... 1 + jitter``, one per chain and step, since a trajectory of half a period or a
multiple of it would never mix. Stable for ``h^2 l < 4``.

Step size: ``h`` is the time step; ``pi / 2 * sqrt(prior variance)`` is a usual length ``L h``.

Reference: Neal, "MCMC using Hamiltonian dynamics", 2011.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_fraction, check_positive_int
from particlevi.samplers._assemble import (
    SHOWN,
    GradientAt,
    Target,
    assemble,
    configurational_temperature,
)
from particlevi.samplers._metropolis import (
    EXACT_ENERGY,
    chosen,
    kinetic_energy,
    leapfrog,
    metropolis,
    momentum_and_test,
)
from particlevi.typing import Controls, Sampler, Schedule, Streams

__all__ = ["Info", "Memory", "hmc"]


class Memory(NamedTuple):
    """Gradient ``[P, D]`` and potential ``[P]`` at the position.

    ``begun`` (0-d) is 0 before the first step, which only evaluates them.
    """

    gradient: Tensor
    potential: Tensor
    begun: Tensor


class Info(NamedTuple):
    """Potential and configurational temperature at the end of the step, ``[P]``.

    The probability of acceptance and the energy error in nats are those of the trajectory.
    """

    potential: Tensor
    configurational_temperature: Tensor
    acceptance: Tensor
    energy_error: Tensor


def hmc(
    target: Target,
    num_leapfrog: int = 10,
    temperature: float | Schedule = 1.0,
    jitter: float = 0.1,
) -> Sampler:
    """Hamiltonian Monte Carlo: exact for ``exp(-U/T)``, with all the data at every step.

    A step costs ``num_leapfrog`` gradients. Aim at an acceptance (in the draws' statistics) of 0.6
    to 0.9 by the step size.

    Source: Neal, "MCMC using Hamiltonian dynamics", 2011.

    Args:
        target: a potential, or a gradient estimator without noise.
        num_leapfrog: L.
        temperature: T, a number or a schedule; above 0.
        jitter: relative spread of the step size, in [0, 1).

    Raises:
        ValueError: an argument out of its range; an estimator whose gradient is not that of the
            potential it reports, such as ``structured``; at the first step, a minibatch.
    """
    check_positive_int("num_leapfrog", num_leapfrog)
    check_fraction("jitter", jitter)

    def memory(position: Tensor, streams: Streams) -> Memory:
        potential = position.new_zeros(len(position))
        return Memory(torch.zeros_like(position), potential, position.new_zeros(()))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        xi, u, spread = noise[0], noise[1][:, 0], noise[1][:, 1]
        temperature, begun = controls["temperature"], memory.begun
        h = (controls["step_size"] * begun * (1 + jitter * (2 * spread - 1))).unsqueeze(-1)
        p = temperature.sqrt() * xi
        before = memory.potential + kinetic_energy(p)
        end, g, potential = position, memory.gradient, memory.potential
        for _ in range(num_leapfrog):
            end, p, (g, potential) = leapfrog(end, p, g, gradient_at, h)
        error = potential + kinetic_energy(p) - before
        accepted, probability = metropolis(error, temperature, u)
        first = begun == 0
        accepted, probability = accepted | first, torch.where(first, 1.0, probability)
        position = chosen(accepted, end, position)
        g = chosen(accepted, g, memory.gradient)
        potential = chosen(accepted, potential, memory.potential)
        error = torch.where(first, 0.0, error)
        info = Info(potential, configurational_temperature(position, g), probability, error)
        return position, Memory(g, potential, torch.ones_like(begun)), info

    return assemble(
        "hmc",
        target,
        transition,
        settings={"num_leapfrog": num_leapfrog, "jitter": jitter},
        schedules={"temperature": temperature},
        memory=memory,
        noise=momentum_and_test,
        gradients=num_leapfrog,
        requires=EXACT_ENERGY,
        energy_error=lambda info: info.energy_error,
        shown=SHOWN | {"acceptance": "accepted"},
        max_step_size=lambda curvature: 2 / curvature**0.5,
    )
