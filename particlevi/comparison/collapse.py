"""Whether the particles of an interacting method have collapsed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int
from particlevi._warning import warn
from particlevi.curvature import largest_curvature
from particlevi.data import Data, DataLike, as_data, as_particles
from particlevi.diagnostics.predictive import epistemic_series
from particlevi.drawset import DrawSet
from particlevi.errors import ParticleviWarning
from particlevi.gradients._evaluate import value_and_grad
from particlevi.kernels.kernels import Kernel, as_kernel
from particlevi.potentials.potential import ModelPotential
from particlevi.running.sampling import sample
from particlevi.samplers.sghmc import sghmc
from particlevi.streams import ParticleStreams
from particlevi.tuning import suggest_step_size

__all__ = ["Collapse", "CollapseWarning", "check_collapse"]

_MAX_PARTICLES = 256
_REFERENCE_DRAWS = 20
_MAX_PROBES = 100
# Collapsed directions beyond this share are more than chance.
_MAX_SHARE = 0.05


class CollapseWarning(ParticleviWarning):
    """Particles that understate the posterior's variance."""


@dataclass(frozen=True, eq=False)
class Collapse:
    """What ``check_collapse`` measured.

    Attributes:
        num_particles: P, those that were looked at.
        num_params: D.
        effective_rank: ``exp(-sum_i p_i log p_i)`` with ``p_i`` the eigenvalues of the kernel
            matrix over their sum: 1 if the kernel sees all particles as one, P if it sees each
            alone.
        force_ratio: the mean norm of attraction over that of repulsion; 1 at a fixed point.
        ratios: variance of the particles over the reference's in each direction, ``[K]``: the
            coordinates and, with at least four particles per dimension, the principal axes of the
            reference in standardised coordinates.
        reference_variance: of the reference, mean over coordinates: a lower bound for the
            posterior's while it still grows.
        epistemic_ratio: standard deviation of the model's mean between particles over that between
            the reference's draws, root mean square over probe inputs; NaN for a density.
        epistemic_error: its standard error, by leaving out one particle at a time.
    """

    num_particles: int
    num_params: int
    effective_rank: float
    force_ratio: float
    ratios: Tensor
    reference_variance: float
    epistemic_ratio: float = math.nan
    epistemic_error: float = math.nan

    @property
    def variance_ratio(self) -> float:
        """The median over directions."""
        return float(self.ratios.median())

    @property
    def collapsed_share(self) -> float:
        """Share of directions below half the reference's variance by more than chance.

        Below half of what one of 100 estimates from P independent particles falls short of.
        """
        from scipy.special import fdtri

        freedom = max(self.num_particles - 1, 1)
        limit = 0.5 * float(fdtri(freedom, freedom, 0.01))
        return float((self.ratios < limit).double().mean())

    @property
    def collapsed(self) -> bool:
        """Whether particles are too close together, in parameters or in predictions.

        In the median direction they keep less than half of the reference's variance; or in more
        than 5 % of the directions; or predictions have less than half the epistemic deviation.
        """
        narrow = self.epistemic_ratio + 2 * self.epistemic_error < 0.5
        return self.variance_ratio < 0.5 or self.collapsed_share > _MAX_SHARE or narrow


