"""The effective potential in one and two dimensions: projections, lines and planes.

A projection shows the *marginal* potential ``-T log`` density of the projected draws; it is not a
slice through the potential, which the draws of a many-dimensional law cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import (
    check_finite,
    check_function,
    check_nonnegative,
    check_positive,
    check_positive_int,
    check_seed,
)
from particlevi._shown import Shown
from particlevi.data import DataLike, as_data, as_particles
from particlevi.draws import Draws
from particlevi.potentials.protocol import as_potential
from particlevi.sgdvi._checks import (
    as_directions,
    check_field,
    check_points,
    check_vector,
)
from particlevi.sgdvi.series import as_series, block_labels, is_stationary
from particlevi.typing import Potential

__all__ = [
    "Projection",
    "Slice",
    "compare_potentials",
    "line",
    "mean_loss",
    "plane",
    "principal_directions",
    "project",
]


@dataclass(frozen=True, eq=False, repr=False)
class Projection(Shown):
    """The density of projected draws on a grid, and the marginal potential.

    Attributes:
        directions: orthonormal ``[D, K]``, K of 1 or 2.
        origin: ``[D]``, the zero of the coordinates.
        axes: the grid, K tensors.
        density: of the projected draws, ``[G]`` or ``[G, G]``.
        potential: ``-T log density``, its minimum 0; infinite where no draw came near, or where
            the density is less than it can be told from 0.
        standard_error: of the potential, by the bootstrap over blocks.
        coordinates: of the draws, ``[P, T, K]``.
        stationary: whether the two halves of the projected run agree; None if too short to tell.
    """

    directions: Tensor
    origin: Tensor
    axes: tuple[Tensor, ...]
    density: Tensor
    potential: Tensor
    standard_error: Tensor
    coordinates: Tensor
    stationary: bool | None


def principal_directions(draws: Draws | Tensor, num: int = 2) -> Tensor:
    """The ``num`` directions in which draws vary most, orthonormal ``[D, num]``."""
    check_positive_int("num", num)
    flat = as_series(draws).flatten(0, 1)
    if num > min(flat.shape):
        raise ValueError(f"{len(flat)} draws in {flat.shape[1]} dimensions do not span {num}.")
    centered = flat - flat.mean(0)
    if len(flat) > flat.shape[1]:
        vectors = torch.linalg.eigh(centered.T @ centered)[1].flip(1)
    else:
        vectors = torch.linalg.svd(centered, full_matrices=False)[2].T
    top: Tensor = vectors[:, :num].contiguous()
    return top


def project(
    draws: Draws | Tensor,
    temperature: float,
    directions: Tensor | None = None,
    *,
    num_grid: int = 81,
    num_blocks: int = 20,
    num_bootstrap: int = 100,
    seed: int = 0,
) -> Projection:
    """The marginal potential of stationary draws along one or two directions.

    The density is a kernel estimate with 0.6 of Scott's bandwidth, ``h = 0.6 s n^(-1/(K+4))`` with
    ``s`` the standard deviation and ``n`` the number of draws. A Gaussian kernel alone would
    flatten the density by more than its standard error; the combination ``2 k_h - k_(sqrt(2) h)``
    of two takes the bias of order ``h^2`` off. It can be negative where draws are rare; the
    potential is infinite there.

    Source: Schucany and Sommers, "Improvement of kernel type density estimators", 1977.

    Args:
        draws: stationary draws of SGD, or ``[P, T, D]``.
        temperature: ``T = eta/(2b)``.
        directions: ``[D, 1]`` or ``[D, 2]``, made orthonormal here; the two principal ones of the
            draws if absent.
        num_grid: points per axis, from 4 standard deviations on each side.
        num_blocks: whole chains, or stretches of them, that are resampled.
        num_bootstrap: resamplings.
        seed: of the bootstrap.

    >>> x = torch.randn(50, 400, 3, generator=torch.Generator().manual_seed(0))
    >>> found = project(x, 1.0, torch.eye(3)[:, :1])
    >>> bool((found.potential[50] - 0.5 * found.axes[0][50] ** 2).abs() < 0.1)
    True
    """
    check_positive("temperature", temperature)
    check_positive_int("num_grid", num_grid, minimum=2)
    num_grid = int(num_grid)
    check_positive_int("num_bootstrap", num_bootstrap, minimum=2)
    check_seed("seed", seed)
    series = as_series(draws)
    given = principal_directions(series) if directions is None else directions
    chosen = as_directions("directions", given, series.shape[-1])
    if chosen.shape[1] > 2 or int(torch.linalg.matrix_rank(chosen)) < chosen.shape[1]:
        raise ValueError(
            f"directions must be one or two independent columns, got {list(chosen.shape)} of rank "
            f"{int(torch.linalg.matrix_rank(chosen))}."
        )
    basis = torch.linalg.qr(chosen)[0]
    basis = basis * (basis * chosen).sum(0).sign()
    origin = series.mean((0, 1))
    coordinates = (series - origin) @ basis
    flat, size = coordinates.flatten(0, 1), basis.shape[1]
    spread = flat.std(0)
    if len(flat) < 2 or (spread == 0).any():
        raise ValueError("The draws do not move in some of the directions: leave those out.")
    labels = block_labels(series, num_blocks).flatten().numpy()
    count = int(labels.max()) + 1
    if count < 3:
        raise ValueError(f"Standard errors need at least 3 blocks of draws, got {count}.")
    axes = tuple(torch.linspace(-4, 4, num_grid, dtype=torch.float64) * s for s in spread)
    steps = [float(axis[1] - axis[0]) for axis in axes]
    edges = [
        np.append(a.numpy() - h / 2, float(a[-1]) + h / 2) for a, h in zip(axes, steps, strict=True)
    ]
    bandwidth = [0.6 * float(s) * len(flat) ** (-1 / (size + 4)) for s in spread]
    widths = [b / h for b, h in zip(bandwidth, steps, strict=True)]
    counts = np.stack(
        [np.histogramdd(flat[labels == k].numpy(), bins=edges)[0] for k in range(count)]
    )
    smooth = np.stack([_fourth_order(c, widths) for c in counts])
    sizes = np.bincount(labels, minlength=count)

    def density(weights: np.ndarray) -> np.ndarray:
        total = np.tensordot(weights, smooth, 1) / (weights @ sizes)
        return np.asarray(total / math.prod(steps))

    generator = np.random.default_rng(int(seed))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = density(np.ones(count))
        potential = -temperature * np.log(found)
        again = []
        for _ in range(num_bootstrap):
            picked = np.bincount(generator.integers(count, size=count), minlength=count)
            again.append(-temperature * np.log(density(picked.astype(float))))
        values = np.stack(again)
        error = np.where(np.isfinite(values).all(0), np.std(values, axis=0), np.inf)
        error = error * math.sqrt(count / max(count - 1, 1))
        potential[~np.isfinite(error)] = np.inf
    return Projection(
        directions=basis,
        origin=origin,
        axes=axes,
        density=torch.from_numpy(found),
        potential=torch.from_numpy(potential - potential.min()),
        standard_error=torch.from_numpy(error),
        coordinates=coordinates,
        stationary=is_stationary(coordinates, "The projected run"),
    )


def _fourth_order(counts: np.ndarray, widths: list[float]) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    once, wide = (
        gaussian_filter(counts, [factor * w for w in widths], mode="constant", truncate=5)
        for factor in (1.0, math.sqrt(2.0))
    )
    return np.asarray(2 * once - wide)


def line(start: Tensor, end: Tensor, num: int = 51, margin: float = 0.25) -> Tensor:
    """Points ``[num, D]`` on the line through two solutions, ``margin`` of their distance past."""
    check_vector("start", start)
    check_vector("end", end, len(start))
    fractions = _fractions(num, margin, start)[:, None]
    return start + fractions * (end - start)


def plane(a: Tensor, b: Tensor, c: Tensor, num: int = 31, margin: float = 0.25) -> Tensor:
    """Points ``[num, num, D]`` on the plane ``a + s (b - a) + t (c - a)`` of three solutions."""
    check_vector("a", a)
    check_vector("b", b, len(a))
    check_vector("c", c, len(a))
    fractions = _fractions(num, margin, a)
    first = fractions[:, None, None] * (b - a)
    return a + first + fractions[None, :, None] * (c - a)


def _fractions(num: int, margin: float, like: Tensor) -> Tensor:
    check_positive_int("num", num, minimum=2)
    check_nonnegative("margin", margin)
    margin = float(margin)
    fractions = torch.linspace(-margin, 1 + margin, int(num), dtype=torch.float64)
    found = fractions.to(like)
    check_finite("margin", found, "It is a fraction of the distance, such as 0.25.")
    return found


@dataclass(frozen=True, eq=False, repr=False)
class Slice(Shown):
    """Effective potential and loss on the same points.

    Attributes:
        points: ``[..., D]``.
        potential: ``Phi [...]``, its minimum here 0.
        band: its standard errors, or None.
        loss: the mean loss ``f [...]``, its minimum here 0.
        scale: ``c`` of the least-squares fit ``Phi = c f + const``; noise that is a multiple
            ``C = k I`` of the identity gives ``Phi = f / k`` exactly.
        scale_error: its standard error, from the potential's own resampling; NaN without.
        disagreement: ``Phi - (c f + const) [...]``.
        agreement: the correlation of ``Phi`` and ``f``.
        worst: index of the point where they disagree most.
    """

    points: Tensor
    potential: Tensor
    band: Tensor | None
    loss: Tensor
    scale: float
    scale_error: float
    disagreement: Tensor
    agreement: float
    worst: tuple[int, ...]


def compare_potentials(
    points: Tensor,
    potential: Callable[[Tensor], Tensor],
    loss: Callable[[Tensor], Tensor],
    *,
    directions: Tensor | None = None,
    origin: Tensor | None = None,
) -> Slice:
    """Effective potential and loss on a line or plane, and where they disagree.

    Args:
        points: ``[..., D]``, from ``line`` or ``plane``.
        potential: a function of points; a fitted one brings its errors. Of projected draws with
            ``directions`` ``[D, K]``, along which points are projected, after ``origin`` ``[D]`` is
            taken off.
        loss: the mean loss, points ``[S, D]`` to ``[S]``; see ``mean_loss``.
        directions: as said.
        origin: as said.

    >>> points = line(torch.tensor([-1.0]), torch.tensor([1.0]))
    >>> found = compare_potentials(points, lambda x: 4 * x[..., 0] ** 2, lambda x: x[..., 0] ** 2)
    >>> round(found.scale, 6), round(found.agreement, 6)
    (4.0, 1.0)
    """
    check_points("points", points, None)
    check_function("potential", potential, "points [..., D]")
    check_function("loss", loss, "points [..., D]")
    size, seen = points.shape[-1], points
    if origin is not None:
        check_vector("origin", origin, size)
    if directions is not None:
        shift = points.double() - (0 if origin is None else origin.double())
        seen = shift @ as_directions("directions", directions, size)
    elif origin is not None:
        raise ValueError("origin belongs to directions: give both, or neither.")
    check_field("potential", potential, seen.reshape(-1, seen.shape[-1]), ())
    with torch.no_grad():
        check_field("loss", loss, points.reshape(-1, size), ())
    phi = potential(seen).double()
    band = potential.band(seen) if hasattr(potential, "band") else None
    with torch.no_grad():
        f = loss(points.reshape(-1, points.shape[-1])).double().reshape(points.shape[:-1])
    phi, f = phi - phi.min(), f - f.min()
    x, y = f.flatten() - f.mean(), phi.flatten() - phi.mean()
    scale = float((x @ y) / (x @ x)) if float(x @ x) > 0 else math.nan
    scale_error = math.nan
    if hasattr(potential, "resampled"):
        again = potential.resampled(seen).double().flatten(1)
        scale_error = float(((again - again.mean(1, keepdim=True)) @ x / (x @ x)).std())
    disagreement = (y - scale * x).reshape(phi.shape)
    at = int(disagreement.abs().argmax())
    return Slice(
        points=points,
        potential=phi,
        band=band,
        loss=f,
        scale=scale,
        scale_error=scale_error,
        disagreement=disagreement,
        agreement=float((x @ y) / (x.norm() * y.norm())),
        worst=tuple(int(i) for i in np.unravel_index(at, phi.shape)),
    )


def mean_loss(
    potential: Potential, data: DataLike, chunk_size: int = 64
) -> Callable[[Tensor], Tensor]:
    """``f = U / N`` on all data as a function of points ``[S, D]``.

    Args:
        potential: with data.
        data: as given to ``sample``.
        chunk_size: points evaluated at once.
    """
    model = as_potential(potential)
    if model.num_data is None:
        raise ValueError("A density without data has no mean loss.")
    check_positive_int("chunk_size", chunk_size)
    batch, count = as_data(data, model).whole(), model.num_data

    def loss(points: Tensor) -> Tensor:
        placed = as_particles(points, model, model.num_params, "points")
        with torch.no_grad():
            parts = placed.split(chunk_size)
            return torch.cat([model(part, batch) for part in parts]) / count

    return loss
