"""The gradient on all the data, a piece of the data at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi.data import Data, DataLike, as_data
from particlevi.gradients._evaluate import value_and_grad
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential
from particlevi.typing import Batch, Gradient, Potential

__all__ = ["full_gradient", "likelihood_gradient"]


def likelihood_gradient(
    potential: ModelPotential, particles: Tensor, data: Data, chunk_size: int = 1024
) -> Gradient:
    """Gradient and value of ``-sum_n log p(x_n | theta)`` over all the data."""

    def energy(points: Tensor, batch: Batch | None) -> Tensor:
        assert batch is not None
        return potential.data_energy(points, batch)

    gradient = torch.zeros_like(particles)
    value = particles.new_zeros(len(particles))
    for batch in data.chunks(potential.at_once(chunk_size)):
        part = value_and_grad(energy, particles, batch, potential.chunk_size)
        gradient += part.gradient
        value += part.potential
    return Gradient(gradient, value)


def full_gradient(
    potential: Potential, particles: Tensor, data: DataLike = None, chunk_size: int = 1024
) -> Gradient:
    """Gradient ``[P, D]`` and value ``[P]`` of the potential on all the data.

    Args:
        potential: what is sampled.
        particles: ``[P, D]``, where the potential is.
        data: all its data, in any form that ``as_data`` takes; None for a density without data.
        chunk_size: data evaluated at once.

    Raises:
        ValueError: data missing, superfluous, or not all of them.
    """

    def energy(points: Tensor, batch: Batch | None) -> Tensor:
        return model.prior_energy(points)

    model = as_potential(potential)
    checked = as_data(data, model)
    prior = value_and_grad(energy, particles, None, model.chunk_size)
    likelihood = likelihood_gradient(model, particles, checked, chunk_size)
    return Gradient(prior.gradient + likelihood.gradient, prior.potential + likelihood.potential)
