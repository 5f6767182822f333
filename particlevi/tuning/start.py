"""Where chains start: near a minimum, spread to where draws of the posterior lie."""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi.tuning.descent import GradientAt

__all__ = ["spread"]


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
