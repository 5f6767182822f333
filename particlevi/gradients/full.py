"""The gradient on all the data, a piece of the data at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.data.batches import as_tensors
from particlevi.gradients._evaluate import value_and_grad
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import Batch, Gradient

__all__ = ["full_gradient", "likelihood_gradient", "pieces", "whole"]


def whole(data: Any, potential: ModelPotential) -> Any:
    """All the data of a potential as tensors; None for a density without data.

    Raises:
        ValueError: data missing, superfluous, or not all of them.
    """
    if potential.log_likelihood_fn is None:
        if data is not None:
            raise ValueError("The potential is a density without data, but data were given.")
        return None
    if data is None:
        raise ValueError("The potential needs its data: pass them as they were given to sample.")
    tensors = as_tensors(data, potential)
    length = len(pytree.tree_leaves(tensors)[0])
    if length != potential.num_data:
        raise ValueError(
            f"All {potential.num_data} data of the potential are needed, got {length}."
        )
    return tensors


def pieces(data: Any, num_data: int, chunk_size: int, device: torch.device) -> Iterator[Batch]:
    """The data in order, ``chunk_size`` at a time, shared by all particles."""
    for start in range(0, num_data, chunk_size):
        stop = start + chunk_size
        yield Batch(pytree.tree_map(lambda leaf, a=start, b=stop: leaf[a:b].to(device), data))


def likelihood_gradient(
    potential: ModelPotential, particles: Tensor, data: Any, chunk_size: int = 1024
) -> Gradient:
    """Gradient and value of ``-sum_n log p(x_n | theta)`` over all the data."""

    def energy(points: Tensor, batch: Batch | None) -> Tensor:
        assert batch is not None
        return potential.data_energy(points, batch)

    gradient = torch.zeros_like(particles)
    value = particles.new_zeros(len(particles))
    for batch in pieces(data, potential.num_data or 0, chunk_size, particles.device):
        part = value_and_grad(energy, particles, batch, potential.chunk_size)
        gradient += part.gradient
        value += part.potential
    return Gradient(gradient, value)


def full_gradient(
    potential: ModelPotential, particles: Tensor, data: Any = None, chunk_size: int = 1024
) -> Gradient:
    """Gradient ``[P, D]`` and value ``[P]`` of the potential on all the data.

    Args:
        potential: what is sampled.
        particles: ``[P, D]``.
        data: tensors as given to ``sample``; None for a density without data.
        chunk_size: data evaluated at once.
    """

    def energy(points: Tensor, batch: Batch | None) -> Tensor:
        return potential.prior_energy(points)

    prior = value_and_grad(energy, particles, None, potential.chunk_size)
    if potential.log_likelihood_fn is None:
        return prior
    likelihood = likelihood_gradient(potential, particles, data, chunk_size)
    return Gradient(prior.gradient + likelihood.gradient, prior.potential + likelihood.potential)
