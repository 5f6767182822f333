"""Parallel tempering (replica exchange) over the particle axis.

R temperatures ``T_0 < T_1 < ...``; particle ``i`` is at ``T_{i mod R}``, and R particles in a row
are a ladder of replicas, independent of the other ladders (the last one may lack its hot end). Each
replica moves by the B A O A B step of ``baoab`` at its temperature. Then, every so many steps,
replicas of neighbouring temperatures exchange places with probability ``min(1, e^S)``,

    S = (1/T_r - 1/T_{r+1}) (U_r - U_{r+1}) - (1/T_r - 1/T_{r+1})^2 v

where ``v`` is the variance of a replica's energy estimate on a minibatch (0 on all the data; the
mean of the two replicas'), the estimates of the two being independent: with Gaussian noise ``e^S``
is then unbiased. Momenta stay at their temperature. Even and odd pairs take turns.

Target: the replicas at ``T_r`` follow ``exp(-U/T_r)``, exactly on a Gaussian for every stable step
(``h^2 l < 4``) on all the data; elsewhere the bias is that of ``baoab``, of second order in ``h``,
and that of the minibatch noise.

References: Swendsen and Wang, "Replica Monte Carlo simulation of spin glasses", 1986; Deng, Feng,
Gao, Liang and Lin, "Non-convex learning via replica exchange stochastic gradient MCMC", 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import (
    as_list,
    check_choice,
    check_nonnegative,
    check_positive,
    check_positive_int,
)
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers import baoab
from particlevi.samplers._assemble import (
    MOMENTUM_SHOWN,
    GradientAt,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
    standard_normal,
)
from particlevi.samplers._metropolis import uniforms
from particlevi.samplers._noise import Average, averaged
from particlevi.typing import (
    Controls,
    Facts,
    Gradient,
    Requirements,
    Sampler,
    SamplerState,
    Streams,
)

__all__ = ["Info", "Memory", "parallel_tempering"]


class Memory(NamedTuple):
    """What is carried from step to step.

    Attributes:
        momentum, gradient: ``[P, D]``.
        acceptance: at the last proposal, ``[P]``.
        steps: their number, 0-d.
        energy_noise: the variance of the energy estimate of each place, ``[P]``, found so far.
    """

    momentum: Tensor
    gradient: Tensor
    acceptance: Tensor
    steps: Tensor
    energy_noise: Average


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
    energy_noise: float | Literal["online"] = "online",
) -> Sampler:
    """Replicas at several temperatures that exchange places, each moving by ``baoab``.

    With R temperatures, every R-th particle is at the first of them, the target temperature: these
    are the draws, independent chains of the posterior if it is 1.

    Source: Deng, Feng, Gao, Liang and Lin, "Non-convex learning via replica exchange stochastic
    gradient MCMC", 2020.

    Args:
        target: a potential, or a gradient estimator.
        temperatures: increasing; at least two.
        friction: in 1/time.
        swap_every: steps between proposals to exchange.
        energy_noise: variance ``v`` of the potential's estimate on a minibatch, in nats squared,
            for replicas with minibatches of their own (the default).
            ``"online"`` estimates it at every temperature, as a moving average over a thousand
            steps of what the two halves of each batch tell; on all the data it is 0. Given as 0, it
            says that there is none, and minibatches are refused.

    Raises:
        ValueError: an argument out of its range; an estimator whose gradient is not that of the
            potential it reports, such as ``structured``; at the first step, a minibatch that
            the replicas share, or any if ``energy_noise`` is 0.
    """
    given = as_list("temperatures", temperatures, "a list of increasing numbers")
    for t in given:
        check_positive("each of temperatures", t)
    ladder = [float(t) for t in given]
    if len(ladder) < 2 or any(b <= a for a, b in pairwise(ladder)):
        raise ValueError(f"temperatures must be at least two and increase, got {ladder}.")
    check_positive("friction", friction)
    check_positive_int("swap_every", swap_every)
    if isinstance(energy_noise, str):
        check_choice("energy_noise, if not a variance,", energy_noise, ["online"])
    else:
        check_nonnegative("energy_noise", energy_noise)
        if float(energy_noise) > torch.finfo(torch.float32).max:
            raise ValueError(f"energy_noise must fit single precision, got {energy_noise!r}.")
    online = energy_noise == "online"
    rungs = len(ladder)
    potential = as_estimator(target).potential
    levels = torch.tensor(ladder, dtype=potential.dtype, device=potential.device)

    def temperature_of(position: Tensor) -> Tensor:
        return levels[torch.arange(len(position), device=levels.device) % rungs]

    def memory(position: Tensor, streams: Streams) -> Memory:
        spread = temperature_of(position).sqrt().unsqueeze(-1)
        momentum = standard_normal(position, streams) * spread
        acceptance = position.new_ones(len(position))
        steps = position.new_zeros(())
        variance = torch.full_like(acceptance, 0.0 if online else float(energy_noise))
        known = Average(variance, steps.clone())
        return Memory(momentum, torch.zeros_like(position), acceptance, steps, known)

    def noise(state: SamplerState, streams: Streams) -> tuple[Tensor, Tensor]:
        return gaussian(state, streams), uniforms(state.position, 1, streams)[:, 0]

    def energy_estimate(
        gradient_at: GradientAt, position: Tensor, memory: Memory
    ) -> tuple[Gradient, Tensor, Average]:
        """The gradient, the variance of the energy as known before, and with this step."""
        before = memory.energy_noise
        if not online:
            return gradient_at(position), before.variance, before
        found, variance = gradient_at.with_variance(position)
        return found, before.variance, averaged(before, variance.potential)

    def swap(
        potential: Tensor, temperature: Tensor, u: Tensor, steps: Tensor, variance: Tensor
    ) -> Any:
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
        mean_variance = 0.5 * (variance + variance[partner])
        probability = (gap * (potential - potential[partner]) - gap**2 * mean_variance).exp()
        shared = torch.where(lower, u, u[partner])
        source = torch.where(paired & (shared < probability), partner, index)
        return source, paired, probability.clamp(max=1)

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        h = controls["step_size"]
        temperature = temperature_of(position)
        moved, p = baoab.drift(
            position,
            memory.momentum - 0.5 * h * memory.gradient,
            noise[0],
            h,
            (-friction * h).exp(),
            temperature.unsqueeze(-1),
        )
        (g, potential), variance, energy_average = energy_estimate(gradient_at, moved, memory)
        p = p - 0.5 * h * g
        steps = memory.steps + 1
        source, proposed, probability = swap(potential, temperature, noise[1], steps, variance)
        acceptance = torch.where(proposed, probability, memory.acceptance)
        position, g, potential = moved[source], g[source], potential[source]
        info = Info(
            potential,
            configurational_temperature(position, g),
            p.square().mean(-1),
            temperature,
            acceptance,
        )
        return position, Memory(p, g, acceptance, steps, energy_average), info

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
        requires=Requirements(all_data=energy_noise == 0, energy=True, own_batches=True),
        shown=MOMENTUM_SHOWN | {"swap_acceptance": "swapped"},
        draws=slice(None, None, rungs),
        max_step_size=lambda curvature: 2 / curvature**0.5,
        facts=Facts(kinetic="leapfrog"),
    )
