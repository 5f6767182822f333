"""What leader SGD and safeguard SGD are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["AGGREGATORS", "coordinate_median", "elastic_step", "krum", "mean", "trimmed_mean"]


def elastic_step(
    x: Tensor, centre: Tensor, grad: Tensor, lr: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """Elastic averaging SGD: workers ``x [P, D]`` and their centre ``[D]`` pull at each other."""
    pull = alpha * (x - centre)
    return x - lr * grad - pull, centre + pull.sum(0)


def mean(grads: Tensor, bad: int) -> Tensor:
    """The plain average of ``[m, D]``."""
    return grads.mean(0)


def coordinate_median(grads: Tensor, bad: int) -> Tensor:
    """The median of each coordinate."""
    return grads.median(0).values


def trimmed_mean(grads: Tensor, bad: int) -> Tensor:
    """The mean of each coordinate without the ``bad`` largest and smallest."""
    return grads.sort(0).values[bad : len(grads) - bad].mean(0)


def krum(grads: Tensor, bad: int) -> Tensor:
    """The gradient with the smallest sum of squared distances to its m - bad - 2 nearest."""
    squares = torch.cdist(grads, grads) ** 2
    nearest = squares.sort(1).values[:, 1 : len(grads) - bad - 1]
    return grads[nearest.sum(1).argmin()]


AGGREGATORS = {
    "mean": mean,
    "median": coordinate_median,
    "trimmed mean": trimmed_mean,
    "Krum": krum,
}
