"""The variance of a gradient estimate over minibatches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_particles, check_positive_int, check_seed
from particlevi.data.batches import as_source
from particlevi.gradients.minibatch import Target, as_estimator
from particlevi.typing import Batch

__all__ = ["gradient_variance"]


def gradient_variance(
    target: Target,
    particles: Tensor,
    data: Any,
    *,
    batch_size: int,
    num_batches: int = 32,
    batching: str = "replacement",
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
        data: as given to ``sample``.
        batch_size: B.
        num_batches: at least 2.
        batching: as for ``sample``.
        seed: of the minibatches.
    """
    check_positive_int("num_batches", num_batches, minimum=2)
    check_seed("seed", seed)
    estimator = as_estimator(target)
    model = estimator.potential
    check_particles(particles, model.num_params)
    particles = particles.to(model.device, model.dtype)
    generator = torch.Generator(model.device).manual_seed(seed)
    source = as_source(
        data,
        model,
        batch_size=batch_size,
        num_particles=len(particles),
        shared=False,
        method=batching,
    )
    with torch.no_grad():
        state = estimator.init(particles, generator)
        mean = torch.zeros_like(particles, dtype=torch.float64)
        square = torch.zeros_like(mean)
        for k in range(num_batches):
            noise = estimator.draw_noise(state, generator)
            batch: Batch | None = source.next(generator)
            gradient = estimator(state, particles, batch, noise).gradient.double()
            away = gradient - mean
            mean += away / (k + 1)
            square += away * (gradient - mean)
    return (square / (num_batches - 1)).mean(0).to(model.dtype)
