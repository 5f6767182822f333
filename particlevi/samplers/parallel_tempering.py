"""Parallel tempering (replica exchange) over the particle axis.

R temperatures ``T_0 < T_1 < ...``; particle ``i`` is at ``T_{i mod R}``, and R particles in a row
are a ladder of replicas, independent of the other ladders (the last one may lack its hot end). Each
replica moves by the B A O A B step of ``baoab`` at its temperature. Then, every so many steps,
replicas of neighbouring temperatures exchange places with probability ``min(1, e^S)``,

    S = (1/T_r - 1/T_{r+1}) (U_r - U_{r+1}) - (1/T_r - 1/T_{r+1})^2 v

where ``v`` is the variance of a replica's energy estimate on a minibatch (0 on all the data), the
estimates of the two being independent: with Gaussian noise ``e^S`` is then unbiased. Momenta stay
at their temperature. Even and odd pairs take turns.

Target: the replicas at ``T_r`` follow ``exp(-U/T_r)``, exactly on a Gaussian for every stable step
(``h^2 l < 4``) on all the data; elsewhere the bias is that of ``baoab``, of second order in ``h``,
and that of the minibatch noise.

References: Swendsen and Wang, "Replica Monte Carlo simulation of spin glasses", 1986; Deng, Feng,
Gao, Liang and Lin, "Non-convex learning via replica exchange stochastic gradient MCMC", 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_nonnegative, check_positive, check_positive_int
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers import baoab
from particlevi.samplers._assemble import (
    GradientAt,
    Target,
    assemble,
    configurational_temperature,
    standard_normal,
)
from particlevi.typing import Controls, Facts, Sampler, SamplerState

__all__ = ["Info", "Memory", "parallel_tempering"]


class Memory(NamedTuple):
    """Momenta and gradients ``[P, D]``, last acceptances ``[P]``, and the number of steps, 0-d."""

    momentum: Tensor
    gradient: Tensor
    acceptance: Tensor
    steps: Tensor


class Info(NamedTuple):
    """Of each particle at the end of the step, ``[P]``.

    ``swap_acceptance`` is the probability with which it was to exchange places when that was last
    proposed, 1 before.
    """

    potential: Tensor
    configurational_temperature: Tensor
    kinetic_temperature: Tensor
    replica_temperature: Tensor
    swap_acceptance: Tensor


def parallel_tempering(
    target: Target,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0, 8.0),
    friction: float = 1.0,
    swap_every: int = 1,
    energy_noise: float = 0.0,
) -> Sampler:
    """Replicas at several temperatures that exchange places, each moving by ``baoab``.

    With R temperatures, every R-th particle is at the first of them:
    ``draws.select(slice(0, None, R))`` are independent chains of the posterior if that is 1.

    Source: Deng, Feng, Gao, Liang and Lin, "Non-convex learning via replica exchange stochastic
    gradient MCMC", 2020.

    Args:
        target: a potential, or a gradient estimator.
        temperatures: increasing; at least two.
        friction: in 1/time.
        swap_every: steps between proposals to exchange.
        energy_noise: variance ``v`` of the potential's estimate on a minibatch, in nats squared,
            for replicas with minibatches of their own (``shared_batch=False``, the default).

    Raises:
        ValueError: an argument out of its range.
    """
    ladder = [float(t) for t in temperatures]
    for t in ladder:
        check_positive("each temperature", t)
    if len(ladder) < 2 or any(b <= a for a, b in pairwise(ladder)):
        raise ValueError(f"temperatures must be at least two and increase, got {ladder}.")
    check_positive("friction", friction)
    check_positive_int("swap_every", swap_every)
    check_nonnegative("energy_noise", energy_noise)
    rungs = len(ladder)
    potential = as_estimator(target).potential
    levels = torch.tensor(ladder, dtype=potential.dtype, device=potential.device)

    def temperature_of(position: Tensor) -> Tensor:
        return levels[torch.arange(len(position), device=levels.device) % rungs]

    def memory(position: Tensor, generator: torch.Generator) -> Memory:
        spread = temperature_of(position).sqrt().unsqueeze(-1)
        momentum = standard_normal(position, generator) * spread
        acceptance = position.new_ones(len(position))
        return Memory(momentum, torch.zeros_like(position), acceptance, position.new_zeros(()))

    def noise(state: SamplerState, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        position = state.position
        uniform = torch.rand(
            len(position), generator=generator, dtype=position.dtype, device=position.device
        )
        return standard_normal(position, generator), uniform

    def swap(potential: Tensor, temperature: Tensor, u: Tensor, steps: Tensor) -> Any:
        """Whom each particle takes over from, if it was proposed, and the acceptance, ``[P]``."""
        size = len(potential)
        index = torch.arange(size, device=potential.device)
        rung = index % rungs
        due = torch.remainder(steps, swap_every) == 0
        parity = torch.remainder(torch.div(steps, swap_every, rounding_mode="floor"), 2)
        lower = torch.remainder(rung, 2) == parity
        step = torch.where(lower, 1, -1)
        partner = index + step
        inside = (rung + step >= 0) & (rung + step < rungs) & (partner < size)
        paired = inside & due
        partner = torch.where(paired, partner, index)
        gap = 1 / temperature - 1 / temperature[partner]
        probability = (gap * (potential - potential[partner]) - gap**2 * energy_noise).exp()
        shared = torch.where(lower, u, u[partner])
        source = torch.where(paired & (shared < probability), partner, index)
        return source, paired, probability.clamp(max=1)

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        h = controls["step_size"]
        temperature = temperature_of(position)
        moved, after, (g, potential) = baoab.move(
            position,
            baoab.Memory(memory.momentum, memory.gradient),
            gradient_at,
            noise[0],
            h,
            (-friction * h).exp(),
            temperature.unsqueeze(-1),
        )
        steps = memory.steps + 1
        source, proposed, probability = swap(potential, temperature, noise[1], steps)
        acceptance = torch.where(proposed, probability, memory.acceptance)
        position, g, potential = moved[source], g[source], potential[source]
        info = Info(
            potential,
            configurational_temperature(position, g),
            after.momentum.square().mean(-1),
            temperature,
            acceptance,
        )
        return position, Memory(after.momentum, g, acceptance, steps), info

    return assemble(
        "parallel_tempering",
        target,
        transition,
        settings={
            "temperatures": list(ladder),
            "friction": friction,
            "swap_every": swap_every,
            "energy_noise": energy_noise,
        },
        memory=memory,
        noise=noise,
        max_step_size=lambda curvature: 2 / curvature**0.5,
        facts=Facts(kinetic="leapfrog"),
    )
