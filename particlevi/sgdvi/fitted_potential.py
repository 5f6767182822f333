"""The effective potential from SGD's own draws, of any shape, in a few dimensions.

``Phi / T = E(x)``, fitted by score matching (see ``score_matching``), which needs no normalising
constant. The width of the bumps, their number and the ridge are those with the smallest loss on
draws that are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int, check_seed
from particlevi._shown import Shown
from particlevi._warning import warn
from particlevi.draws import Draws
from particlevi.sgdvi._checks import check_points
from particlevi.sgdvi.score_matching import (
    ScoreMatching,
    derivatives,
    features,
    normal_equations,
    spread_out,
)
from particlevi.sgdvi.series import as_series, block_labels, is_stationary

__all__ = ["FittedPotential", "fit_potential"]

_WIDTHS = (0.3, 0.5, 0.8, 1.2, 1.8, 2.7, 4.0, 6.0, 9.0)
_RIDGES = tuple(10.0**k for k in range(-13, 3))
_NUMBERS = (12, 25, 50, 100, 200, 400)
_MOST_NUMBERS = {1: 100, 2: 200}
_UNDERSMOOTHING = 0.1
_MATTERS = 0.01
_ROWS = 4096


@dataclass(frozen=True, eq=False, repr=False)
class FittedPotential(Shown):
    """An effective potential of any shape, up to a constant.

    Attributes:
        temperature: T.
        center, scale: ``[D]``, by which points are standardised.
        centers: of the bumps, in standardised coordinates, ``[M, D]``.
        width: of the bumps, in standardised coordinates.
        ridge: the weight of the squared coefficients of the bumps in the fit.
        coefficients: ``a [K]``.
        replicates: ``a`` refitted to resampled blocks, ``[B, K]``.
        score_loss: ``J`` on draws left out.
        stationary: whether the two halves of the run agree; None if it was too short to tell.
    """

    temperature: float
    center: Tensor
    scale: Tensor
    centers: Tensor
    width: float
    ridge: float
    coefficients: Tensor
    replicates: Tensor
    score_loss: float
    stationary: bool | None

    def __call__(self, points: Tensor) -> Tensor:
        """``Phi [...]`` at points ``[..., D]``; its mean over the bumps' centres is 0."""
        return self._values(points, self.coefficients.unsqueeze(1)).squeeze(-1)

    def resampled(self, points: Tensor) -> Tensor:
        """``Phi`` refitted to resampled blocks, ``[R, ...]``."""
        return self._values(points, self.replicates.T).movedim(-1, 0)

    def band(self, points: Tensor) -> Tensor:
        """Standard errors ``[...]`` of ``Phi`` at points ``[..., D]``, by the block bootstrap."""
        return self.resampled(points).std(0)

    def gradient(self, points: Tensor) -> Tensor:
        """``grad Phi [..., D]`` at points ``[..., D]``."""
        z = self._standardise(points).reshape(-1, len(self.center))
        slope, _ = derivatives(z, self.centers, self.width)
        found = self.temperature * (slope @ self.coefficients) / self.scale
        return found.reshape(points.shape)

    def _standardise(self, points: Tensor) -> Tensor:
        check_points("points", points, None, len(self.center))
        return (points.to(self.center) - self.center) / self.scale

    def _values(self, points: Tensor, coefficients: Tensor) -> Tensor:
        z = self._standardise(points)
        flat = z.reshape(-1, z.shape[-1])
        values = torch.cat(
            [features(part, self.centers, self.width) @ coefficients for part in flat.split(_ROWS)]
        )
        reference = (features(self.centers, self.centers, self.width) @ coefficients).mean(0)
        return self.temperature * (values - reference).reshape(*z.shape[:-1], -1)


