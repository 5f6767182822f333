"""Where the mass of a density is, by normal laws fitted to it.

A mode may lie far from every draw: where parameters are learned that scale many others, the density
is highest where these fit the data too well. The lower bound of the evidence tells the two apart,

    ELBO = E_q[-U] + sum_i log s_i + D / 2 log(2 pi e),    q = N(m, diag(s^2)),

and each chain climbs it with a law of its own. Its gradient in m is ``-E_q[g]``, and where it is
highest ``s_i^-2 = E_q[H_ii]``, which is ``E_q[z_i g_i] / s_i`` at ``m + s z``. Draws come in pairs,
``m +- s z``, so that no gradient at m counts as curvature.

Sources: Opper and Archambeau, "The variational Gaussian approximation revisited", 2009, for the
gradients; Zhang, Carpenter, Gelman and Vehtari, "Pathfinder", 2022, for the bound as the judge of
where chains begin; Kingma and Ba, "Adam: a method for stochastic optimization", 2015, for the
steps, here in units of s.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.tuning.descent import GradientAt

__all__ = ["Normals", "fit_normals", "normals"]

_PHASE, _MOST_PHASES = 50, 20
_RATE, _MEMORY, _SLOW_MEMORY = 0.3, 0.9, 0.99
_FORGOTTEN, _MOST_CHANGE = 0.03, 1.25
_GAIN, _LAST_GAIN = 0.1, 0.01


class Normals(NamedTuple):
    """Normal laws of means and standard deviations ``[P, D]``, and their ELBO ``[P]`` in nats."""

    mean: Tensor
    scale: Tensor
    elbo: Tensor

    @property
    def best(self) -> int:
        """The number of the law of the highest bound."""
        return int(self.elbo.argmax())

    def unless_behind(self, most: float) -> Tensor:
        """The numbers of the laws ``[P]``, that of the best for those so many nats below it."""
        rows = torch.arange(len(self.elbo), device=self.elbo.device)
        behind = ~(self.elbo >= self.elbo[self.best] - most)
        return torch.where(behind, self.best, rows)


class _Pairs(NamedTuple):
    """What pairs of draws tell: gradients in units of s, curvatures, ELBO, and whether finite."""

    slope: Tensor
    curvature: Tensor
    elbo: Tensor
    finite: Tensor


def _drawn(
    gradient_at: GradientAt, mean: Tensor, scale: Tensor, generator: torch.Generator
) -> _Pairs:
    z = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    (after, upper), (before, lower) = (gradient_at(mean + part) for part in (scale * z, -scale * z))
    finite = torch.isfinite(upper + lower) & torch.isfinite(after + before).all(-1)
    constant = 0.5 * mean.shape[1] * (math.log(2 * math.pi) + 1)
    elbo = -0.5 * (upper + lower) + scale.log().sum(-1) + constant
    return _Pairs(
        0.5 * (after + before) * scale,
        z * (after - before) / (2 * scale),
        torch.where(finite, elbo, -math.inf),
        finite.unsqueeze(-1),
    )


def normals(
    gradient_at: GradientAt, mean: Tensor, scale: Tensor, generator: torch.Generator
) -> Normals:
    """Laws of given means and standard deviations ``[P, D]`` with their bounds, by four pairs."""
    elbos = [_drawn(gradient_at, mean, scale, generator).elbo for _ in range(4)]
    return Normals(mean, scale, torch.stack(elbos).mean(0))


def fit_normals(
    gradient_at: GradientAt, start: Normals, least: float, generator: torch.Generator
) -> Normals | None:
    """Laws that hold far more mass than a bound tells; None if 50 steps find no such.

    Far more is a tenth of a nat for each parameter. A chain that is left ``D + 10`` nats behind the
    best goes on from there, and at the end one that is ``D / 10 + 10`` behind takes its law. The
    fit ends when 50 steps win less than a hundredth of a nat for each parameter. A step takes two
    gradients of every chain.

    Args:
        gradient_at: points ``[P, D]`` to gradient and potential.
        start: laws to begin with.
        least: the ELBO to be exceeded.
        generator: of the draws.

    >>> from particlevi.typing import Gradient
    >>> def bowl(x):
    ...     curvature = torch.tensor([1.0, 100.0])
    ...     return Gradient(curvature * (x - 1), 0.5 * (curvature * (x - 1).square()).sum(-1))
    >>> generator = torch.Generator().manual_seed(0)
    >>> start = normals(bowl, torch.zeros(1, 2), torch.full((1, 2), 0.01), generator)
    >>> found = fit_normals(bowl, start, float(start.elbo), generator)
    >>> bool((found.scale * torch.tensor([1.0, 10.0]) - 1).abs().max() < 0.3)
    True
    """
    mean, scale = start.mean, start.scale
    size, found, best = mean.shape[1], start, float(start.elbo.max())
    precision = scale.square().reciprocal()
    momentum, squares = torch.zeros_like(mean), torch.zeros_like(mean)
    for phase in range(_MOST_PHASES):
        elbos = []
        for step in range(phase * _PHASE + 1, (phase + 1) * _PHASE + 1):
            drawn = _drawn(gradient_at, mean, scale, generator)
            elbos.append(drawn.elbo)
            slope = torch.where(drawn.finite, drawn.slope, 0.0)
            momentum = _MEMORY * momentum + (1 - _MEMORY) * slope
            squares = _SLOW_MEMORY * squares + (1 - _SLOW_MEMORY) * slope.square()
            average = momentum / (1 - _MEMORY**step)
            deviation = (squares / (1 - _SLOW_MEMORY**step)).sqrt()
            mean = mean - _RATE * scale * average / (1 + deviation)
            moved = (1 - _FORGOTTEN) * precision + _FORGOTTEN * drawn.curvature
            moved = torch.where(drawn.finite, moved, _MOST_CHANGE * precision)
            precision = moved.clamp(precision / _MOST_CHANGE, precision * _MOST_CHANGE)
            scale = precision.rsqrt()
        found = Normals(mean, scale, torch.stack(elbos[_PHASE // 2 :]).mean(0))
        now = float(found.elbo.max())
        if phase == 0 and not now > least + _GAIN * size:
            return None
        if not now > best + _LAST_GAIN * size:
            break
        best = now
        rows = found.unless_behind(size + 10)
        parts = (mean, scale, precision, momentum, squares, found.elbo)
        mean, scale, precision, momentum, squares, elbo = (part[rows] for part in parts)
        found = Normals(mean, scale, elbo)
    return Normals(*(part[found.unless_behind(_GAIN * size + 10)] for part in found))
