"""Microcanonical Langevin Monte Carlo, unadjusted.

A particle moves at unit speed in a direction u that the force turns (the kick K and the drift of
``particlevi.samplers._microcanonical``) and that forgets itself over the length L::

    u <- refresh(u, h / 2L)
    (theta, u) <- K(b_1 h) drift(a_1 h) K(b_2 h) ... K(b_1 h)
    u <- refresh(u, h / 2L)

Target: ``exp(-U)``, with a bias that vanishes with h. What tells its size is the energy change of a
step, ``W + U(theta') - U(theta)``: its variance over D grows as ``h^6``. On the standard Gaussian
in 50 dimensions, the minimal-norm integrator has a variance over D of 1.5e-4 and second moments
1.3 % too small at ``h = sqrt(D)``; leapfrog has 5e-4 and 3.6 % too large at ``h = .64 sqrt(D)``.

A step that ends where potential or gradient is not finite is taken back and the direction drawn
anew; its energy change is infinite, so that a tuner sees it. So is a step whose energy changes by
more than ``1000 + D`` nats, far beyond any that is of use: it would leave the particle where
rounding is all that a tuner sees. So the energies must be exact: those of two minibatches differ by
more than a step changes them.

Step size: h is a length, about ``sqrt(D)`` times a standard deviation or less. L is of the order of
``sqrt(D)`` times a standard deviation.

Reference: Robnik and Seljak, "Fluctuation without dissipation: Microcanonical Langevin Monte
Carlo", 2023.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_choice
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers._assemble import (
    GradientAt,
    Target,
    assemble,
    configurational_temperature,
    standard_normal,
)
from particlevi.samplers._microcanonical import (
    INTEGRATORS,
    Integrator,
    Point,
    direction,
    flow,
    refresh,
)
from particlevi.typing import (
    Controls,
    Requirements,
    Sampler,
    SamplerState,
    Schedule,
    Streams,
)

__all__ = ["Info", "Memory", "check_dimensions", "mclmc"]

_MOST_ENERGY = 1000.0


class Memory(NamedTuple):
    """Direction and gradient ``[P, D]``, potential ``[P]``, at the position.

    ``begun`` (0-d) is 0 before the first step, which only evaluates gradient and potential.
    """

    direction: Tensor
    gradient: Tensor
    potential: Tensor
    begun: Tensor


class Info(NamedTuple):
    """Potential, configurational temperature, and the energy change of the step in nats, ``[P]``.

    The energy change is infinite for a step that was taken back.
    """

    potential: Tensor
    configurational_temperature: Tensor
    energy_error: Tensor


def check_dimensions(name: str, num_params: int) -> None:
    """At least two parameters, since a direction on a line cannot turn."""
    if num_params < 2:
        raise ValueError(
            f"{name} turns a direction, so it needs at least 2 parameters, got {num_params}: "
            "use hmc for one."
        )


def mclmc(
    target: Target,
    decoherence_length: float | Schedule | None = None,
    integrator: Integrator = "minimal_norm",
) -> Sampler:
    """Microcanonical Langevin Monte Carlo: unadjusted, biased by a known measure of the step.

    On all the data: what tells the bias is the change of the energy.

    A step costs 1 gradient with ``"leapfrog"``, 2 with ``"minimal_norm"``, 5 with ``"omelyan"``
    (which is of fourth order). Its energy change is in the draws' statistics as ``energy_error``:
    keep its variance over D below about 1e-3 for second moments within 4 %, or below 1e-4 for 1 %
    (standard Gaussian, minimal norm).

    Source: Robnik and Seljak, "Fluctuation without dissipation: Microcanonical Langevin Monte
    Carlo", 2023.

    Args:
        target: a potential, or a gradient estimator without noise.
        decoherence_length: L, over which the direction is forgotten, a number or a schedule;
            ``sqrt(D)`` if absent, which is right where standard deviations are about 1.
        integrator: how a step is made.

    Raises:
        ValueError: fewer than two parameters, an unknown integrator, an estimator whose gradient is
            not that of the potential it reports; at the first step, a minibatch.

    Examples:
        >>> import particlevi as pvi
        >>> normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), num_params=20)
        >>> draws = pvi.sample(
        ...     pvi.mclmc(normal), step_size=1.0, num_particles=50, num_warmup=50, num_draws=100,
        ...     progress=False,
        ... )
        >>> bool((draws.particles.var() - 1).abs() < 0.05)
        True
    """
    check_choice("integrator", integrator, INTEGRATORS)
    num_params = as_estimator(target).potential.num_params
    check_dimensions("mclmc", num_params)
    length = math.sqrt(num_params) if decoherence_length is None else decoherence_length
    move, most = flow(integrator), _MOST_ENERGY + num_params

    def memory(position: Tensor, streams: Streams) -> Memory:
        u = direction(standard_normal(position, streams))
        potential = position.new_zeros(len(position))
        return Memory(u, torch.zeros_like(position), potential, position.new_zeros(()))

    def noise(state: SamplerState, streams: Streams) -> tuple[Tensor, Tensor]:
        position = state.position
        return standard_normal(position, streams), standard_normal(position, streams)

    def transition(
        position: Tensor,
        memory: Memory,
        gradient_at: GradientAt,
        noise: tuple[Tensor, Tensor],
        controls: Controls,
    ) -> tuple[Tensor, Memory, Info]:
        h = controls["step_size"] * memory.begun
        half = 0.5 * h / controls["decoherence_length"]
        u = refresh(memory.direction, noise[0], half)
        start = Point(position, u, memory.gradient, memory.potential)
        end, error = move(start, gradient_at, h)
        u = refresh(end.velocity, noise[1], half)
        first = memory.begun == 0
        sound = (error.abs() <= most) & torch.isfinite(u).all(-1)  # no NaN is below a number
        sound = (sound & torch.isfinite(end.gradient).all(-1)) | first
        column = sound.unsqueeze(-1)
        position = torch.where(column, end.position, position)
        u = torch.where(column, u, direction(noise[0]))
        g = torch.where(column, end.gradient, memory.gradient)
        potential = torch.where(sound, end.potential, memory.potential)
        error = torch.where(first, 0.0, torch.where(sound, error, math.inf))
        info = Info(potential, configurational_temperature(position, g), error)
        return position, Memory(u, g, potential, torch.ones_like(memory.begun)), info

    return assemble(
        "mclmc",
        target,
        transition,
        settings={"integrator": integrator},
        schedules={"decoherence_length": length},
        memory=memory,
        noise=noise,
        gradients=len(INTEGRATORS[integrator].drifts),
        requires=Requirements(all_data=True, energy=True),
    )