def fit_potential(
    draws: Draws | Tensor,
    temperature: float,
    *,
    given: Draws | Tensor | None = None,
    num_centers: int | None = None,
    width: float | None = None,
    ridge: float | None = None,
    num_blocks: int = 20,
    num_bootstrap: int = 50,
    seed: int = 0,
) -> FittedPotential:
    """The effective potential in a few dimensions, of any shape, by score matching.

    Of the law of these coordinates alone, or of their law given that others are at their means: a
    slice through the potential instead of the marginal one. The others enter linearly,
    ``Phi(x | r) = Phi(x) + T x' B r``, which is exact for a Gaussian law; they may be many.

    The draws are standardised; the bumps sit on draws far from each other. All is linear algebra:
    seconds for 20 000 draws in two dimensions, some ten in five.

    Args:
        draws: stationary draws of SGD, or ``[P, T, D]``.
        temperature: T, as ``particlevi.noise.temperature`` gives it, with the momentum of the run.
        given: the other coordinates at the same draws, ``[P, T, R]``, such as those along further
            directions.
        num_centers: M, of bumps; chosen by draws left out if absent, from 12 up to 100 in one
            dimension, 200 in two, 400 in more.
        width: of the bumps in standard deviations; likewise, from 0.3 to 9.
        ridge: likewise, from 1e-13 to 100. What is used is a tenth of the choice: the bias of a
            fit is then small against its error, which the band gives.
        num_blocks: whole chains, or stretches of them: the unit that is left out and resampled.
        num_bootstrap: refits for the band.
        seed: of the centres and the bootstrap.

    Raises:
        ValueError: fewer than 10 draws per unknown, or draws that do not move.

    Warns:
        ParticleviWarning: the loss on draws left out still falls at the edge of the range of widths
            or ridges, so that the best fit is not known; or at the largest number of centres.

    Examples:
        >>> x = torch.randn(100, 50, 1, generator=torch.Generator().manual_seed(0))
        >>> phi = fit_potential(x, temperature=1.0, num_centers=20)
        >>> rise = phi(torch.tensor([[1.0]])) - phi(torch.tensor([[0.0]]))
        >>> bool((rise - 0.5).abs() < 0.1)
        True

        One coordinate of two that are correlated, the other at its mean:

        >>> y = 0.6 * x + 0.8 * torch.randn(100, 50, 1)
        >>> cut = fit_potential(x, temperature=1.0, given=y, num_centers=20)
        >>> rise = cut(torch.tensor([[1.0]])) - cut(torch.tensor([[0.0]]))
        >>> bool((rise - 0.5 / 0.64).abs() < 0.15)
        True
    """
    check_positive("temperature", temperature)
    check_positive_int("num_bootstrap", num_bootstrap, minimum=2)
    check_positive_int("num_blocks", num_blocks, minimum=3)
    check_seed("seed", seed)
    for name, value in (("width", width), ("ridge", ridge)):
        if value is not None:
            check_positive(name, value)
            if not 1e-20 < value < 1e20:
                raise ValueError(f"{name} must be between 1e-20 and 1e20, got {value!r}.")
    series = as_series(draws)
    flat, size = series.flatten(0, 1), series.shape[-1]
    others = series[..., :0] if given is None else as_series(given, "given")
    if others.shape[:2] != series.shape[:2]:
        raise ValueError(
            f"given must hold the same draws {list(series.shape[:2])}, got {list(others.shape)}."
        )
    numbers = _numbers(num_centers, len(flat), size, others.shape[-1])
    stationary = is_stationary(torch.cat([series, others], -1))
    generator = torch.Generator().manual_seed(int(seed))
    center, scale, z = _standardised(flat)
    rest = others.flatten(0, 1)
    rest = rest if given is None else _standardised(rest)[2]
    labels = block_labels(series, num_blocks).flatten()
    count = int(labels.max()) + 1
    if count < 3:
        raise ValueError(f"The band needs at least 3 blocks of draws, got {count}.")
    centers = spread_out(z, numbers[-1], generator)
    systems: dict[float, ScoreMatching] = {}

    def system(h: float) -> ScoreMatching:
        if h not in systems:
            systems.clear()
            systems[h] = normal_equations(z, labels, count, centers, h, rest)
        return systems[h]

    ridges = _RIDGES if ridge is None else (ridge,)
    before: _Choice | None = None
    if width is None:
        best, before = _walk(lambda h: _best(system(h), h, len(centers), ridges))
    else:
        best = _best(system(width), width, len(centers), ridges)
    full = system(best.width)
    for number in reversed(numbers[:-1]):
        other = _best(full.first(number), best.width, number, ridges)
        if _is_better(other, best):
            best = other
    if ridge is None:
        _warn_at_edges(full, best, numbers, before)
    used = full.first(best.number)
    chosen = torch.stack(
        [
            torch.randint(count, (count,), generator=generator).bincount(minlength=count)
            for _ in range(num_bootstrap)
        ]
    )
    weights = torch.cat([torch.ones(1, count, dtype=z.dtype), chosen.to(z)])
    weight, solved = _solved(used, weights, best.ridge, ridge is None)
    plain = size + size * (size + 1) // 2
    solved = torch.cat([solved[:, :plain], solved[:, used.monomials :]], 1)
    coefficients, again = solved[0], solved[1:]
    # Means of B resampled blocks vary by (B - 1) / B of what those of B new blocks would; and a
    # variance from B blocks is divided as that of Student's t, B - 3 in place of B - 1.
    inflation = count / max(count - 3, 1)
    again = again.mean(0) + math.sqrt(inflation) * (again - again.mean(0))
    return FittedPotential(
        temperature=temperature,
        center=center,
        scale=scale,
        centers=centers[: best.number],
        width=best.width,
        ridge=weight,
        coefficients=coefficients,
        replicates=again,
        score_loss=float(best.losses.sum()),
        stationary=stationary,
    )


