"""A function of one particle as a function of many, by ``vmap`` or, where that fails, a loop."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._tracing import is_compiling
from particlevi._warning import warn
from particlevi.potentials.undefined import LinAlgError
from particlevi.typing import Batch

__all__ = ["Vectorized", "explained"]

_LEFT = (MemoryError, torch.OutOfMemoryError, LinAlgError)


@contextmanager
def explained(what: str, particles: Tensor, batch: Batch | None) -> Iterator[None]:
    """Turn whatever a model raises into an error that tells what it was given.

    A matrix that cannot be factorised may be the fault of one particle: that error stays as it is.
    """
    try:
        yield
    except _LEFT:
        raise
    except Exception as error:
        leaves = [] if batch is None else pytree.tree_leaves(batch.data)
        shapes = [f"{leaf.dtype} {list(leaf.shape)}" for leaf in leaves]
        given = f" and data {', '.join(shapes).replace('torch.', '')}" if batch is not None else ""
        raise ValueError(
            f"{what} failed on particles {list(particles.shape)}{given}: "
            f"{type(error).__name__}: {error}"
        ) from error


class Vectorized:
    """``function(particle [D], data) -> tensor`` lifted to particles ``[P, D]`` and a batch.

    Where ``vmap`` fails outside ``torch.compile``, but a loop over particles does not, one warning
    says why and the loop is used from then on.
    """

    def __init__(self, function: Callable[..., Tensor], what: str, randomness: str = "error"):
        self.function = function
        self.what = what
        self.randomness = randomness
        self.looping: bool = False

    def __call__(self, particles: Tensor, batch: Batch | None, one_by_one: bool = False) -> Tensor:
        """Values ``[P, ...]``; by a loop if ``one_by_one``, though ``vmap`` may work."""
        if is_compiling():
            return (self._loop if self.looping else self._vmap)(particles, batch)
        if self.looping or one_by_one:
            return self._looped(particles, batch)
        values, failure = self._tried(particles, batch)
        if failure is not None:
            # Outside of the handler, so that the model's own error is told without that of vmap.
            values = self._looped(particles, batch)
            self.looping = True
            words = str(failure).strip()
            reason = words.splitlines()[0] if words else repr(failure)
            warn(
                f"{self.what} cannot be vectorised over particles, so a loop evaluates one "
                f"particle at a time, which is slower. The reason: {reason}",
            )
        return self._checked(values)

    def _tried(self, particles: Tensor, batch: Batch | None) -> tuple[Any, Exception | None]:
        try:
            return self._vmap(particles, batch), None
        except _LEFT:
            raise
        except Exception as error:
            return None, error

    def _checked(self, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{self.what} must return one tensor, made of the particle by operations of torch, "
                f"got {type(value).__module__}.{type(value).__name__}: wrap it in a function or "
                "module that gives one."
            )
        return value

    def _vmap(self, particles: Tensor, batch: Batch | None) -> Tensor:
        if batch is None:
            return torch.vmap(self.function, randomness=self.randomness)(particles)
        data_dim = 0 if batch.per_particle else None
        lifted = torch.vmap(self.function, in_dims=(0, data_dim), randomness=self.randomness)
        return lifted(particles, batch.data)

    def _looped(self, particles: Tensor, batch: Batch | None) -> Tensor:
        with explained(self.what, particles, batch):
            return self._loop(particles, batch)

    def _loop(self, particles: Tensor, batch: Batch | None) -> Tensor:
        if batch is None:
            found = [self._checked(self.function(particle)) for particle in particles]
        elif not batch.per_particle:
            found = [self._checked(self.function(particle, batch.data)) for particle in particles]
        else:
            parts = [
                pytree.tree_map(operator.itemgetter(i), batch.data) for i in range(len(particles))
            ]
            found = [
                self._checked(self.function(*pair)) for pair in zip(particles, parts, strict=True)
            ]
        return torch.stack(found)
