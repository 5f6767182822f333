"""What methods with a Metropolis test share: the leapfrog step and the test."""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi.samplers._assemble import GradientAt, standard_normal
from particlevi.typing import Gradient, Requirements, SamplerState, Streams

__all__ = [
    "EXACT_ENERGY",
    "chosen",
    "kinetic_energy",
    "leapfrog",
    "metropolis",
    "momentum_and_test",
    "uniforms",
]

EXACT_ENERGY = Requirements(all_data=True, energy=True, chains=True)
"""The test compares the energies of all the data, each chain's own."""


def leapfrog(
    position: Tensor, p: Tensor, gradient: Tensor, gradient_at: GradientAt, h: Tensor
) -> tuple[Tensor, Tensor, Gradient]:
    """Position, momentum and gradient after half a kick, a drift and half a kick."""
    p = p - 0.5 * h * gradient
    position = position + h * p
    end = gradient_at(position)
    return position, p - 0.5 * h * end.gradient, end


def kinetic_energy(p: Tensor) -> Tensor:
    """``p.p / 2``, ``[P]``."""
    return 0.5 * p.square().sum(-1)


def metropolis(energy_error: Tensor, temperature: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a path is accepted and the probability ``min(1, exp(-dE / T))``, ``[P]`` each.

    A path whose energy is not finite is rejected.
    """
    probability = (-energy_error / temperature).exp().clamp(max=1)
    probability = torch.where(torch.isfinite(energy_error), probability, 0.0)
    return u < probability, probability


def chosen(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``[P]`` or ``[P, D]`` of the new state where it was accepted, else of the old one."""
    return torch.where(accepted if new.ndim == 1 else accepted.unsqueeze(-1), new, old)


def uniforms(position: Tensor, num: int, streams: Streams) -> Tensor:
    """Uniform numbers in [0, 1), ``[P, num]``."""
    return streams.uniform((len(position), num), position.dtype)


def momentum_and_test(state: SamplerState, streams: Streams) -> tuple[Tensor, Tensor]:
    """Normal numbers ``[P, D]`` of a momentum; uniform ones ``[P, 2]``, one for a test."""
    return standard_normal(state.position, streams), uniforms(state.position, 2, streams)