def _standardised(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    center, scale = flat.mean(0), flat.std(0)
    if (scale == 0).any():
        raise ValueError("The draws do not move in some coordinates: leave those out.")
    return center, scale, (flat - center) / scale


def _solved(
    system: ScoreMatching, weights: Tensor, ridge: float, free: bool
) -> tuple[float, Tensor]:
    """The ridge that is used and the solutions ``[R, K]`` for block weights ``[R, B]``."""
    for factor in (_UNDERSMOOTHING, 1.0, 10.0) if free else (1.0,):
        found = torch.stack([system.solve(each, factor * ridge) for each in weights])
        if torch.isfinite(found).all():
            return factor * ridge, found
    raise ValueError(
        f"The fit with ridge {ridge:.3g} is singular: pass a larger ridge, or fewer centres."
    )


class _Choice(NamedTuple):
    losses: Tensor
    width: float
    number: int
    ridge: float


def _numbers(num_centers: int | None, num_draws: int, size: int, given: int) -> tuple[int, ...]:
    """Candidates for the number of bumps, smallest first."""
    if num_centers is not None:
        check_positive_int("num_centers", num_centers)
    monomials = size + size * (size + 1) // 2 + size * given
    most = num_draws * size // 10 - monomials
    if num_centers is None:
        limit = min(most, _MOST_NUMBERS.get(size, _NUMBERS[-1]))
        found = tuple(number for number in _NUMBERS if number <= limit)
        if found:
            return found
    if num_centers is None or num_centers > most:
        unknowns = monomials + (num_centers or _NUMBERS[0])
        raise ValueError(
            f"{unknowns} unknowns need at least {10 * unknowns // size} draws, got {num_draws}: "
            "lower num_centers, or project the draws on fewer directions."
        )
    return (num_centers,)


def _best(system: ScoreMatching, width: float, number: int, ridges: tuple[float, ...]) -> _Choice:
    """The ridge of least loss, the largest among equals."""
    losses = system.left_out_losses(ridges)
    at = min(range(len(ridges)), key=lambda k: (float(losses[k].sum()), -ridges[k]))
    return _Choice(losses[at], width, number, ridges[at])


def _still_falls(new: _Choice, old: _Choice) -> bool:
    """Better by more than chance and by more than 1 % of the loss."""
    gain = float((old.losses - new.losses).sum())
    return _is_better(new, old) and gain > _MATTERS * abs(float(new.losses.sum()))


def _is_better(new: _Choice, old: _Choice) -> bool:
    """Whether the loss is less by more than the standard error of the difference over blocks."""
    gain = old.losses - new.losses
    error = float(gain.std()) * math.sqrt(len(gain))
    return bool(torch.isfinite(gain).all()) and float(gain.sum()) > error


def _walk(evaluate: Callable[[float], _Choice]) -> tuple[_Choice, _Choice | None]:
    """From a width of 1.8 to where the loss falls no more, and the choice one step before."""
    middle = _WIDTHS.index(1.8)
    best, before = evaluate(_WIDTHS[middle]), None
    for step in (1, -1):
        at = middle + step
        moved = False
        while 0 <= at < len(_WIDTHS):
            other = evaluate(_WIDTHS[at])
            if not _is_better(other, best):
                break
            best, before, moved, at = other, best, True, at + step
        if moved:
            break
    return best, before


def _warn_at_edges(
    system: ScoreMatching, best: _Choice, numbers: tuple[int, ...], before: _Choice | None
) -> None:
    edges, part = [], system.first(best.number)
    if best.ridge == _RIDGES[0]:
        next_one = _best(part, best.width, best.number, _RIDGES[1:2])
        edges += [f"ridge {best.ridge:g}"] if _still_falls(best, next_one) else []
    if before is not None and best.width in (_WIDTHS[0], _WIDTHS[-1]):
        edges += [f"width {best.width:g}"] if _still_falls(best, before) else []
    if len(numbers) > 1 and best.number == numbers[-1]:
        fewer = _best(system.first(numbers[-2]), best.width, numbers[-2], _RIDGES)
        edges += [f"num_centers {best.number}"] if _still_falls(best, fewer) else []
    if edges:
        warn(
            f"The loss on draws left out still falls at the edge of what was tried: "
            f"{', '.join(edges)}. The band does not know what a better fit would change: project "
            "on fewer directions, or pass more num_centers.",
        )
