"""Where chains start: near a minimum, spread to where draws of the posterior lie."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.tuning.descent import GradientAt, adam, bfgs, newton
from particlevi.tuning.metric import factor_of_hessian
from particlevi.tuning.objective import Objective

__all__ = ["Start", "find_start", "spread"]

_MOST_PARAMETERS, _MOST_PARAMETERS_OF_A_MODULE = 500, 100
_ADAM_STEPS, _LEARNING_RATE = 300, 1e-2


class Start(NamedTuple):
    """What looking for a start found.

    Attributes:
        points: starting points ``[P, D]``.
        metric: a factor ``[D, D]`` from the Hessian at the lowest minimum, diagonal if chains
            found different ones; None with many parameters.
        lowest: the lowest potential found.
        reason: all this in words.
        best: the lowest point ``[D]``.
    """

    points: Tensor
    metric: Tensor | None
    lowest: float
    reason: str
    best: Tensor


def find_start(objective: Objective, initial: Tensor, generator: torch.Generator) -> Start:
    """Minimise from all points at once and spread the chains around what was found.

    Chains that ended more than ``D + 10`` nats above the lowest minimum go there.

    Args:
        objective: the potential on all its data.
        initial: points ``[P, D]`` to begin from.
        generator: of the randomness of the spread.
    """
    size = initial.shape[1]
    few = _MOST_PARAMETERS
    if objective.potential.model is not None:
        few = _MOST_PARAMETERS_OF_A_MODULE
    if size > few:
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
    found = bfgs(objective.gradient_at, initial)
    best, hessian, _ = newton(objective.gradient_at, objective.hessian, found.best)
    lowest = float(objective.gradient_at(best.unsqueeze(0)).potential)
    factor = factor_of_hessian(hessian)
    near = found.potential <= lowest + size + 10
    whitened = torch.linalg.solve_triangular(
        factor, (found.points - best).mT.double(), upper=False
    ).norm(dim=0)
    # In the basin of one minimum, a chain that has not quite arrived is as high as it is far.
    reach = 1 + 0.5 * math.sqrt(size)
    basin = 0.5 * whitened.square() <= 3 * (found.potential - lowest) + 0.5 * reach**2
    same = float(basin[near].double().mean()) if bool(near.any()) else 1.0
    metric = factor if same >= 0.8 else factor.square().sum(1).sqrt().diag()
    centers = torch.where(near.unsqueeze(1), found.points, best)
    normal = torch.randn(
        initial.shape, generator=generator, dtype=initial.dtype, device=initial.device
    )
    points = spread(objective.gradient_at, centers, metric, normal, lowest)
    kind = "one minimum" if same >= 0.8 else "different minima"
    return Start(
        points,
        metric,
        lowest,
        f"{len(initial)} chains were minimised together and found {kind}, the lowest potential "
        f"{lowest:.6g}; {int((~near).sum())} that ended far above it begin there.",
        best,
    )


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
        metric: a factor ``[D, D]``, or a scale ``[D]``, of the Gaussian around them.
        normal: standard normal numbers ``[P, D]``.
        lowest: potential of the lowest minimum.
    """
    metric = metric.to(normal)
    offset = normal * metric if metric.ndim == 1 else normal @ metric.mT
    share = torch.ones_like(normal[:, :1])
    for _ in range(8):
        height = gradient_at(centers + share * offset).potential - lowest
        far = ~(height <= normal.shape[1] + 10)
        if not bool(far.any()):
            break
        share = torch.where(far.unsqueeze(-1), 0.5 * share, share)
    return centers + share * offset
