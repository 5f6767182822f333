"""Minibatch gradients with control variates at a fixed centre."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_positive_int
from particlevi.batches import as_tensors
from particlevi.gradients._evaluate import value_and_grad
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import JSON, Batch, Gradient, Progress

__all__ = ["control_variate"]


class State(NamedTuple):
    """The centre ``[D]`` and the full-data likelihood part of the gradient and potential there."""

    center: Tensor
    gradient: Tensor
    potential: Tensor


@dataclass(frozen=True, eq=False)
class control_variate:
    """``g(theta) = grad V(c) - grad log p(theta) + (N/B) sum_b [grad u_b(theta) - grad u_b(c)]``.

    ``u_b = -log p(x_b | theta)``, ``V = sum_n u_n`` over the whole data, evaluated once, and ``c``
    a centre near the mode. Unbiased; its variance is O(|theta - c|^2), zero at the centre, and
    zero everywhere when all ``u_b`` are quadratic with one Hessian. A step costs two gradients.

    Source: Baker, Fearnhead, Fox and Nemeth, "Control variates for stochastic gradient MCMC",
    2019.

    Args:
        potential: a potential with data.
        data: the whole data, as they are given to ``sample``.
        center: one parameter vector ``[D]``, for instance the best iterate of ``sgd``.
        chunk_size: data per evaluation in the full pass.

    Raises:
        ValueError: no data, data of another length than ``num_data``, a centre of the wrong shape
            or not finite.
    """

    potential: ModelPotential
    data: Any
    center: Tensor
    chunk_size: int = 1024
    name: str = field(default="control_variate", init=False)
    settings: Mapping[str, JSON] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.potential, ModelPotential):
            raise TypeError(
                f"control_variate takes a potential, got {type(self.potential).__name__}."
            )
        if self.potential.log_likelihood_fn is None:
            raise ValueError("control_variate needs a potential with data, got one without.")
        check_positive_int("chunk_size", self.chunk_size)
        object.__setattr__(self, "chunk_size", int(self.chunk_size))
        object.__setattr__(self, "data", as_tensors(self.data, self.potential))
        if not isinstance(self.center, Tensor):
            raise TypeError(f"center must be a tensor [D], got {type(self.center).__name__}.")
        if self.center.shape != (self.potential.num_params,):
            raise ValueError(
                f"center must be one parameter vector [{self.potential.num_params}], "
                f"got {list(self.center.shape)}."
            )
        check_finite("center", self.center, "Choose a point that training has reached.")
        length = len(torch.utils._pytree.tree_leaves(self.data)[0])
        if length != self.potential.num_data:
            raise ValueError(
                f"control_variate needs all {self.potential.num_data} data of the potential, "
                f"got {length}."
            )

    def _likelihood_energy(self, particles: Tensor, batch: Batch | None) -> Tensor:
        return -self.potential.log_likelihood(particles, batch).sum(1)

    def _prior_energy(self, particles: Tensor, batch: Batch | None) -> Tensor:
        return -self.potential.log_prior(particles)

    def init(self, particles: Tensor, generator: torch.Generator) -> State:
        """One pass over the whole data at the centre."""
        center = self.center.to(particles)
        gradient = torch.zeros_like(center)
        potential = center.new_zeros(())
        for start in range(0, self.potential.num_data or 0, self.chunk_size):
            part = torch.utils._pytree.tree_map(
                lambda leaf, a=start: leaf[a : a + self.chunk_size].to(center.device), self.data
            )
            piece = value_and_grad(self._likelihood_energy, center.unsqueeze(0), Batch(part))
            gradient += piece.gradient[0]
            potential += piece.potential[0]
        return State(center, gradient, potential)

    def draw_noise(self, state: State, generator: torch.Generator) -> tuple[()]:
        """No randomness beside the batch."""
        return ()

    def __call__(
        self, state: State, particles: Tensor, batch: Batch | None, noise: Any
    ) -> Gradient:
        """The gradient at ``particles [P, D]``."""
        size = self.potential.chunk_size
        center = state.center.expand_as(particles)
        here = value_and_grad(self._likelihood_energy, particles, batch, size)
        there = value_and_grad(self._likelihood_energy, center, batch, size)
        prior = value_and_grad(self._prior_energy, particles, batch, size)
        scale = self._scale(batch)
        return Gradient(
            state.gradient + prior.gradient + scale * (here.gradient - there.gradient),
            state.potential + prior.potential + scale * (here.potential - there.potential),
        )

    def _scale(self, batch: Batch | None) -> float:
        assert batch is not None
        leaf = torch.utils._pytree.tree_leaves(batch.data)[0]
        return self.potential.scale(leaf.shape[1 if batch.per_particle else 0])

    def record(self, state: State, particles: Tensor, progress: Progress) -> State:
        """The centre stays."""
        return state

    def nbytes(self, num_particles: int) -> int:
        """Two parameter vectors."""
        return 2 * self.potential.num_params * torch.finfo(self.potential.dtype).bits // 8
