"""Choosing a step size from the curvature of the potential and the noise of its gradient.

With ``l`` the largest eigenvalue of the Hessian of U and ``s^2`` the variance of the minibatch
gradient, averaged over parameters,

    overdamped (sgld ...)     stable for h l < 2;     on a Gaussian SGLD's variance is too large by
                              h l / (2 - h l) in the stiffest direction, and the noise adds
                              h s^2 / (2 T) relative to T where h l is small
    momentum (sghmc ...)      stable for h^2 l < 4;   the noise adds about h s^2 / (2 f T)

so the suggestions are ``h = min(a 2 / l, 2 b T / s^2)`` and ``h = min(a 2 / sqrt(l), 2 b f T /
s^2)``, with the fraction ``a`` of the stable range (0.1 overdamped, 0.25 for momentum methods) and
the tolerated excess ``b = 0.1`` of the temperature.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_particles, check_positive, check_positive_int
from particlevi.batches import as_source
from particlevi.gradients.full import pieces, whole
from particlevi.gradients.minibatch import as_estimator
from particlevi.potentials.potential import ModelPotential
from particlevi.samplers._assemble import Target
from particlevi.typing import Batch

__all__ = ["StepSize", "gradient_variance", "largest_curvature", "suggest_step_size"]

OVERDAMPED_FRACTION = 0.1
MOMENTUM_FRACTION = 0.25
TEMPERATURE_EXCESS = 0.1


class StepSize(NamedTuple):
    """Step sizes and what they rest on.

    Attributes:
        overdamped: for ``sgld``, ``leimkuhler_matthews``, ``sgd``.
        momentum: for ``sghmc``, ``baoab``, ``obabo``, ``sgnht``, ``hmc``.
        curvature: largest eigenvalue of the Hessian that was found.
        gradient_noise: variance of the minibatch gradient, averaged over parameters; 0 on all
            the data.
        reason: all this in words.
    """

    overdamped: float
    momentum: float
    curvature: float
    gradient_noise: float
    reason: str


def _hessian_product(model: ModelPotential, point: Tensor, data: Any, chunk_size: int) -> Any:
    def product(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        direction = torch.as_tensor(vector, dtype=point.dtype, device=point.device).view(1, -1)
        total = torch.zeros_like(point)

        def add(energy: Any) -> None:
            leaf = point.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf, create_graph=True)
                along = (gradient * direction).sum()
                if along.requires_grad:
                    (part,) = torch.autograd.grad(along, leaf, allow_unused=True)
                    if part is not None:
                        total.add_(part)

        add(lambda leaf: -model.log_prior(leaf))
        if model.log_likelihood_fn is not None:
            for batch in pieces(data, model.num_data or 0, chunk_size, point.device):
                add(lambda leaf, batch=batch: -model.log_likelihood(leaf, batch).sum(1))
        return total.double().cpu().numpy().ravel()

    return product


def largest_curvature(
    potential: ModelPotential,
    particles: Tensor,
    data: Any = None,
    *,
    chunk_size: int = 1024,
    tolerance: float = 1e-2,
) -> float:
    """The largest eigenvalue of the Hessian of the potential on all the data, by Lanczos.

    Args:
        potential: what is sampled.
        particles: where, ``[P, D]``; the largest over them is returned.
        data: as given to ``sample``.
        chunk_size: data evaluated at once.
        tolerance: relative error of the eigenvalue.

    >>> import particlevi as pvi
    >>> bowl = pvi.from_log_density(lambda x: -x[0] ** 2 - 3 * x[1] ** 2, num_params=2)
    >>> round(largest_curvature(bowl, torch.zeros(1, 2)), 3)
    6.0
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    check_particles(particles, potential.num_params)
    check_positive("tolerance", tolerance)
    tensors = whole(data, potential)
    size = potential.num_params
    found = []
    for particle in particles.to(potential.device, potential.dtype):
        product = _hessian_product(potential, particle.view(1, -1), tensors, chunk_size)
        if size <= 3:
            dense = np.stack([product(column) for column in np.eye(size)])
            found.append(float(np.linalg.eigvalsh(0.5 * (dense + dense.T)).max()))
            continue
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).normal(size=size)
        top = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)
        found.append(float(top[0]))
    return max(found)


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
    ``C`` of ``sgdvi.gradient_noise``. Averaged over the particles; each of
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


