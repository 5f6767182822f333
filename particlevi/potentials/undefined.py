"""Particles at which a model has no density, since a matrix of it cannot be factorised.

A covariance that is positive definite where the posterior lies may not be so far out, in numbers of
finite precision, and torch then raises an error for all particles of the call. As in Pyro and Stan,
such a particle has no density, and the others do not suffer for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from particlevi._warning import warn
from particlevi.potentials.chunks import chunks
from particlevi.typing import Batch

__all__ = ["LinAlgError", "where_defined"]


def where_defined(
    energy: Callable[[Tensor, Batch | None], Tensor], particles: Tensor, batch: Batch | None
) -> Tensor:
    """Energies ``[P]``, infinite and of gradient 0 for particles at which a factorisation fails."""
    try:
        return energy(particles, batch)
    except LinAlgError as error:
        if torch.compiler.is_compiling():
            raise
        values, why, failed = [], str(error), 0
    for particle, part in chunks(particles, batch, 1):
        try:
            values.append(energy(particle, part))
        except LinAlgError:
            values.append(0.0 * particle.sum(1) + torch.inf)
            failed += 1
    if failed == len(particles):
        warn(
            f"No particle of {failed} has a density, since a matrix of the model cannot be "
            f"factorised: {why} Add to its diagonal (1e-6 of its size), use float64, or start "
            "elsewhere.",
        )
    return torch.cat(values)
