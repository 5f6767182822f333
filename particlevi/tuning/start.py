"""Where chains start: near a minimum, spread to where draws of the posterior lie."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.tuning.descent import GradientAt, Limited, adam, bfgs, newton
from particlevi.tuning.metric import factor_of_hessian
from particlevi.tuning.minima import Minimum, in_basin, on_the_way, search, separate
from particlevi.tuning.objective import Objective

__all__ = ["Start", "find_start", "spread"]

_MOST_PARAMETERS, _MOST_PARAMETERS_OF_A_MODULE = 500, 100
_OUTSIDE, _FEW = 96, 10  # so many points cover the directions of so few parameters
_ADAM_STEPS, _LEARNING_RATE = 300, 1e-2


class Start(NamedTuple):
    """What looking for a start found.

    Attributes:
        points: starting points ``[P, D]``.
        metric: a factor ``[D, D]`` from the Hessian at the lowest minimum, diagonal if chains
            found different ones; with many parameters a scale ``[D]``, or None of a net.
        lowest: the lowest potential found.
        reason: all this in words.
        best: the lowest point ``[D]``.
        others: separate minima that only a search from far outside found.
    """

    points: Tensor
    metric: Tensor | None
    lowest: float
    reason: str
    best: Tensor
    others: int = 0


def find_start(
    objective: Objective,
    initial: Tensor,
    generator: torch.Generator,
    keep: bool = False,
) -> Start:
    """Minimise from all points at once and spread the chains around what was found.

    Chains that ended more than ``D + 10`` nats above the lowest minimum go there.

    Args:
        objective: the potential on all its data.
        initial: points ``[P, D]`` to begin from; those where the potential is not finite are
            replaced by others.
        generator: of the randomness of the spread.
        keep: chains begin at ``initial`` itself where that is no more than ``D + 10`` nats above
            the lowest minimum.

    Raises:
        ValueError: a potential that is finite at none of the points.
    """
    size = initial.shape[1]
    points, heights, lost = _finite(objective, initial)
    most = _MOST_PARAMETERS
    if objective.potential.model is not None:
        most = 0 if objective.is_net else _MOST_PARAMETERS_OF_A_MODULE
    start = (_among_few if size <= most else _among_many)(objective, points, generator)
    reason = start.reason
    if lost:
        reason += f" {lost} were begun where others were, the potential not being finite there."
    if not keep:
        return start._replace(reason=reason)
    good = heights <= start.lowest + size + 10
    if not bool(good.all()):
        reason += (
            f" Of the points given, {int((~good).sum())} lie far above it, where no draws of the "
            "posterior lie; their chains begin as if no points were given."
        )
    kept = torch.where(good.unsqueeze(1), points, start.points)
    return start._replace(points=kept, reason=reason)


def _finite(objective: Objective, initial: Tensor) -> tuple[Tensor, Tensor, int]:
    """Points and potentials, in place of those that are not finite others, and their number."""
    heights = objective.gradient_at(initial).potential
    good = torch.isfinite(heights).nonzero().flatten()
    if not len(good):
        raise ValueError(
            f"The potential is not finite at the start for any of the {len(initial)} particles. "
            "Choose other starting points (initial=) inside the support, or rescale the data."
        )
    rows = torch.arange(len(initial), device=initial.device)
    bad = ~torch.isfinite(heights)
    rows[bad] = good[torch.arange(int(bad.sum()), device=initial.device) % len(good)]
    return initial[rows], heights[rows], int(bad.sum())


def _among_many(objective: Objective, initial: Tensor, generator: torch.Generator) -> Start:
    """By Adam for a module; else by BFGS of limited memory, and the diagonal of the Hessian."""
    if objective.potential.model is not None:
        found = adam(objective.gradient_at, initial, _ADAM_STEPS, _LEARNING_RATE)
        lowest = float(found.potential.min())
        return Start(
            found.points,
            None,
            lowest,
            f"{len(initial)} chains start where {_ADAM_STEPS} steps of Adam led them, the lowest "
            f"potential {lowest:.6g}.",
            found.best,
        )
    first = _scale(objective, initial, generator).square()
    found = bfgs(objective.gradient_at, initial, memory=partial(Limited, first=first))
    lowest = float(found.potential.nan_to_num(nan=torch.inf).min())
    near = found.potential <= lowest + initial.shape[1] + 10
    centers = torch.where(near.unsqueeze(1), found.points, found.best)
    scale = _scale(objective, centers, generator)
    normal = torch.randn(
        initial.shape, generator=generator, dtype=initial.dtype, device=initial.device
    )
    points = spread(objective.gradient_at, centers, scale, normal, lowest)
    return Start(
        points,
        scale,
        lowest,
        f"{len(initial)} chains were minimised together, the lowest potential {lowest:.6g}; "
        f"{int((~near).sum())} that ended far above it begin there.",
        found.best,
    )


def _scale(objective: Objective, centers: Tensor, generator: torch.Generator) -> Tensor:
    """Standard deviations ``[D]`` by the diagonal of the Hessian near minima ``[P, D]``."""
    scale = 1e-3 * (1 + centers.abs().mean(0))
    for _ in range(3):  # differences over the width of the law itself
        curvature = objective.diagonal(centers, 0.1 * scale, generator).abs()
        floor = torch.finfo(scale.dtype).eps * curvature.max()
        scale = torch.where(curvature > floor, curvature.clamp(min=floor).rsqrt(), scale)
    return scale


def _among_few(objective: Objective, initial: Tensor, generator: torch.Generator) -> Start:
    """By BFGS and Newton steps, with a search for minima that no chain found."""
    size = initial.shape[1]
    found = bfgs(objective.gradient_at, initial)
    best = _minimum(objective, found.best)
    inside = on_the_way(objective, found, best)
    if inside is not None:
        return _around(objective, initial, inside, best, generator)
    outside = search(objective, best, _OUTSIDE if size <= _FEW else _OUTSIDE // 3, generator)
    if float(outside.potential.nan_to_num(nan=torch.inf).min()) < best.potential - 1:
        other = _minimum(objective, outside.best)
        best = max(best, other, key=lambda minimum: minimum.log_mass)
    near = found.potential <= best.potential + size + 10
    centers = found.points.clone()
    others = separate(objective, outside, best)
    modes = [best, *others]
    seen = torch.full_like(found.potential, -1, dtype=torch.long)
    for k, each in reversed(list(enumerate(modes))):
        seen[in_basin(found.points, found.potential, each) & near] = k
    unseen = sum(not bool((seen == k).any()) for k in range(len(modes)))
    mode = _shared_out(torch.where(near, seen, 0), len(modes))
    same = float((mode[near] == 0).double().mean()) if bool(near.any()) else 1.0
    one = same >= 0.8 and not others
    metric = best.factor if one else best.factor.square().sum(1).sqrt().diag()
    widths = metric.expand(len(initial), size, size).clone() if others else metric
    for k, each in enumerate(modes):
        centers[(mode == k) & (seen != k)] = each.place
        if others:
            widths[mode == k] = each.factor.to(widths)
    normal = torch.randn(
        initial.shape, generator=generator, dtype=initial.dtype, device=initial.device
    )
    points = spread(objective.gradient_at, centers, widths, normal, best.potential)
    kind = "one minimum" if one else "different minima"
    if unseen:
        kind += f", {unseen} of them by a search from far outside"
    return Start(
        points,
        metric,
        best.potential,
        f"{len(initial)} chains were minimised together and found {kind}, the lowest potential "
        f"{best.potential:.6g}; {int((~near).sum())} that ended far above it begin there.",
        best.place,
        unseen,
    )


def _shared_out(mode: Tensor, number: int) -> Tensor:
    """Modes ``[P]`` of chains, -1 a minimum of its own, such that each of a number has some.

    Modes without a chain share every other chain of the fullest one.
    """
    empty = [k for k in range(number) if not bool((mode == k).any())]
    if empty:
        mode = mode.clone()
        for k, row in enumerate((mode == mode.mode().values).nonzero().flatten()[1::2].tolist()):
            mode[row] = empty[k % len(empty)]
    return mode


def _around(
    objective: Objective,
    initial: Tensor,
    inside: Minimum,
    mode: Minimum,
    generator: torch.Generator,
) -> Start:
    """Chains around a point of the descent, since the mode is a spike that holds little."""
    normal = torch.randn(
        initial.shape, generator=generator, dtype=initial.dtype, device=initial.device
    )
    centers = inside.place.expand_as(initial)
    return Start(
        spread(objective.gradient_at, centers, inside.factor, normal, inside.potential),
        inside.factor,
        inside.potential,
        f"{len(initial)} chains start around a point on the way to the lowest potential, "
        f"{mode.potential:.6g}, which is a spike: by Laplace's approximation there is "
        f"e^{inside.log_mass - mode.log_mass:.0f} times as much mass around that point, of "
        f"potential {inside.potential:.6g}.",
        inside.place,
    )


def _minimum(objective: Objective, point: Tensor) -> Minimum:
    """Where Newton steps from a point lead."""
    place, hessian, _ = newton(objective.gradient_at, objective.hessian, point)
    height = float(objective.gradient_at(place.unsqueeze(0)).potential)
    return Minimum(place, height, factor_of_hessian(hessian))


def spread(
    gradient_at: GradientAt, centers: Tensor, metric: Tensor, normal: Tensor, lowest: float
) -> Tensor:
    """Points ``[P, D]`` around centers that lie where draws of the posterior would.

    A draw lies about ``D / 2`` nats above the minimum, with a standard deviation of
    ``sqrt(D / 2)``. A point more than ``D + 10`` above it is brought nearer to its center by
    halves, eight times at most.

    Args:
        gradient_at: points ``[P, D]`` to gradient and potential.
        centers: minima ``[P, D]``.
        metric: a factor ``[D, D]`` of the Gaussian around them, one for each ``[P, D, D]``, or a
            scale ``[D]``.
        normal: standard normal numbers ``[P, D]``.
        lowest: potential of the lowest minimum.
    """
    metric = metric.to(normal)
    offset = normal * metric if metric.ndim == 1 else (metric @ normal.unsqueeze(-1)).squeeze(-1)
    share = torch.ones_like(normal[:, :1])
    for _ in range(8):
        height = gradient_at(centers + share * offset).potential - lowest
        far = ~(height <= normal.shape[1] + 10)
        if not bool(far.any()):
            break
        share = torch.where(far.unsqueeze(-1), 0.5 * share, share)
    return centers + share * offset
