"""Effective temperatures along the eigenvectors of the Hessian."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from particlevi.comparison.estimates import Estimate
from particlevi.comparison.score import Score
from particlevi.comparison.subject import Setting, Subject
from particlevi.comparison.variances import Variance, stationary_variance
from particlevi.curvature import dense_hessian, potential_energy
from particlevi.data import as_particles

__all__ = ["Spectrum", "spectrum", "temperature"]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The Hessian's eigenvalues and the sets' variances along its eigenvectors.

    Attributes:
        eigenvalues: of the Hessian of the potential at the centre, ``[D]``, smallest first; empty
            if it was not computed.
        temperatures: by name, ``[D]``; NaN where the eigenvalue is not positive.
        errors: by name, their standard errors ``[D]``; 0 for the reference, to which they are
            relative.
        left_out: why there is no Hessian, if so.
    """

    eigenvalues: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    temperatures: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, Tensor] = field(default_factory=dict)
    left_out: str = ""


def spectrum(subjects: list[Subject], reference: Subject) -> Spectrum:
    """The variance of each set over the reference's, along each eigenvector.

    Both are stationary variances within chains, so that different modes do not count as variance
    and short chains are not called cold. If the reference has no chains, the variance times the
    curvature.
    """
    setting = reference.setting
    size = setting.model.num_params
    if setting.train is None:
        return Spectrum()
    if size > setting.max_hessian:
        return Spectrum(
            left_out=f"temperature is left out: the Hessian of {size} parameters is not computed "
            f"above max_hessian={setting.max_hessian}"
        )
    center = _center(setting, reference.parameters)
    hessian = dense_hessian(potential_energy(setting.model, center, setting.train)).cpu()
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    variances = {each.name: _along(each, vectors) for each in subjects}
    unit = variances[reference.name]
    if unit is None:
        unit = Variance(1 / eigenvalues, torch.zeros_like(eigenvalues))
    up = eigenvalues > 0
    temperatures, errors = {}, {}
    for each in subjects:
        variance = variances[each.name]
        if variance is None:
            continue
        if each is reference:
            ratio, relative = torch.ones_like(eigenvalues), torch.zeros_like(eigenvalues)
        else:
            # The inverse of an estimate is biased upwards by its relative variance.
            ratio = variance.value / unit.value / (1 + unit.relative_error)
            relative = variance.relative_error + unit.relative_error
        temperatures[each.name] = torch.where(up, ratio, torch.nan)
        errors[each.name] = torch.where(up, ratio * relative.sqrt(), torch.nan)
    return Spectrum(eigenvalues, temperatures, errors)


def temperature(along: Spectrum) -> Score:
    """The median of a spectrum, with its error for directions that are independent."""

    def median(subject: Subject, reference: Subject) -> Estimate | None:
        values = along.temperatures.get(subject.name)
        if values is None or bool(values.isnan().all()):
            return None
        if subject is reference:
            return Estimate(float(values.nanmedian()), 0.0)
        errors = along.errors[subject.name]
        known = ~errors.isnan()
        count = int(known.sum())
        factor = 1.0 if count < 3 else math.sqrt(math.pi / 2)
        error = factor * float(errors[known].square().mean().sqrt()) / math.sqrt(count)
        return Estimate(float(values.nanmedian()), error)

    return Score(
        "temperature",
        "median effective temperature over Hessian eigendirections, 1 for the posterior",
        median,
    )


def _along(subject: Subject, vectors: Tensor) -> Variance | None:
    draws, thin = subject.draws, subject.setting.thin
    values = draws.particles[:, ::thin]
    if draws.interacting or values.shape[1] < 2:
        return None
    return stationary_variance(values.double().cpu() @ vectors)


def _center(setting: Setting, particles: Tensor) -> Tensor:
    """The mean of the reference's draws, or one of them if its density is higher."""
    model, train = setting.model, setting.train
    assert train is not None
    points = torch.stack([particles.mean(0), *particles[:: max(1, len(particles) // 16)]])
    points = as_particles(points, model, model.num_params)
    with torch.no_grad():
        energy = model.prior_energy(points)
        for batch in train.chunks(model.at_once(1024)):
            energy = energy + model.data_energy(points, batch)
    return points[energy.argmin()]
