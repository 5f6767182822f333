"""Estimates with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Estimate", "bootstrap", "mean_of", "root_of"]

RESAMPLES = 200


class Estimate(NamedTuple):
    """A number and its standard error; 0 for what is exact, NaN where it is not known."""

    value: float
    error: float = math.nan

    def __str__(self) -> str:
        if self.error == 0 or math.isnan(self.error):
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ± {self.error:.2g}"


def mean_of(values: Tensor) -> Estimate:
    """The mean of independent values."""
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(values.numel()))


def root_of(square: Estimate) -> Estimate:
    """The square root of an estimate; 0 for one below 0."""
    root = math.sqrt(max(square.value, 0.0))
    return Estimate(root, square.error / (2 * max(root, 1e-30)))


def bootstrap(statistic: Callable[[Tensor], float], num_data: int, seed: int) -> float:
    """The standard error of a statistic of the data ``[n]`` that are picked, over resamples."""
    generator = torch.Generator().manual_seed(int(seed))
    picks = torch.randint(num_data, (RESAMPLES, num_data), generator=generator)
    return float(torch.tensor([statistic(pick) for pick in picks]).std())
