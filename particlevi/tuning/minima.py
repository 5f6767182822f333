"""Minima that chains begun in one basin do not see.

Chains that start close together agree on one mode, and no diagnostic of theirs tells of another.
So points are thrown out, at 1.5 to 100 standard deviations of the best minimum in directions that
are evenly spread, and minimised. A minimum they find counts if it holds more than about a
thousandth of the mass at the best one, by Laplace's approximation ``exp(-U) det(H)^-1/2``, and if
the fall still to be had from there, ``g' H^-1 g / 2``, is below a tenth of a nat. A mode so
narrow that none of the points falls into its basin remains unknown.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from particlevi.tuning.descent import Descent, bfgs
from particlevi.tuning.metric import factor_of_hessian
from particlevi.tuning.objective import Objective

__all__ = ["Minimum", "far_points", "in_basin", "on_the_way", "search", "separate"]

_REACH, _NEAR = (1.5, 5.0, 100.0), 0.75
_LEAST_LOG_MASS = -7.0
_FALL = 0.1
_MOST = 4
_GRADIENTS = 100
_MOST_ON_THE_WAY, _HESSIANS, _FAR_MORE = 16, 1000, 3.0


class Minimum(NamedTuple):
    """A minimum ``[D]``, its potential, and a factor ``[D, D]`` with ``L L' = H^-1``."""

    place: Tensor
    potential: float
    factor: Tensor

    @property
    def log_mass(self) -> float:
        """``log (exp(-U) det(H)^-1/2)``, the mass around it by Laplace's approximation."""
        return float(self.factor.diagonal().abs().log().sum()) - self.potential


def far_points(best: Minimum, number: int, generator: torch.Generator) -> Tensor:
    """``number`` points ``[K, D]`` outside a minimum, evenly spread in direction and distance.

    Three in four lie 1.5 to 5 standard deviations out, by the mean square over coordinates, where
    the basin of another mode is wide as an angle; the others up to 100, since the minimum may be
    narrow beside the rest.

    >>> best = Minimum(torch.zeros(2), 0.0, torch.eye(2))
    >>> points = far_points(best, 64, torch.Generator().manual_seed(0))
    >>> bool(points.sign().mean(0).abs().max() < 0.1)
    True
    """
    center = best.place
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    sobol = torch.quasirandom.SobolEngine(len(center) + 1, scramble=True, seed=seed)
    uniform = sobol.draw(number, dtype=torch.float64).clamp(1e-9, 1 - 1e-9).to(center)
    normal = math.sqrt(2) * torch.erfinv(2 * uniform[:, 1:] - 1)
    direction = math.sqrt(len(center)) * functional.normalize(normal)
    near, middle, far = _REACH
    part = uniform[:, :1] / _NEAR
    beyond = (uniform[:, :1] - _NEAR) / (1 - _NEAR)
    reach = torch.where(part < 1, near * (middle / near) ** part, middle * (far / middle) ** beyond)
    return center + reach * (direction @ best.factor.to(center).mT)


def in_basin(points: Tensor, heights: Tensor, of: Minimum) -> Tensor:
    """Which points ``[P, D]`` of potentials ``[P]`` lie in the basin of a minimum, ``[P]``.

    A point in it that has not quite arrived is as high as it is far.
    """
    factor = of.factor.double()
    offset = (points - of.place).mT.double()
    whitened = torch.linalg.solve_triangular(factor, offset, upper=False)
    reach = 1 + 0.5 * math.sqrt(len(of.place))
    inside: Tensor = 0.5 * whitened.square().sum(0) <= 3 * (heights - of.potential) + 0.5 * reach**2
    return inside


def search(objective: Objective, best: Minimum, number: int, generator: torch.Generator) -> Descent:
    """The ends of descents from ``number`` points far outside."""
    points = far_points(best, number, generator)
    finite = torch.isfinite(objective.gradient_at(points).potential)
    points = torch.where(finite.unsqueeze(1), points, best.place)
    return bfgs(objective.gradient_at, points, _GRADIENTS)


def on_the_way(objective: Objective, found: Descent, mode: Minimum) -> Minimum | None:
    """A point on the way to a mode around which there is far more mass than at the mode.

    Where scales are learned, the density may rise without end, or nearly so, into a spike that
    holds nothing: effects equal to each other and their scale zero. The descent passes where the
    mass is. Of some points on the path of the lowest chain, that of the largest Laplace mass is
    returned, if it holds at least ``e^3`` times that of the mode.

    Source: Zhang, Carpenter, Gelman and Vehtari, "Pathfinder", 2022, for choosing a point of the
    path of an optimiser; by the mass, which takes no draws, it is ours.
    """
    chain, number = found.lowest, min(_MOST_ON_THE_WAY, _HESSIANS // len(mode.place))
    path = torch.stack([points[chain] for points in found.path])
    moved = torch.ones(len(path), dtype=torch.bool, device=path.device)
    moved[1:] = (path.diff(dim=0) != 0).any(1)
    path = path[moved]
    rows = torch.linspace(0, len(path) - 1, min(number, len(path)) + 1).round().long().unique()[:-1]
    if not len(rows):
        return None
    heights = objective.gradient_at(path[rows]).potential
    known = [
        Minimum(place, float(height), factor_of_hessian(objective.hessian(place)))
        for place, height in zip(path[rows], heights, strict=True)
        if bool(torch.isfinite(height))
    ]
    best = max(known, key=lambda each: each.log_mass, default=mode)
    return best if best.log_mass > mode.log_mass + _FAR_MORE else None


def separate(objective: Objective, found: Descent, best: Minimum) -> list[Minimum]:
    """The minima apart from the best among the ends of descents, at most four, lowest first."""
    others: list[Minimum] = []
    known = [best]
    for k in found.potential.nan_to_num(nan=torch.inf).argsort().tolist():
        point, height = found.points[k : k + 1], found.potential[k : k + 1]
        if not float(height) <= best.potential + len(best.place) + 10 or len(others) == _MOST:
            break
        if any(bool(in_basin(point, height, each)) for each in known):
            continue
        factor = factor_of_hessian(objective.hessian(point[0]))
        known.append(Minimum(point[0], float(height), factor))
        slope = objective.gradient_at(point).gradient[0].double() @ factor
        arrived = 0.5 * float(slope.square().sum()) < _FALL
        if arrived and known[-1].log_mass > best.log_mass + _LEAST_LOG_MASS:
            others.append(known[-1])
    return others