def check_collapse(
    draws: DrawSet,
    data: DataLike = None,
    *,
    inputs: Any = None,
    kernel: Kernel | None = None,
    batch_size: int | None = None,
    num_steps: int = 300,
    step_size: float | None = None,
    seed: int = 0,
) -> Collapse:
    """Whether interacting particles have collapsed, against a short Langevin run from them.

    SVGD with few particles for its dimensions understates the variance: on a standard Gaussian, 100
    particles keep 0.96 of it in 1 dimension and 0.09 in 50. Here up to 256 of the particles become
    independent chains of ``sghmc``, and the second half of that run is the reference: for the
    variance in each direction, and for that of the model's predictions. (In a net particles can
    differ in their weights by a symmetry and agree in what they predict.)

    Args:
        draws: of ``svgd``, ``nvgd`` and their like, with all parameters kept.
        data: as given to ``sample``.
        inputs: probe inputs, at which predictions are compared; the first hundred of the data if
            absent.
        kernel: whose matrix and forces are reported; ``pvi.kernels.rbf()`` if absent.
        batch_size: data per gradient; all if absent.
        num_steps: of the reference.
        step_size: of the reference; half of ``1 / sqrt(L)`` if absent, with L the largest
            curvature of the potential at four of the particles; shorter with minibatches, which
            then heat the reference by a tenth at most.
        seed: of the reference.

    Returns:
        The numbers, and ``.collapsed``.

    Raises:
        TypeError: something else than draws.
        ValueError: draws without their potential or with some of the parameters left out, fewer
            than two particles.

    Warns:
        CollapseWarning: the particles have collapsed; it says in what.
    """
    check_positive_int("num_steps", num_steps, minimum=2)
    if not isinstance(draws, DrawSet):
        raise TypeError(f"check_collapse takes the draws of sample(), got {type(draws).__name__}.")
    potential = draws.model()
    checked = as_data(data, potential).held()
    particles = as_particles(_particles(draws), potential, potential.num_params)
    source = checked.batches(batch_size=batch_size, num_particles=len(particles), shared=True)
    batch = source.next(ParticleStreams(seed, "batches", device=potential.device))
    chosen = as_kernel(kernel).bind(potential)
    gradient = value_and_grad(potential, particles, batch, potential.chunk_size).gradient
    attraction, repulsion = chosen.direction(particles, -gradient)
    friction = None
    if step_size is None and batch_size is not None:
        chosen_step = suggest_step_size(
            potential,
            checked,
            batch_size=batch_size,
            at=particles[:4],
            friction=None,
            verbose=False,
        )
        step_size, friction = chosen_step.momentum, chosen_step.friction
    elif step_size is None:
        curvature = largest_curvature(potential, particles[:4], checked)
        step_size = 0.5 / math.sqrt(max(curvature, 1e-12))
    check_positive("step_size", step_size)
    count = min(_REFERENCE_DRAWS, num_steps // 2)
    thin = num_steps // 2 // count
    reference = sample(
        sghmc(potential, friction=0.5 / step_size if friction is None else friction),
        checked,
        step_size=step_size,
        batch_size=batch_size,
        initial=particles,
        num_warmup=num_steps - thin * count,
        num_draws=count,
        thin=thin,
        seed=seed,
        progress=False,
    )
    ratio, error = _epistemic(potential, particles, reference, checked, inputs)
    spread = reference.particles.double().flatten(0, 1).var(0, correction=0)
    result = Collapse(
        num_particles=len(particles),
        num_params=potential.num_params,
        effective_rank=_effective_rank(chosen(particles, particles)),
        force_ratio=float(_mean_norm(attraction) / _mean_norm(repulsion)),
        ratios=_ratios(particles.double().cpu(), reference.particles.double()),
        reference_variance=float(spread.mean()),
        epistemic_ratio=ratio,
        epistemic_error=error,
    )
    if result.collapsed:
        warn(_message(result), CollapseWarning)
    return result


def _particles(draws: DrawSet) -> Tensor:
    """At most 256 of the sample, evenly spaced."""
    sample = draws.parameters()
    if len(sample) < 2:
        raise ValueError("check_collapse needs at least two particles, got one.")
    picks = torch.linspace(0, len(sample) - 1, min(_MAX_PARTICLES, len(sample))).long()
    return sample[picks]


def _ratios(particles: Tensor, reference: Tensor) -> Tensor:
    """Variances of particles ``[P, D]`` over the reference's ``[P, T, D]`` by direction."""
    pool = reference.flatten(0, 1)
    scale = pool.std(0)
    moving = scale > 0
    points, pool = particles[:, moving] / scale[moving], pool[:, moving] / scale[moving]
    # Axes need many independent chains for their number, since draws of a chain are correlated.
    if 1 < points.shape[1] <= len(particles) / 4:
        _, axes = torch.linalg.eigh(torch.cov(pool.T))
        points, pool = (torch.cat([each, each @ axes], 1) for each in (points, pool))
    return points.var(0) / pool.var(0)


def _epistemic(
    potential: ModelPotential, particles: Tensor, reference: DrawSet, data: Data, inputs: Any
) -> tuple[float, float]:
    """Ratio of the standard deviations of predictions, and its error over particles."""
    if potential.likelihood is None:
        return math.nan, math.nan
    if inputs is None:
        first = data.first(_MAX_PROBES).data
        if not isinstance(first, tuple) or len(first) < 2:
            return math.nan, math.nan
        inputs = first[:-1]
    squares = epistemic_series(DrawSet(particles.unsqueeze(1), potential=potential), inputs)
    unit = float(epistemic_series(reference, inputs).mean())
    if unit <= 0:
        return math.nan, math.nan
    # Squares are about the mean of P particles, as independent ones would have them.
    count = len(particles)
    variance = float(squares.mean()) * count / (count - 1)
    relative = float(squares.std()) / math.sqrt(count) / max(float(squares.mean()), 1e-300)
    ratio = math.sqrt(variance / unit)
    return ratio, 0.5 * ratio * relative


def _message(result: Collapse) -> str:
    parts = [
        f"{result.num_particles} particles in {result.num_params} dimensions keep "
        f"{result.variance_ratio:.2g} of the variance that a short Langevin run from them reaches "
        f"in the median direction, and collapsed in {result.collapsed_share:.0%} of them."
    ]
    if not math.isnan(result.epistemic_ratio):
        parts.append(
            f"Their predictions keep {result.epistemic_ratio:.2g} +- {result.epistemic_error:.1g} "
            "of the epistemic deviation."
        )
    parts.append(
        "Ways out: chains, pvi.sghmc(potential); pvi.repulsive_langevin(potential), whose law is "
        "exact for any number of particles; or several times more particles than dimensions. "
        "(Message passing keeps marginals wide where the model factorises into groups.)"
    )
    return " ".join(parts)


def _mean_norm(force: Tensor) -> Tensor:
    mean: Tensor = torch.linalg.vector_norm(force, dim=-1).mean()
    return mean


def _effective_rank(matrix: Tensor) -> float:
    values = torch.linalg.eigvalsh(matrix.double()).clamp(min=0)
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())