def suggest_step_size(
    target: Target,
    data: Any = None,
    *,
    batch_size: int | None = None,
    at: Tensor | None = None,
    temperature: float = 1.0,
    friction: float = 1.0,
    verbose: bool = True,
) -> StepSize:
    """Step sizes from the largest curvature and the level of the gradient noise; prints why.

    The curvature depends on the place: give points that training has reached, such as the last
    draws of a short run (``at=draws.particles[:, -1]``). Fresh starting points of a net are often
    flatter than its modes.

    Args:
        target: a potential, or a gradient estimator.
        data: as given to ``sample``; None for a density without data.
        batch_size: B of the run to come; all the data if absent, and then there is no noise.
        at: where, ``[P, D]``; two starting points of the potential if absent.
        temperature: T.
        friction: f of the momentum method.
        verbose: print the reason.

    Raises:
        ValueError: an argument out of its range; a potential that curves upwards nowhere at these
            points.

    >>> import particlevi as pvi
    >>> bowl = pvi.from_log_density(lambda x: -x[0] ** 2 - 3 * x[1] ** 2, num_params=2)
    >>> found = suggest_step_size(bowl, verbose=False)
    >>> round(found.overdamped, 4), round(found.momentum, 4)
    (0.0333, 0.2041)
    """
    check_positive("temperature", temperature)
    check_positive("friction", friction)
    model: ModelPotential = as_estimator(target).potential
    given = at is not None
    points = model.init(2) if at is None else at
    curvature = largest_curvature(model, points, data)
    if not math.isfinite(curvature) or curvature <= 0:
        raise ValueError(
            f"The largest curvature at these points is {curvature:.3g}, so no step size follows "
            "from it: give points near a mode (at=draws.particles[:, -1])."
        )
    noise = 0.0
    if batch_size is not None and data is not None:
        noise = float(gradient_variance(target, points, data, batch_size=batch_size).mean())
    stable = 2 / curvature, 2 / math.sqrt(curvature)
    tolerated = math.inf if noise == 0 else 2 * TEMPERATURE_EXCESS * temperature / noise
    overdamped = min(OVERDAMPED_FRACTION * stable[0], tolerated)
    momentum = min(MOMENTUM_FRACTION * stable[1], tolerated * friction)
    where = "the points given" if given else "two starting points"
    reason = (
        f"Largest curvature at {where}: {curvature:.4g}. Stable: h < {stable[0]:.3g} overdamped, "
        f"h < {stable[1]:.3g} with momentum.\n"
    )
    if noise:
        reason += (
            f"Gradient noise on batches of {batch_size}: variance {noise:.4g} per parameter. It "
            f"heats by less than {TEMPERATURE_EXCESS:.0%} for h < {tolerated:.3g} overdamped, "
            f"h < {tolerated * friction:.3g} with momentum and friction {friction:g}.\n"
        )
    limits = [
        "noise" if tolerated < OVERDAMPED_FRACTION * stable[0] else "curvature",
        "noise" if tolerated * friction < MOMENTUM_FRACTION * stable[1] else "curvature",
    ]
    reason += (
        f"Suggested: h = {overdamped:.3g} overdamped (limited by the {limits[0]}), "
        f"h = {momentum:.3g} with momentum (limited by the {limits[1]})."
    )
    wide = MOMENTUM_FRACTION * stable[1]
    share = wide**2 * noise / (4 * TEMPERATURE_EXCESS * temperature)
    if limits[1] == "noise" and share < 1:
        reason += (
            f" With a friction of {2 * math.atanh(share) / wide:.3g} it could be h = {wide:.3g} at "
            "the same heating."
        )
    if verbose:
        print(reason)
    return StepSize(overdamped, momentum, curvature, noise, reason)
