"""What one batch per chain tells at the places where chains are, beside the run itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi.data import Data
from particlevi.potentials.chunks import chunks
from particlevi.samplers._gradient_at import GradientAt
from particlevi.samplers._metric import Metric
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch, GradientEstimator, World

__all__ = ["Probe", "Prober"]

_ROUNDING = 8.0


class Probe(NamedTuple):
    """What one batch per chain told.

    Attributes:
        change: of the energy over one leapfrog step on that batch, in units of T, ``[P]``; 0 where
            it is rounding, not finite where the step could not be made.
        slope: the gradient on the batch, ``[P, D]``.
        noise: of mean 0 and the covariance of the slope, ``[P, D]``.
        images: of the directions under the Hessian of the batch, ``[P, D]``.
    """

    change: Tensor
    slope: Tensor
    noise: Tensor
    images: Tensor


@dataclass(frozen=True, eq=False)
class Prober:
    """Batches and momenta of their own for every probe.

    Attributes:
        estimator: of the gradient.
        data: of the potential.
        batch_size: B; all data if absent.
        metric: of the coordinates; those of the potential if absent.
        seed: of batches and momenta.
    """

    estimator: GradientEstimator
    data: Data
    batch_size: int | None
    metric: Metric | None
    seed: int

    @cached_property
    def _state(self) -> Any:
        """Of the estimator; only fixed centres have one."""
        return self.estimator.init(self.estimator.potential.init(1), ParticleStreams(self.seed))

    def streams(self, number: int, position: Tensor, world: World) -> ParticleStreams:
        """The random numbers of a probe, which belong to particles."""
        total = round(float(world.sum(torch.ones_like(position[:, 0], dtype=torch.float64))))
        first = world.share(total).start
        return ParticleStreams(self.seed, f"probe {number}", first, position.device)

    def whiten(self, position: Tensor) -> Tensor:
        """The coordinates of the method."""
        return position if self.metric is None else self.metric.whiten(position)

    def probe(
        self,
        streams: ParticleStreams,
        position: Tensor,
        step: float,
        directions: Tensor,
        temperature: float,
    ) -> Probe:
        """At particles ``[P, D]`` with a leapfrog step of that length.

        The images are differences of gradients a tenth of the step apart.
        """
        noise = self.estimator.draw_noise(self._state, streams)
        batch = self._batch(len(position), streams)
        gradient_at = GradientAt(self.estimator, self._state, batch, noise, self.metric)
        z = self.whiten(position)
        here = gradient_at.parted(z)
        slope, potential = here.found
        p = streams.normal(z.shape, z.dtype) * math.sqrt(temperature)
        half = p - 0.5 * step * slope
        there = gradient_at(z + step * half)
        after = half - 0.5 * step * there.gradient
        kinetic = 0.5 * (after.double().square() - p.double().square()).sum(-1)
        change = (there.potential - potential).double() + kinetic
        grain = _ROUNDING * torch.finfo(z.dtype).eps * potential.abs()
        change = torch.where(change.abs() <= grain, 0.0, change / max(temperature, 1e-300))
        aside = 0.1 * step
        images = (gradient_at(z + aside * directions).gradient - slope) / aside
        return Probe(change, slope, here.noise, images)

    def _batch(self, num_particles: int, streams: ParticleStreams) -> Batch | None:
        if not self.data.num_data:
            return None
        source = self.data.batches(num_particles=num_particles, batch_size=self.batch_size)
        return source.next(streams)

    def likelihood_sd(self, position: Tensor, world: World, before: Tensor) -> Tensor:
        """Standard deviation over chains of the log-likelihood of all the data, 0-d, in nats.

        It is ``before`` where there are no minibatches or the chains are too few to tell.
        """
        if self.batch_size is None or len(position) < 4:
            return before
        potential = self.estimator.potential
        energy = position.new_zeros(len(position), dtype=torch.float64)
        for batch in self.data.chunks(4096):
            parts = [
                potential.data_energy(part, piece).double()
                for part, piece in chunks(position, batch, potential.chunk_size)
                if piece is not None
            ]
            energy = energy + torch.cat(parts)
        finite = torch.isfinite(energy)
        energy, count = torch.where(finite, energy, 0.0), world.sum(finite.double())
        away = torch.where(finite, energy - world.sum(energy) / count, 0.0)
        found = (world.sum(away.square()) / (count - 1)).sqrt()
        return torch.where(torch.isfinite(found) & (found > 0), found, before)
