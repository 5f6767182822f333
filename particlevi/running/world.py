"""The world of a run in one process: every particle is here."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["OneProcess"]


@dataclass(frozen=True)
class OneProcess:
    """A ``World`` of one process, in which reductions are those of the tensors at hand."""

    def share(self, num_particles: int) -> range:
        """All particles."""
        return range(num_particles)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over particles of ``[P, ...]``, ``[...]``."""
        return values.sum(0)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over particles of ``[P, ...]``, ``[...]``."""
        return values.mean(0)
