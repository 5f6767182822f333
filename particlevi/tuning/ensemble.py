"""The whole ensemble together: many chains brought to where the posterior lies, without a test.

All chains share one step size h and one decoherence length L, set after every step from means over
chains. In coordinates z of a diagonal metric, with the mean m and variance v of the ensemble and
the gradient g of the potential,

    E_i = mean (z_i - m_i) g_i P / (P - 1)        1 on the posterior, by integration by parts
    B   = mean_i (1 - E_i)^2                      how far the ensemble still is
    h  <- h clip((0.1 B^(3/8) / E)^(1/6), .3, 3)  with E the variance over chains of dE, over D
    L   = 1.9 sqrt(D) sqrt(mean_i v_i)

so that steps are long while the ensemble is far away and shorten as it arrives. Directions begin
outwards in coordinates where the ensemble is too narrow, inwards where it is too wide. A chain
whose step is not finite stays, and h is halved. It ends when the second moments stand still.

What it leaves is near the posterior, and no more: an adjusted sampler goes on from there.

Reference: Robnik, "Late adjusted parallel sampler", 2026. Centring E at the ensemble's mean, the
metric of the start, and the tolerance for few chains are ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.samplers._metric import Metric
from particlevi.samplers._microcanonical import Point, direction, flow, refresh
from particlevi.tuning.descent import GradientAt
from particlevi.typing import Gradient

__all__ = ["Approach", "approach", "equipartition", "next_step", "wanted_error"]

_FIRST_STEP = 0.01
_SHARE_WATCHED = 0.2
_TOLERANCE = 0.01


class Approach(NamedTuple):
    """Where an ensemble arrived.

    Attributes:
        points: ``[P, D]``.
        scale: standard deviations over chains ``[D]``.
        bias: B at the end.
        num_steps: that it took, a gradient of every chain each.
    """

    points: Tensor
    scale: Tensor
    bias: float
    num_steps: int


def equipartition(z: Tensor, gradient: Tensor) -> Tensor:
    """``E_i [D]`` of an ensemble ``[P, D]``: the mean of ``(z_i - m_i) g_i P / (P - 1)``.

    >>> z = torch.randn(100000, 1, generator=torch.Generator().manual_seed(0))
    >>> bool((equipartition(z, z) - z.var()).abs() < 1e-4)
    True
    """
    return ((z - z.mean(0)) * gradient).sum(0) / (len(z) - 1)


def wanted_error(bias: float) -> float:
    """The energy error per dimension that is worth it at a bias B: ``0.1 B^(3/8)``.

    >>> round(wanted_error(1e-4), 5)
    0.00316
    """
    return 0.1 * math.pow(bias, 3 / 8)


def next_step(step: float, error: float, wanted: float) -> float:
    """The step size at which the energy error, of sixth order in it, is what is wanted.

    >>> next_step(1.0, 64e-4, 1e-4)
    0.5
    """
    if not error > 0:
        return 3 * step
    return step * min(3.0, max(0.3, math.pow(wanted / error, 1 / 6)))


def approach(
    gradient_at: GradientAt,
    start: Tensor,
    scale: Tensor,
    generator: torch.Generator,
    max_steps: int = 300,
) -> Approach:
    """Bring an ensemble ``[P, D]`` near the posterior.

    Args:
        gradient_at: points ``[P, D]`` to gradient and potential.
        start: ``[P, D]``, at least two points and two parameters, of finite potential.
        scale: of the metric, ``[D]``.
        generator: of the refreshed directions.
        max_steps: at most so many.
    """
    num, size = start.shape
    metric, move = Metric(scale=scale.to(start)), flow("leapfrog")

    def slope(z: Tensor) -> Gradient:
        return metric.slope(gradient_at(metric.unwhiten(z)))

    def normal() -> Tensor:
        return torch.randn(start.shape, generator=generator, dtype=start.dtype, device=start.device)

    z = metric.whiten(start)
    g, potential = slope(z)
    inwards = equipartition(z, g) >= 1
    u = direction(torch.where(inwards, -g, g) + 1e-12 * normal())
    here = Point(z, u, g, potential)
    h, length = _FIRST_STEP * math.sqrt(size), math.inf
    watched, bias = max(2, int(_SHARE_WATCHED * max_steps)), math.inf
    seen: list[Tensor] = []
    center, steps = z.mean(0), 0
    while steps < max_steps:
        half = start.new_tensor(0.5 * h / length)
        there = here._replace(velocity=refresh(here.velocity, normal(), half))
        there, change = move(there, slope, start.new_tensor(h))
        there = there._replace(velocity=refresh(there.velocity, normal(), half))
        steps += 1
        sound = torch.isfinite(change) & torch.isfinite(there.gradient).all(-1)
        fresh = here._replace(velocity=direction(normal()))
        here = Point(*(_where(sound, a, b) for a, b in zip(there, fresh, strict=True)))
        z = here.position
        length = 1.9 * math.sqrt(size) * float(z.var(0).mean().sqrt())
        bias = float((1 - equipartition(z, here.gradient)).square().mean())
        if bool(sound.all()):
            h = next_step(h, float(change.var()) / size, wanted_error(bias))
        else:
            h = 0.5 * h
        seen = [*seen, (z - center).square().mean(0)][-watched:]
        if len(seen) == watched and _still(torch.stack(seen), num):
            break
    points = metric.unwhiten(here.position)
    return Approach(points, points.std(0), bias, steps)


def _where(sound: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(sound.unsqueeze(-1) if new.ndim == 2 else sound, new, old)


def _still(moments: Tensor, num_chains: int) -> bool:
    """Whether second moments ``[T, D]`` vary over time no more than P chains of a law at rest do.

    The relative variance in time of a mean over P normal chains is at most ``2 / P``.
    """
    varied = moments.var(0) / moments.mean(0).square()
    return float(varied.max()) <= max(_TOLERANCE, 6 / num_chains)
