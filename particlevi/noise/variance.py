"""The variance of a gradient estimate over minibatches."""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi._checks import check_positive_int, check_seed
from particlevi.data import Batching, DataLike, as_data, as_particles
from particlevi.gradients.minibatch import Target, as_estimator
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

__all__ = ["gradient_variance"]


def gradient_variance(
    target: Target,
    particles: Tensor,
    data: DataLike,
    *,
    batch_size: int | None = None,
    num_batches: int = 32,
    batching: Batching = "replacement",
    seed: int = 0,
) -> Tensor:
    """Variance of the gradient estimate over minibatches, per parameter, ``[D]``.

    What ``sgld`` and ``sghmc`` take as ``gradient_noise``: of the estimate of ``grad U``, so that a
    batch of B independent data has ``N^2 / B`` times the diagonal of the per-sample covariance
    ``C`` of ``pvi.noise.measure``. Averaged over the particles; each of
    them has ``num_batches`` minibatches of its own, so that the relative standard error of a
    variance is about ``sqrt(2 / (P (num_batches - 1)))``.

    Args:
        target: a potential, or a gradient estimator.
        particles: where, ``[P, D]``.
        data: as given to ``sample``. The batches of a loader are those of its first epochs; they
            are shared by the particles.
        batch_size: B; a loader has its own.
        num_batches: at least 2.
        batching: as for ``sample``.
        seed: of the minibatches.
    """
    check_positive_int("num_batches", num_batches, minimum=2)
    check_seed("seed", seed)
    estimator = as_estimator(target)
    model = estimator.potential
    particles = as_particles(particles, model, model.num_params)
    streams = ParticleStreams(seed, device=model.device)
    checked = as_data(data, model)
    source = checked.batches(batch_size=batch_size, num_particles=len(particles), batching=batching)
    with torch.no_grad(), checked.isolated(seed):
        state = estimator.init(particles, streams)
        mean = torch.zeros_like(particles, dtype=torch.float64)
        square = torch.zeros_like(mean)
        for k in range(num_batches):
            noise = estimator.draw_noise(state, streams)
            batch: Batch | None = source.next(streams)
            gradient = estimator(state, particles, batch, noise).gradient.double()
            away = gradient - mean
            mean += away / (k + 1)
            square += away * (gradient - mean)
    return (square / (num_batches - 1)).mean(0).to(model.dtype)
