"""Value and gradient of a batched energy, eager and compiled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from particlevi._tracing import is_compiling
from particlevi.gradients.sharing import current_crew
from particlevi.potentials.arithmetic import pinned
from particlevi.potentials.chunks import chunks
from particlevi.potentials.potential import Energy
from particlevi.typing import Batch, Gradient

__all__ = ["Energy", "joined", "value_and_grad", "values_and_grads"]


def value_and_grad(
    energy: Energy, particles: Tensor, batch: Batch | None, chunk_size: int | None = None
) -> Gradient:
    """Gradients ``[P, D]`` and energies ``[P]``, by one backward pass per chunk."""

    def evaluate(points: Tensor, data: Batch | None) -> Gradient:
        parts = chunks(points, data, chunk_size)
        return joined([values_and_grads([(energy, *part)])[0] for part in parts])

    if is_compiling():
        return evaluate(particles, batch)
    crew = current_crew()
    return evaluate(particles, batch) if crew is None else crew(evaluate, particles, batch)


def joined(parts: Sequence[Gradient]) -> Gradient:
    """What was found for one chunk of particles after the other."""
    if len(parts) == 1:
        return parts[0]
    return Gradient(*(torch.cat(values) for values in zip(*parts, strict=True)))


def values_and_grads(terms: Sequence[tuple[Energy, Tensor, Batch | None]]) -> list[Gradient]:
    """The same for several energies, each at particles of its own, by one backward pass."""
    if is_compiling():

        def total(*points: Tensor) -> tuple[Tensor, list[Tensor]]:
            values = [
                energy(part, batch) for part, (energy, _, batch) in zip(points, terms, strict=True)
            ]
            return _sum(values), values

        which = tuple(range(len(terms)))
        gradients, values = torch.func.grad(total, argnums=which, has_aux=True)(
            *[particles for _, particles, _ in terms]
        )
        return [Gradient(*pair) for pair in zip(gradients, values, strict=True)]
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "torch.inference_mode() is on, and under it nothing has a gradient: use "
            "torch.no_grad() instead, or neither."
        )
    points = [particles.detach().requires_grad_() for _, particles, _ in terms]
    with torch.enable_grad(), pinned(points[0].device):
        values = [
            energy(part, batch) for part, (energy, _, batch) in zip(points, terms, strict=True)
        ]
        if not all(value.requires_grad for value in values):
            raise ValueError(
                "The potential's value does not depend on the particles through differentiable "
                "operations, so it has no gradient. Write it in torch operations without "
                ".detach(), .item() or .numpy()."
            )
        gradients = torch.autograd.grad(_sum(values), points)
    return [Gradient(g, value.detach()) for g, value in zip(gradients, values, strict=True)]


def _sum(values: Sequence[Tensor]) -> Tensor:
    total = values[0].sum()
    for value in values[1:]:
        total = total + value.sum()
    return total
