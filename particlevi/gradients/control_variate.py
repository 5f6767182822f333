"""Minibatch gradients with control variates, at a fixed centre or one that is refreshed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_positive_int
from particlevi.data import DataLike, as_data
from particlevi.gradients._evaluate import value_and_grad
from particlevi.gradients.full import likelihood_gradient
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential
from particlevi.typing import JSON, Batch, Gradient, Progress, Streams

__all__ = ["control_variate"]


class State(NamedTuple):
    """Centres ``[C, D]``, and the likelihood part of the full-data gradient and potential there.

    C is 1 for a fixed centre and P where each particle has its own.
    """

    center: Tensor
    gradient: Tensor
    potential: Tensor


@dataclass(frozen=True, eq=False)
class control_variate:
    """``g(theta) = grad V(c) - grad log p(theta) + (N/B) sum_b [grad u_b(theta) - grad u_b(c)]``.

    ``u_b = -log p(x_b | theta)``, ``V = sum_n u_n`` over the whole data, evaluated once, and ``c``
    a centre near the mode. Unbiased; its variance is ``O(|theta - c|^2)``, zero at the centre, and
    zero everywhere when all ``u_b`` are quadratic with one Hessian. A step costs two gradients.

    The potential that is reported is the one with this gradient, and unbiased too::

        V(c) - log p(theta) + (N/B) sum_b [u_b(theta) - u_b(c)]
            + (theta - c) . [grad V(c) - (N/B) sum_b grad u_b(c)]

    With ``refresh=m`` (SVRG) each particle has a centre of its own, which is moved to where the
    particle is after every m-th step, by a pass over all the data.

    Source: Baker, Fearnhead, Fox and Nemeth, "Control variates for stochastic gradient MCMC",
    2019; Dubey, Reddi, Poczos, Smola, Xing and Williamson, "Variance reduction in stochastic
    gradient Langevin dynamics", 2016.

    Args:
        potential: a potential with data.
        data: all the data of the potential, as they are given to ``sample``.
        center: one parameter vector ``[D]``, for instance the best iterate of ``sgd``; with
            ``refresh``, the starting points if absent.
        chunk_size: data per evaluation in the full pass.
        refresh: m, steps between moves of the centres; they stay if absent.

    Raises:
        ValueError: no data, data of another length than ``num_data``, a centre of the wrong shape
            or not finite.
    """

    potential: ModelPotential
    data: DataLike
    center: Tensor | None = None
    chunk_size: int = 1024
    refresh: int | None = None
    name: str = field(default="control_variate", init=False)
    gradients: int = field(default=2, init=False)
    conservative: bool = field(default=True, init=False)
    interacting: bool = field(default=False, init=False)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Its arguments, for the record."""
        return {"refresh": self.refresh}

    def __post_init__(self) -> None:
        object.__setattr__(self, "potential", as_potential(self.potential))
        if self.potential.log_likelihood_fn is None:
            raise ValueError("control_variate needs a potential with data, got one without.")
        check_positive_int("chunk_size", self.chunk_size)
        object.__setattr__(self, "chunk_size", int(self.chunk_size))
        object.__setattr__(self, "data", as_data(self.data, self.potential))
        if self.refresh is not None:
            check_positive_int("refresh", self.refresh)
            object.__setattr__(self, "refresh", int(self.refresh))
        elif self.center is None:
            raise ValueError(
                "control_variate needs a center [D] near the mode, for instance the best iterate "
                "of sgd; or refresh=m, and then the centres follow the particles."
            )
        if self.center is not None:
            self._check_center(self.center)

    def _check_center(self, center: Any) -> None:
        if not isinstance(center, Tensor):
            raise TypeError(f"center must be a tensor [D], got {type(center).__name__}.")
        if center.shape != (self.potential.num_params,):
            raise ValueError(
                f"center must be one parameter vector [{self.potential.num_params}], "
                f"got {list(center.shape)}."
            )
        check_finite("center", center, "Choose a point that training has reached.")

    def _likelihood_energy(self, particles: Tensor, batch: Batch | None) -> Tensor:
        assert batch is not None
        return self.potential.data_energy(particles, batch)

    def _prior_energy(self, particles: Tensor, batch: Batch | None) -> Tensor:
        return self.potential.prior_energy(particles)

    def init(self, particles: Tensor, streams: Streams) -> State:
        """One pass over the whole data at the centres."""
        if self.center is None:
            return self._at(particles.clone())
        center = self.center.to(particles).unsqueeze(0)
        return self._at(center if self.refresh is None else center.expand_as(particles).clone())

    def _at(self, centers: Tensor) -> State:
        data = as_data(self.data, self.potential)
        found = likelihood_gradient(self.potential, centers, data, self.chunk_size)
        return State(centers, found.gradient, found.potential)

    def draw_noise(self, state: State, streams: Streams) -> tuple[()]:
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
        assert batch is not None
        scale = self.potential.scale(batch.size, batch)
        slope = state.gradient - scale * there.gradient
        value = state.potential + ((particles - center) * slope).sum(1)
        return Gradient(
            state.gradient + prior.gradient + scale * (here.gradient - there.gradient),
            value + prior.potential + scale * (here.potential - there.potential),
        )

    def record(self, state: State, particles: Tensor, progress: Progress) -> State:
        """The centre stays, or every ``refresh``-th step moves to the particle."""
        if self.refresh is None or progress.step % self.refresh:
            return state
        return self._at(particles.clone())

    def nbytes(self, num_particles: int) -> int:
        """Two parameter vectors per centre."""
        centers = 1 if self.refresh is None else num_particles
        return 2 * centers * self.potential.num_params * torch.finfo(self.potential.dtype).bits // 8
