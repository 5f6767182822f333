"""Is a step size within the stable range of its sampler, where the chains begin?

The largest curvature of the potential is found by Lanczos' method on a part of the data, and then
measured along the direction found on another part: it is a lower bound on average, so that the
chance in a small part of the data does not pass for curvature.
"""

from __future__ import annotations

import math
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_positive
from particlevi._warning import warn
from particlevi.curvature import Energy, hessian_product
from particlevi.data import BatchSource, Data, DataLike, as_data, as_particles
from particlevi.data.data import TensorData
from particlevi.gradients.control_variate import control_variate
from particlevi.gradients.minibatch import minibatch
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import Batch, Sampler, Schedule

__all__ = ["Stability", "StabilityWarning", "check_before_run", "check_stability", "curvature_at"]

NUM_ITERATIONS = 8
MIN_STEPS = 1000
MIN_DATA = 64
MAX_DATA = 1024
# A product with the Hessian takes about as long as three gradients.
GRADIENTS = 3 * (NUM_ITERATIONS + 1)
SHARE_OF_RUN = 0.05


class StabilityWarning(UserWarning):
    """A step size that cannot be stable."""


class Stability(NamedTuple):
    """What was found.

    Attributes:
        step_size: h.
        max_step_size: the largest stable one.
        curvature: largest eigenvalue of the Hessian found, at the flattest of the points.
    """

    step_size: float
    max_step_size: float
    curvature: float

    @property
    def stable(self) -> bool:
        """Whether h is in the stable range."""
        return self.step_size <= self.max_step_size


def check_stability(
    sampler: Sampler, step_size: float, data: DataLike = None, *, at: Tensor | None = None
) -> Stability | None:
    """Warn if a step size is beyond the stable range of the sampler at some points.

    It takes about as long as 30 gradients of one or two particles on all the data. ``sample`` does
    this by itself at the starting points, on a part of the data, if the run is long enough for it
    not to matter.

    Args:
        sampler: from ``pvi.sghmc(potential)`` and its like.
        step_size: h.
        data: as given to ``sample``; None for a density without data.
        at: where, ``[P, D]``; two starting points of the potential if absent.

    Returns:
        Limits and what they rest on; None for samplers without a known bound (preconditioned and
        interacting ones, structured estimators) and where the potential does not curve upwards.

    Raises:
        ValueError: bad arguments or data, a curvature that is not finite, or a model with an
            operation that has no second derivative.

    >>> import particlevi as pvi
    >>> bowl = pvi.from_log_density(lambda x: -x[0] ** 2 - 3 * x[1] ** 2, num_params=2)
    >>> found = check_stability(pvi.sgld(bowl), 0.1)
    >>> found.stable, round(found.max_step_size, 3)
    (True, 0.333)
    """
    if not isinstance(sampler, Sampler):
        raise TypeError(
            "check_stability takes a sampler, such as pvi.sghmc(potential), got "
            f"{type(sampler).__name__}."
        )
    check_positive("step_size", step_size)
    model = sampler.potential
    points = model.init(2) if at is None else at
    points = as_particles(points, model, model.num_params, "at")
    checked = as_data(data, model)
    batch = checked.whole() if checked.num_data else None
    found = _check(sampler, step_size, points, batch, batch)
    if found is not None and not found.stable:
        warn(_message(sampler, found), StabilityWarning)
    return found


def check_before_run(
    sampler: Sampler,
    start: Tensor,
    data: Data,
    source: BatchSource,
    step_size: Schedule,
    steps: int,
) -> None:
    """``check_stability`` at two starting points, for about a twentieth of the run's own gradients.

    The step size is the median over the run. Nothing is done before short runs, nor where so small
    a share of the data could be looked at that it would tell nothing; random streams are left as
    they were.
    """
    if steps < MIN_STEPS or sampler.max_step_size is None:
        return
    every = range(0, steps, steps // 100)
    points = start[: min(2, sampler.potential.chunk_size or 2)]
    example = source.example()
    if example is None or source.batch_size is None:
        one = other = None
    else:
        affordable = SHARE_OF_RUN * steps * source.batch_size * len(start)
        size = min(int(affordable / (GRADIENTS * len(points))), MAX_DATA)
        known = data if data.random_access else TensorData(example.data, data)
        halves = _parts(known, size)
        if halves is None:
            return
        one, other = halves
    devices = [start.device] if start.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            found = _check(sampler, median(step_size(k) for k in every), points, one, other)
        except (RuntimeError, ValueError):
            # No second derivative, or none that is finite: then nothing is known beforehand.
            return
    if found is not None and not found.stable:
        warn(_message(sampler, found), StabilityWarning)


def _parts(data: Data, size: int) -> tuple[Batch, Batch] | None:
    """Two parts of the data, of ``size`` data each at the most, or all of them twice."""
    if size < min(data.num_data, MIN_DATA):
        return None
    if size >= data.num_data:
        every = data.whole()
        return every, every
    rows = torch.linspace(0, data.num_data - 1, min(2 * size, data.num_data)).long()
    return data.take(rows[::2]), data.take(rows[1::2])


def _check(
    sampler: Sampler, step_size: float, points: Tensor, one: Batch | None, other: Batch | None
) -> Stability | None:
    plain = isinstance(sampler.estimator, (minibatch, control_variate))
    if sampler.max_step_size is None or not plain:
        return None
    curvature = float(curvature_at(sampler.potential, points, one, other).min())
    # NaN where no direction curves upwards.
    if math.isnan(curvature) or curvature <= 0:
        return None
    return Stability(step_size, sampler.max_step_size(curvature), curvature)


def _message(sampler: Sampler, found: Stability) -> str:
    return (
        f"step_size {found.step_size:.3g} is beyond the stable range of {sampler.name}, which ends "
        f"at {found.max_step_size:.3g} for the largest curvature at the starting points, about "
        f"{found.curvature:.3g}: the run is likely to diverge, or under a Metropolis test to stand "
        "still. Take a smaller step_size; pvi.suggest_step_size(potential, data) proposes one."
    )


def curvature_at(
    model: ModelPotential, points: Tensor, one: Batch | None, other: Batch | None
) -> Tensor:
    """A lower bound on the largest eigenvalue of the Hessian at each point, ``[P]``.

    The direction is found on batch ``one`` by a few steps of Lanczos' method, and the curvature
    along it measured on batch ``other``. Draws no random numbers but its own.
    """

    def product(batch: Batch | None, directions: Tensor) -> Tensor:
        found = []
        for point, direction in zip(points, directions, strict=True):
            energy = Energy(lambda: [lambda leaf: model(leaf[None], batch)[0]], point)
            found.append(hessian_product(energy, direction))
        return torch.stack(found).to(points)

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points)
    basis = [start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)]
    images: list[Tensor] = []
    for _ in range(min(NUM_ITERATIONS, model.num_params)):
        images.append(product(one, basis[-1]))
        rest = images[-1]
        for _ in range(2):
            for each in basis:
                rest = rest - (rest * each).sum(-1, keepdim=True) * each
        size = torch.linalg.vector_norm(rest, dim=-1, keepdim=True)
        basis.append(rest / size.clamp(min=torch.finfo(size.dtype).tiny))
    q, hq = torch.stack(basis[:-1], dim=1), torch.stack(images, dim=1)
    small = (q @ hq.mT).double()
    _, vectors = torch.linalg.eigh(0.5 * (small + small.mT))
    top = (vectors[..., -1:].to(q.dtype).mT @ q).squeeze(1)
    found: Tensor = (top * product(other, top)).sum(-1) / top.square().sum(-1)
    return found
