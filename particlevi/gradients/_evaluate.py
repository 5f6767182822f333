"""Value and gradient of a batched energy, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from particlevi.potentials.chunks import chunks
from particlevi.typing import Batch, Gradient

__all__ = ["Energy", "value_and_grad"]

Energy = Callable[[Tensor, Batch | None], Tensor]
"""Particles ``[P, D]`` and a batch to energies ``[P]``; each depends on its own particle only."""


def value_and_grad(
    energy: Energy, particles: Tensor, batch: Batch | None, chunk_size: int | None = None
) -> Gradient:
    """Gradients ``[P, D]`` and energies ``[P]``, by one backward pass per chunk."""
    parts = [_one_chunk(energy, *part) for part in chunks(particles, batch, chunk_size)]
    if len(parts) == 1:
        return parts[0]
    return Gradient(torch.cat([p.gradient for p in parts]), torch.cat([p.potential for p in parts]))


def _one_chunk(energy: Energy, particles: Tensor, batch: Batch | None) -> Gradient:
    if torch.compiler.is_compiling():

        def total(points: Tensor) -> tuple[Tensor, Tensor]:
            values = energy(points, batch)
            return values.sum(), values

        gradient, values = torch.func.grad(total, has_aux=True)(particles)
        return Gradient(gradient, values)
    points = particles.detach().requires_grad_()
    with torch.enable_grad():
        values = energy(points, batch)
        if not values.requires_grad:
            raise ValueError(
                "The potential's value does not depend on the particles through differentiable "
                "operations, so it has no gradient. Write it in torch operations without "
                ".detach(), .item() or .numpy()."
            )
        (gradient,) = torch.autograd.grad(values.sum(), points)
    return Gradient(gradient, values.detach())
