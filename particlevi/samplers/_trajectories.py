"""Trajectories of random length that end in a Metropolis test, one integrator step at a time.

A chain draws a velocity and a number n of integrator steps, makes them, sums the energy changes,
and accepts the end with probability ``min(1, exp(-sum dE))``. n is uniform on ``1 ... 2 m - 1``,
whose mean is m (for a fractional m the last number is drawn less often), and m is the trajectory
length over the step size. Every chain has its own n, so that no gradient is wasted on waiting.

The position of a chain is where it last accepted. Since n is drawn without looking at the position,
that position follows ``exp(-U)`` exactly after any number of steps, not only after tests.

A flight that leaves the support, or ends with an energy that is not finite, is rejected at its
end: the time at which a chain tests must not depend on where it is. While step sizes are tuned it
may, so that a step far too long is known at once: a tuner may give the control ``patience``, the
summed energy change in nats beyond which a flight is given up, infinite after the warm-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.samplers._assemble import GradientAt, configurational_temperature
from particlevi.samplers._microcanonical import Flow, Point
from particlevi.typing import Controls, Proposals, Streams

__all__ = ["Info", "Memory", "first_memory", "num_steps", "proposals", "transition"]


class Memory(NamedTuple):
    """A flight under way.

    Attributes:
        gradient, potential: at the position, ``[P, D]`` and ``[P]``.
        flight: where the flight is, or where it ended.
        time: since the flight began, ``[P]``.
        energy_error: summed over the flight, ``[P]``.
        left: integrator steps to its end, ``[P]``; 0 where one begins.
        begun: 0-d, 0 before the first step, which only evaluates gradient and potential.
    """

    gradient: Tensor
    potential: Tensor
    flight: Point
    time: Tensor
    energy_error: Tensor
    left: Tensor
    begun: Tensor


class Info(NamedTuple):
    """What a step tells, ``[P]`` each.

    Attributes:
        potential, configurational_temperature: at the position.
        acceptance: probability of a test after this step.
        tested: 1 where this step ended in a test, else 0.
        energy_error: energy change of this integrator step in nats, infinite where not finite.
    """

    potential: Tensor
    configurational_temperature: Tensor
    acceptance: Tensor
    tested: Tensor
    energy_error: Tensor


def num_steps(uniform: Tensor, mean: Tensor) -> Tensor:
    """Numbers of steps ``[P]`` from uniform numbers ``[P]``, with the given mean, at least 1.

    ``n = ceil(u s)`` with ``k = floor(2 m - 1)`` and ``s = k (k + 1) / (2 (k + 1 - m))``.

    >>> uniform = torch.linspace(0.0005, 0.9995, 1000)
    >>> float(num_steps(uniform, torch.tensor(3.0)).mean())
    3.0
    """
    mean = mean.clamp(min=1.0)
    k = (2 * mean - 1).floor()
    span = 0.5 * k * (k + 1) / (k + 1 - mean)
    return (uniform * span).ceil().clamp(min=1.0)


def first_memory(position: Tensor, streams: Streams) -> Memory:
    """Nothing evaluated yet."""
    zeros, none = torch.zeros_like(position), position.new_zeros(len(position))
    flight = Point(position.clone(), zeros.clone(), zeros.clone(), none.clone())
    time, energy_error, left = none.clone(), none.clone(), none.clone()
    return Memory(zeros, none, flight, time, energy_error, left, none.new_zeros(()))


def proposals(start: Tensor, memory: Memory, info: Info) -> Proposals:
    """Where flights ended in a step that began at ``start [P, D]``."""
    flight = memory.flight
    probability = info.tested * info.acceptance
    return Proposals(start, flight.position, flight.velocity, memory.time, probability)


def transition(
    move: Flow, velocity: Callable[[Tensor], Tensor]
) -> Callable[..., tuple[Tensor, Memory, Info]]:
    """One integrator step, and the test where a flight ends.

    Args:
        move: the integrator.
        velocity: fresh velocities ``[P, D]`` from standard normal numbers.
    """

    def step(
        position: Tensor,
        memory: Memory,
        gradient_at: GradientAt,
        noise: tuple[Tensor, Tensor],
        controls: Controls,
    ) -> tuple[Tensor, Memory, Info]:
        """``noise`` is ``momentum_and_test``; its first uniform number is for the length."""
        h, first = controls["step_size"] * memory.begun, memory.begun == 0
        # The first step has no position in these coordinates but this one.
        begins = (memory.left <= 0).unsqueeze(-1)
        there = torch.where(begins, position, memory.flight.position)
        v = torch.where(begins, velocity(noise[0]), memory.flight.velocity)
        drawn = num_steps(noise[1][:, 0], controls["trajectory_length"] / controls["step_size"])
        left = torch.where(begins.squeeze(-1), drawn, memory.left) - 1

        start = Point(there, v, memory.flight.gradient, memory.flight.potential)
        flight, change = move(start, gradient_at, h)
        time = torch.where(begins.squeeze(-1), 0.0, memory.time) + h
        error = memory.energy_error + torch.where(first, 0.0, change)

        finite = torch.isfinite(error)
        probability = torch.where(finite | first, (-error).exp().clamp(max=1), 0.0)
        over = left <= 0
        if "patience" in controls:
            patience = controls["patience"]
            over = over | ((~finite | (error > patience)) & torch.isfinite(patience))
        tested = over & ~first
        accepted = (tested & (noise[1][:, 1] < probability)) | first
        column = accepted.unsqueeze(-1)
        position = torch.where(column & ~first, flight.position, position)
        g = torch.where(column, flight.gradient, memory.gradient)
        potential = torch.where(accepted, flight.potential, memory.potential)

        over = tested | first
        flight = flight._replace(
            gradient=torch.where(over.unsqueeze(-1), g, flight.gradient),
            potential=torch.where(over, potential, flight.potential),
        )
        kept = Memory(
            g,
            potential,
            flight,
            time,
            torch.where(over, 0.0, error),
            torch.where(over, 0.0, left),
            torch.ones_like(memory.begun),
        )
        change = torch.where(torch.isfinite(change), change, math.inf)
        info = Info(
            potential,
            configurational_temperature(position, g),
            probability,
            tested.to(position.dtype),
            torch.where(first, 0.0, change),
        )
        return position, kept, info

    return step
