"""A function of one particle as a function of many, by ``vmap`` or, where that fails, a loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.typing import Batch

__all__ = ["Vectorized"]


class Vectorized:
    """``function(particle [D], data) -> tensor`` lifted to particles ``[P, D]`` and a batch.

    The first call outside ``torch.compile`` finds out whether ``vmap`` works. If it does not, but
    a loop over particles does, one warning says why and the loop is used from then on.
    """

    def __init__(self, function: Callable[..., Tensor], what: str, randomness: str = "error"):
        self.function = function
        self.what = what
        self.randomness = randomness
        self.verified = False
        self.looping = False

    def __call__(self, particles: Tensor, batch: Batch | None) -> Tensor:
        """Values ``[P, ...]``."""
        if self.looping:
            return self._loop(particles, batch)
        if self.verified or torch.compiler.is_compiling():
            return self._vmap(particles, batch)
        try:
            values = self._vmap(particles, batch)
        except Exception as error:
            values = self._loop(particles, batch)
            self.looping = True
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            warnings.warn(
                f"{self.what} cannot be vectorised over particles, so a loop evaluates one "
                f"particle at a time, which is slower. The reason: {reason}",
                stacklevel=2,
            )
            return values
        self.verified = True
        return values

    def _vmap(self, particles: Tensor, batch: Batch | None) -> Tensor:
        if batch is None:
            return torch.vmap(self.function, randomness=self.randomness)(particles)
        data_dim = 0 if batch.per_particle else None
        lifted = torch.vmap(self.function, in_dims=(0, data_dim), randomness=self.randomness)
        return lifted(particles, batch.data)

    def _loop(self, particles: Tensor, batch: Batch | None) -> Tensor:
        if batch is None:
            return torch.stack([self.function(particle) for particle in particles])
        values = []
        for i, particle in enumerate(particles):
            data = pytree.tree_map(lambda leaf, i=i: leaf[i], batch.data)
            values.append(self.function(particle, data if batch.per_particle else batch.data))
        return torch.stack(values)
