"""Choosing a step size from the curvature of the potential and the noise of its gradient.

With ``l`` the largest eigenvalue of the Hessian of U and ``s^2`` the variance of the minibatch
gradient, averaged over parameters,

    overdamped (sgld ...)     stable for h l < 2;     on a Gaussian SGLD's variance is too large by
                              h l / (2 - h l) in the stiffest direction, and the noise adds
                              h s^2 / (2 T) relative to T where h l is small
    momentum (sghmc ...)      stable for h^2 l < 4;   the noise adds about h s^2 / (2 f T)

so the suggestions are ``h = min(a 2 / l, 2 b T / s^2)`` and ``h = min(a 2 / sqrt(l), 2 b f T /
s^2)``, with the fraction ``a`` of the stable range (0.025 overdamped, where SGLD's variance is
2.6 % too large in the stiffest direction; 0.25 for momentum methods) and the tolerated excess
``b = 0.1`` of the temperature. ``friction=None`` has the friction chosen too: ``sqrt(l) / 10``,
which goes with the scale of the target, and raised until ``h = a 2 / sqrt(l)`` heats by no more
than b, for as long as ``f h <= 3``: a slow mode then moves as fast as under a shorter step.

The masks of structured dropout are noise too: of variance
``k l T`` in the stiffest direction, with the estimator's ``k = Var r^2 / (L (E r)^2)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi import _html
from particlevi._checks import check_flag, check_positive
from particlevi.curvature.largest import largest_curvature
from particlevi.data import DataLike, as_data, as_particles
from particlevi.gradients.minibatch import as_estimator
from particlevi.noise.variance import gradient_variance
from particlevi.potentials.potential import ModelPotential
from particlevi.samplers._assemble import Target
from particlevi.tuning.bounded_heat import step_and_friction

__all__ = ["StepSize", "suggest_step_size"]

OVERDAMPED_FRACTION = 0.025
MOMENTUM_FRACTION = 0.25
TEMPERATURE_EXCESS = 0.1
FRICTION_OF_CURVATURE = 0.1


_NUMBERS = ("overdamped", "momentum", "friction", "curvature", "gradient_noise")


class StepSize(NamedTuple):
    """Step sizes and what they rest on.

    Attributes:
        overdamped: for ``sgld``, ``leimkuhler_matthews``, ``sgd``.
        momentum: for ``sghmc``, ``baoab``, ``obabo``, ``sgnht``, ``hmc``, with that friction.
        curvature: largest eigenvalue of the Hessian that was found.
        gradient_noise: variance of the minibatch gradient, averaged over parameters, 0 on all the
            data; plus that of an estimator's masks in the stiffest direction.
        reason: all this in words.
        friction: f that goes with the momentum step.
    """

    overdamped: float
    momentum: float
    curvature: float
    gradient_noise: float
    reason: str
    friction: float

    def __repr__(self) -> str:
        return f"StepSize(overdamped={self.overdamped:.3g}, momentum={self.momentum:.3g})"

    def _repr_html_(self) -> str:
        values = {name: f"{getattr(self, name):.4g}" for name in _NUMBERS}
        return _html.block("Step sizes", _html.notes([("", self.reason)]), _html.pairs(values))


def suggest_step_size(
    target: Target,
    data: DataLike = None,
    *,
    batch_size: int | None = None,
    at: Tensor | None = None,
    temperature: float = 1.0,
    friction: float | None = 1.0,
    verbose: bool = True,
) -> StepSize:
    """Step sizes from the largest curvature and the level of the gradient noise; prints why.

    The curvature depends on the place: give points that training has reached, such as the last
    draws of a short run (``at=draws.particles[:, -1]``). Fresh starting points of a net are often
    flatter than its modes.

    Args:
        target: a potential, or a gradient estimator.
        data: as given to ``sample``; None for a density without data.
        batch_size: B of the run to come; all the data if absent, and then there is no noise. A
            loader has its own.
        at: where, ``[P, D]``; two starting points of the potential if absent.
        temperature: T.
        friction: f of the momentum method; None to have it chosen, with its step.
        verbose: print the reason.

    Raises:
        ValueError: an argument out of its range; a potential that curves upwards nowhere at these
            points, or whose curvature overflows or is too large for the particles' dtype.

    >>> import particlevi as pvi
    >>> bowl = pvi.from_log_density(lambda x: -x[0] ** 2 - 3 * x[1] ** 2, num_params=2)
    >>> found = suggest_step_size(bowl, friction=None, verbose=False)
    >>> round(found.overdamped, 4), round(found.momentum, 4), round(found.friction, 4)
    (0.0083, 0.2041, 0.2449)
    """
    check_flag("verbose", verbose)
    check_positive("temperature", temperature)
    if friction is not None:
        check_positive("friction", friction)
    model: ModelPotential = as_estimator(target).potential
    given = at is not None
    points = model.init(2) if at is None else as_particles(at, model, model.num_params, "at")
    checked = as_data(data, model)
    source = checked.batches(num_particles=len(points), batch_size=batch_size)
    curvature = largest_curvature(model, points, checked)
    if not math.isfinite(curvature) or curvature <= 0:
        raise ValueError(
            f"The largest curvature at these points is {curvature:.3g}, so no step size follows "
            "from it: give points near a mode (at=draws.particles[:, -1])."
        )
    _check_resolved(model, points, curvature, temperature)
    noise = 0.0
    if source.law not in ("none", "all"):
        noise = float(gradient_variance(target, points, checked, batch_size=batch_size).mean())
    masks = getattr(as_estimator(target), "mask_noise", 0.0) * curvature * temperature
    noise += masks
    stable = 2 / curvature, 2 / math.sqrt(curvature)
    tolerated = math.inf if noise == 0 else 2 * TEMPERATURE_EXCESS * temperature / noise
    overdamped = min(OVERDAMPED_FRACTION * stable[0], tolerated)
    wide = MOMENTUM_FRACTION * stable[1]
    chosen = friction is None
    if friction is None:
        base = FRICTION_OF_CURVATURE * math.sqrt(curvature)
        momentum, friction = step_and_friction(wide, base, 0.5 * tolerated)
    else:
        momentum = min(wide, tolerated * friction)
    where = "the points given" if given else "two starting points"
    reason = (
        f"Largest curvature at {where}: {curvature:.4g}. Stable: h < {stable[0]:.3g} overdamped, "
        f"h < {stable[1]:.3g} with momentum.\n"
    )
    if noise:
        reason += (
            f"Gradient noise{_origin(source.batch_size, noise, masks)}: variance {noise:.4g} per "
            f"parameter. It heats by less than {TEMPERATURE_EXCESS:.0%} for h < {tolerated:.3g} "
            f"overdamped, h < {max(momentum, tolerated * friction):.3g} with momentum and friction "
            f"{friction:.3g}.\n"
        )
    limits = [
        "noise" if tolerated < OVERDAMPED_FRACTION * stable[0] else "curvature",
        "noise" if momentum < wide else "curvature",
    ]
    reason += (
        f"Suggested: h = {overdamped:.3g} overdamped (limited by the {limits[0]}), "
        f"h = {momentum:.3g} with momentum (limited by the {limits[1]})."
    )
    if chosen:
        reason += f" The friction that goes with it is {friction:.3g}."
    if not chosen and limits[1] == "noise":
        longer, more = step_and_friction(wide, friction, 0.5 * tolerated)
        reason += (
            f" With a friction of {more:.3g} it could be h = {longer:.3g} at the same heating "
            "(friction=None)."
        )
    if verbose and not _html.in_notebook():
        print(reason)
    return StepSize(overdamped, momentum, curvature, noise, reason, friction)


def _origin(batch_size: int | None, noise: float, masks: float) -> str:
    """Where the noise comes from, in words."""
    parts = [f"batches of {batch_size}"] if noise > masks else []
    return " of " + " and of ".join([*parts, "masks"] if masks else parts)


def _check_resolved(
    model: ModelPotential, points: Tensor, curvature: float, temperature: float
) -> None:
    """The width of the law in the stiffest direction is above the spacing of the numbers."""
    width = math.sqrt(temperature / curvature)
    spacing = torch.finfo(model.dtype).eps * float(points.abs().double().square().mean().sqrt())
    if width < spacing:
        raise ValueError(
            f"The largest curvature at these points is {curvature:.3g}, so the law would be "
            f"{width:.2g} wide there, below the spacing {spacing:.2g} of {model.dtype} numbers of "
            "that size: no step can be right. Give points near a mode, rescale the parameters, or "
            "use float64."
        )
