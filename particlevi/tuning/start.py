"""Where chains start: near a minimum, spread to where draws of the posterior lie."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.tuning.descent import Descent, GradientAt, Limited, adam, bfgs, newton
from particlevi.tuning.metric import factor_of_hessian
from particlevi.tuning.minima import Minimum, in_basin, on_the_way, search, separate
from particlevi.tuning.objective import Objective
from particlevi.tuning.variational import Normals, fit_normals, normals

__all__ = ["Start", "find_start", "spread"]

_MOST_PARAMETERS, _MOST_PARAMETERS_OF_A_MODULE = 500, 100
_OUTSIDE, _FEW = 96, 10  # so many points cover the directions of so few parameters
_ADAM_STEPS, _LEARNING_RATE = 300, 1e-2
_ON_THE_WAY = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Start(NamedTuple):
    """What looking for a start found.

    Attributes:
        points: starting points ``[P, D]``.
        metric: a factor ``[D, D]`` from the Hessian at the lowest minimum, diagonal if chains
            found different ones; with many parameters a scale ``[D]``, or None of a net.
        lowest: the lowest potential found.
        reason: all this in words.
        best: the lowest point ``[D]``.
        others: separate minima that only a search from far outside found; of points that are
            kept, those in which no chain begins.
        basins: numbers of the minima to which descents led and around which ``points`` lie, -1 for
            none that is known, ``[2, P]``; None where minima are not told apart.
        off_mode: chains begin away from the lowest point, which holds little mass.
    """

    points: Tensor
    metric: Tensor | None
    lowest: float
    reason: str
    best: Tensor
    others: int = 0
    basins: Tensor | None = None
    off_mode: bool = False


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
    if bool(good.any()):
        reason += f" {int(good.sum())} of them begin at the points given all the same."
    if not bool(good.all()):
        reason += (
            f" Of the points given, {int((~good).sum())} lie far above it, where no draws of the "
            "posterior lie; their chains begin as if no points were given."
        )
    kept = torch.where(good.unsqueeze(1), points, start.points)
    others = start.others
    if start.basins is not None:
        ends, starts = start.basins.unbind()
        begun = torch.where(good, ends, starts)
        others = len(set(starts.tolist()) - set(begun.tolist()))
    return start._replace(points=kept, reason=reason, others=others)


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
    """By Adam for a module; else by BFGS of limited memory, and then by normal laws.

    These count where they hold far more mass than those around what was found.
    """
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
    found = bfgs(
        objective.gradient_at, initial, memory=partial(Limited, first=first), keep=_ON_THE_WAY
    )
    heavier = _heavier(objective, found, generator)
    if heavier is not None:
        return _among_normals(objective, found, heavier, generator)
    lowest = float(found.potential.nan_to_num(nan=torch.inf).min())
    near = found.potential <= lowest + initial.shape[1] + 10
    centers = torch.where(near.unsqueeze(1), found.points, found.best)
    scale = _scale(objective, centers, generator)
    offset = scale * _normal(initial, generator)
    points = spread(objective.gradient_at, centers, offset, lowest)
    return Start(
        points,
        scale,
        lowest,
        f"{len(initial)} chains were minimised together, the lowest potential {lowest:.6g}; "
        f"{int((~near).sum())} that ended far above it begin there.",
        found.best,
    )


def _heavier(objective: Objective, found: Descent, generator: torch.Generator) -> Normals | None:
    """Normal laws with far more mass than that where the lowest chain of a descent ended.

    Each chain begins to look for them at the point of its path around which there is most mass.
    """
    gradient_at = objective.gradient_at
    laws = [
        normals(gradient_at, points, _scales(objective, points, generator), generator)
        for points in (*found.path, found.points)
    ]
    mean, scale, elbo = (torch.stack(part) for part in zip(*laws, strict=True))
    rows = elbo.argmax(0), torch.arange(elbo.shape[1], device=elbo.device)
    best = Normals(mean[rows], scale[rows], elbo[rows])
    return fit_normals(gradient_at, best, float(laws[-1].elbo[found.lowest]), generator)


def _among_normals(
    objective: Objective, found: Descent, heavier: Normals, generator: torch.Generator
) -> Start:
    """Chains where normal laws hold more mass than the law around the lowest point does."""
    center = heavier.mean[heavier.best]
    height = float(objective.gradient_at(center.unsqueeze(0)).potential)
    lowest = float(found.potential.nan_to_num(nan=torch.inf).min())
    offset = heavier.scale * _normal(heavier.mean, generator)
    return Start(
        spread(objective.gradient_at, heavier.mean, offset, height),
        heavier.scale.log().mean(0).exp(),
        height,
        f"{len(offset)} chains start where normal laws fitted to the density hold far more mass, "
        f"around a potential of {height:.6g}, than around the lowest point that minimising found, "
        f"{lowest:.6g}.",
        center,
        off_mode=True,
    )


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _scale(objective: Objective, centers: Tensor, generator: torch.Generator) -> Tensor:
    """Standard deviations ``[D]`` by the mean diagonal of the Hessians near ``[P, D]``."""
    scale = 1e-3 * (1 + centers.abs().mean(0))
    for _ in range(3):  # differences over the width of the law itself
        curvature = objective.diagonals(centers, 0.1 * scale, generator).nanmean(0)
        scale = _width(curvature.nan_to_num(0.0), scale)
    return scale


def _scales(objective: Objective, centers: Tensor, generator: torch.Generator) -> Tensor:
    """The same near each of them, ``[P, D]``."""
    scale = 1e-3 * (1 + centers.abs())
    for _ in range(3):
        scale = _width(objective.diagonals(centers, 0.1 * scale, generator).nan_to_num(0.0), scale)
    return scale


def _width(curvature: Tensor, scale: Tensor) -> Tensor:
    """Standard deviations by curvatures ``[..., D]``; those of before where these are too small."""
    size = curvature.abs()
    floor = torch.finfo(scale.dtype).eps * size.amax(-1, keepdim=True)
    return torch.where(size > floor, torch.maximum(size, floor).rsqrt(), scale)


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
    offset = (widths.to(initial) @ _normal(initial, generator).unsqueeze(-1)).squeeze(-1)
    points = spread(objective.gradient_at, centers, offset, best.potential)
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
        torch.stack([torch.where(near, seen, -1), mode]),
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
    offset = _normal(initial, generator) @ inside.factor.to(initial).mT
    return Start(
        spread(objective.gradient_at, inside.place.expand_as(offset), offset, inside.potential),
        inside.factor,
        inside.potential,
        f"{len(initial)} chains start around a point on the way to the lowest potential, "
        f"{mode.potential:.6g}, which is a spike: by Laplace's approximation there is "
        f"e^{inside.log_mass - mode.log_mass:.0f} times as much mass around that point, of "
        f"potential {inside.potential:.6g}.",
        inside.place,
        off_mode=True,
    )


def _minimum(objective: Objective, point: Tensor) -> Minimum:
    """Where Newton steps from a point lead."""
    place, hessian, _ = newton(objective.gradient_at, objective.hessian, point)
    height = float(objective.gradient_at(place.unsqueeze(0)).potential)
    return Minimum(place, height, factor_of_hessian(hessian))


def spread(gradient_at: GradientAt, centers: Tensor, offset: Tensor, lowest: float) -> Tensor:
    """Points ``[P, D]`` around centers that lie where draws of the posterior would.

    A draw lies about ``D / 2`` nats above the minimum, with a standard deviation of
    ``sqrt(D / 2)``. A point more than ``D + 10`` above it is brought nearer to its center by
    halves, eight times at most.

    Args:
        gradient_at: points ``[P, D]`` to gradient and potential.
        centers: minima ``[P, D]``.
        offset: draws of the Gaussian around them less the centers, ``[P, D]``.
        lowest: potential of the lowest minimum.
    """
    share = torch.ones_like(offset[:, :1])
    for _ in range(8):
        height = gradient_at(centers + share * offset).potential - lowest
        far = ~(height <= offset.shape[1] + 10)
        if not bool(far.any()):
            break
        share = torch.where(far.unsqueeze(-1), 0.5 * share, share)
    return centers + share * offset
