"""Kinetic and configurational temperatures: is the sampler at the temperature it was set to?

For ``p(theta, p) ~ exp(-(U(theta) + p.p/2) / T)`` in D dimensions both of these have mean T::

    kinetic            p.p / D
    configurational    (theta - c) . grad U(theta) / D,        c any fixed point

The kinetic one follows ``T chi2_D / D`` exactly, if the momenta are Gaussian at temperature T. The
configurational one does so on a Gaussian with ``c`` at its mean. Elsewhere only its mean is known,
and that needs ``theta p(theta)`` to vanish at infinity. Here ``c`` is the mean of the draws, which
makes it least noisy and lowers it by the factor ``1 - 1/ESS``.

What integrators do to them on a Gaussian with exact gradients: the kinetic temperature at the end
of a step is T under ``sghmc`` and ``obabo``, ``T (1 - h^2 l / 4)`` under ``baoab``, and above T
under the Euler forms of ``sghmc`` even as ``h -> 0``; the configurational one is ``l Var(theta)``:
T under ``sghmc``, ``baoab`` and ``leimkuhler_matthews``, ``T / (1 - h l / 2)`` under ``sgld``.

References: Wenzel and others, "How good is the Bayes posterior in deep neural networks really?",
2020; Leimkuhler and Matthews, "Molecular dynamics", 2015.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_fraction, check_positive, check_positive_int
from particlevi.data import DataLike, as_data, as_particles
from particlevi.diagnostics import arviz
from particlevi.drawset import DrawSet, check_draws
from particlevi.gradients.full import full_gradient

__all__ = [
    "Temperature",
    "chi_square_interval",
    "configurational",
    "every",
    "kinetic",
    "of_slopes",
    "slopes",
    "temperature_set",
]


class Temperature(NamedTuple):
    """One temperature over a run.

    Attributes:
        mean: over draws and chains.
        mcse: its Monte-Carlo standard error.
        size: degrees of freedom, D.
        inside: share of the draws within the 99 % interval of ``T chi2_D / D`` for the
            temperature T that was set; 0.99 for exact Gaussian draws.
        hottest: the largest of the chains' medians. It tells a hot chain also where rare draws are
            so hot that the mean has no useful error.
    """

    mean: float
    mcse: float
    size: int
    inside: float
    hottest: float = math.nan

    def __str__(self) -> str:
        parts = [f"{self.mean:.4g} +- {self.mcse:.2g}", f"{self.size} degrees of freedom"]
        if not math.isnan(self.inside):
            parts.append(f"{self.inside:.0%} of draws in the 99 % interval")
        if not math.isnan(self.hottest):
            parts.append(f"hottest chain {self.hottest:.4g}")
        return f"Temperature({', '.join(parts)})"

    def __repr__(self) -> str:
        return str(self)


def chi_square_interval(temperature: float, size: int, prob: float = 0.99) -> tuple[float, float]:
    """The central interval of ``T chi2_D / D``, where an exact kinetic temperature lies.

    Args:
        temperature: T.
        size: D.
        prob: of the interval.

    >>> low, high = chi_square_interval(1.0, 100)
    >>> round(low, 4), round(high, 4)
    (0.6733, 1.4017)
    """
    from scipy.stats import chi2

    check_positive("temperature", temperature)
    check_positive_int("size", size)
    check_fraction("prob", prob)
    low, high = chi2.ppf([(1 - prob) / 2, (1 + prob) / 2], size)
    return temperature * float(low) / size, temperature * float(high) / size


def _summary(values: Tensor, size: int, temperature: Tensor) -> Temperature:
    """Of values ``[P, T]``, NaN if any is not finite; the temperature set: ``[T]``, ``[P, T]``."""
    if not bool(torch.isfinite(values).all()):
        return Temperature(math.nan, math.nan, size, 0.0)
    low, high = chi_square_interval(1.0, size)
    values = values.double().cpu()
    ratio = values / temperature.double().cpu()
    inside = float(((ratio > low) & (ratio < high)).double().mean())
    error = float(arviz.mcse(values)) if values.shape[1] >= arviz.MIN_DRAWS else math.nan
    hottest = float(values.median(1).values.max())
    return Temperature(float(values.mean()), error, size, inside, hottest)


def temperature_set(draws: DrawSet) -> Tensor:
    """The temperature that the sampler was set to at each draw, ``[T]`` or ``[P, T]``."""
    for name in ("replica_temperature", "temperature"):
        if name in draws.stats:
            return draws.stats[name]
    return torch.ones(draws.particles.shape[1], dtype=torch.float64)


def kinetic(draws: DrawSet) -> dict[str, Temperature]:
    """Kinetic temperatures ``p.p / D`` of a momentum method.

    In total (under ``"kinetic"``) and, if there are several, of each tensor (``"kinetic[name]"``).

    Raises:
        ValueError: draws of a sampler without momenta.
    """
    if "kinetic_temperature" not in draws.stats:
        raise ValueError(
            f"{draws.attrs.get('sampler', 'This sampler')} has no momenta, so no kinetic "
            "temperature: see the configurational one."
        )
    sizes = {f"kinetic[{name}]": math.prod(shape) for name, shape in draws.shapes.items()}
    sizes = {"kinetic": sum(sizes.values()), **sizes}
    stats = {name: name.replace("kinetic", "kinetic_temperature", 1) for name in sizes}
    return {
        name: _summary(draws.stats[stats[name]], size, temperature_set(draws))
        for name, size in sizes.items()
        if stats[name] in draws.stats
    }


class Slopes(NamedTuple):
    """What a configurational temperature rests on.

    Attributes:
        virial: ``(theta - mean theta) grad U``, mean over all coordinates (``"all"``) and over
            those of each tensor, ``[P, T]``.
        squares: of the gradient in the coordinates in which the method moved, mean over draws
            ``[D]``.
    """

    virial: dict[str, Tensor]
    squares: Tensor


def slopes(
    draws: DrawSet,
    data: DataLike = None,
    *,
    thin: int = 1,
    chunk_size: int = 64,
    batch_size: int = 1024,
) -> Slopes:
    """The gradient of the potential at every ``thin``-th draw, on all data, ``chunk_size`` at once.

    Arguments and errors as for ``configurational``.
    """
    check_draws(draws)
    check_positive_int("thin", thin)
    if draws.interacting:
        raise ValueError(
            "A temperature is a statement about Markov chains, and these particles interact."
        )
    model = draws.model()
    draws.check_complete()
    checked = as_data(data, model)
    kept = draws.particles[:, :: int(thin)]
    parts = kept.flatten(0, 1).split(chunk_size)
    where = {"all": slice(None), **model.layout.slices()}
    virial: dict[str, list[Tensor]] = {name: [] for name in where}
    center = squares = torch.zeros((), dtype=torch.float64, device=model.device)
    count = max(1, kept.shape[0] * kept.shape[1])
    for part in parts:
        center = center + part.to(model.device, torch.float64).sum(0) / count
    for part in parts:
        point = as_particles(part, model, model.num_params)
        gradient = full_gradient(model, point, checked, batch_size).gradient.double()
        product = (point - center) * gradient
        for name, place in where.items():
            virial[name].append(product[:, place].mean(-1))
        squares = squares + _moved(gradient, draws.metric).square().sum(0)
    shape = kept.shape[:2]
    rows = {name: torch.cat(values).view(shape) for name, values in virial.items()}
    return Slopes(rows, squares / count)


def _moved(slope: Tensor, metric: Tensor | None) -> Tensor:
    """The gradient in the coordinates in which the method moved."""
    if metric is None:
        return slope
    metric = metric.to(slope)
    return slope * metric if metric.ndim == 1 else slope @ metric


def configurational(
    draws: DrawSet,
    data: DataLike = None,
    *,
    thin: int = 1,
    chunk_size: int = 64,
    batch_size: int = 1024,
) -> dict[str, Temperature]:
    """Configurational temperatures, in total (under ``"all"``) and of each tensor of the model.

    The gradient is taken on all the data, at every ``thin``-th draw.

    Args:
        draws: with all parameters kept.
        data: as given to ``sample``.
        thin: use every ``thin``-th draw.
        chunk_size: draws evaluated at once; memory for a few times as many is taken, also of
            draws on disk.
        batch_size: data evaluated at once.

    Raises:
        ValueError: interacting particles, or draws without their potential or of a part of it.
    """
    found = slopes(draws, data, thin=thin, chunk_size=chunk_size, batch_size=batch_size)
    return of_slopes(draws, found, temperature_set(draws)[..., ::thin])


def of_slopes(draws: DrawSet, found: Slopes, temperature: Tensor) -> dict[str, Temperature]:
    """Configurational temperatures from gradients at the draws."""
    layout = draws.model().layout
    sizes = {"all": layout.num_params, **dict(zip(layout.shapes, layout.sizes, strict=True))}
    return {
        name: _summary(values, sizes[name], temperature) for name, values in found.virial.items()
    }


def every(draws: DrawSet, data: DataLike = None, *, thin: int = 1) -> dict[str, Temperature]:
    """Kinetic, if there are momenta, and configurational ones; see ``Draws.temperatures``."""
    momenta = kinetic(draws) if "kinetic_temperature" in draws.stats else {}
    return {**momenta, **configurational(draws, data, thin=thin)}
