"""Step sizes from a rate and the noise of the gradient, for methods with a rule of their own.

With r the largest rate of the drift (stable for ``h r < 2`` overdamped, ``h^2 r < 4`` with
momentum) and ``s^2`` the variance of the gradient noise over the temperature, averaged over
parameters, in the coordinates in which the method moves::

    overdamped    h = min(0.1 * 2 / r,        2 b / s^2)
    flow          h = min(0.25 * 2 / r,       2 b / s^2)
    momentum      h = min(0.25 * 2 / sqrt(r), 2 b f / s^2)

with ``b = 0.1`` the excess of the temperature that is tolerated. A flow that injects no noise has
fixed points that do not depend on h, so that it may take longer steps.
"""

from __future__ import annotations

import math

__all__ = ["LESS_WHERE_HOT", "flow_step", "momentum_step", "narrowest_width", "overdamped_step"]

LESS_WHERE_HOT = "; less where minibatches heat by more than 10 %."
_EXCESS = 0.1


def overdamped_step(rate: float, noise: float) -> float:
    """Of a method that injects noise: its variance is 11 % too wide in the stiffest direction.

    >>> overdamped_step(2.0, 0.0), overdamped_step(2.0, 10.0)
    (0.1, 0.02)
    """
    return min(0.2 / _checked(rate), _tolerated(noise))


def flow_step(rate: float, noise: float) -> float:
    """Of a flow without noise of its own.

    >>> flow_step(2.0, 0.0)
    0.25
    """
    return min(0.5 / _checked(rate), _tolerated(noise))


def momentum_step(curvature: float, noise: float, friction: float) -> float:
    """Of a method with momentum.

    >>> momentum_step(4.0, 0.0, 1.0), momentum_step(4.0, 10.0, 1.0)
    (0.25, 0.02)
    """
    return min(0.5 / math.sqrt(_checked(curvature)), friction * _tolerated(noise))


def narrowest_width(curvature: float) -> float:
    """``1 / sqrt(l)``, the standard deviation in the stiffest direction.

    >>> narrowest_width(4.0)
    0.5
    """
    return 1 / math.sqrt(_checked(curvature))


def _checked(rate: float) -> float:
    if not math.isfinite(rate) or rate <= 0:
        raise ValueError(
            f"The largest rate at the starting points is {rate:.3g}, so no step size follows from "
            "it: give step_size, or starting points near a mode (initial=)."
        )
    return rate


def _tolerated(noise: float) -> float:
    return 2 * _EXCESS / noise if noise else math.inf
