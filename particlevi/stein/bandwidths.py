"""Bandwidth rules: from squared distances ``[P, P]`` to ``b`` in ``exp(-|x - y|^2 / b)``.

Six variants are in use in the field and give different answers; each here states its formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_positive

__all__ = ["Bandwidth", "fixed", "median"]

Bandwidth = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class fixed:
    """``b = value`` whatever the particles."""

    value: float

    def __post_init__(self) -> None:
        check_positive("bandwidth", self.value)

    def __call__(self, distances: Tensor) -> Tensor:
        """The bandwidth, 0-d."""
        return distances.new_tensor(self.value)


@dataclass(frozen=True)
class median:
    """``b = med(r^2) / log(P + 1)``, the median over the P (P - 1) / 2 distinct pairs.

    With a single particle, or with all particles in one place, ``b = 1``.

    Args:
        log: ``"P+1"``, or ``"P"`` for the rule of Liu and Wang (2016), ``med(r^2) / log P``.
        pairs: ``"distinct"``, or ``"all"`` for the authors' code, which takes the median over the
            whole matrix, its zero diagonal included.
    """

    log: str = "P+1"
    pairs: str = "distinct"

    def __post_init__(self) -> None:
        check_choice("log", self.log, ["P+1", "P"])
        check_choice("pairs", self.pairs, ["distinct", "all"])

    def __call__(self, distances: Tensor) -> Tensor:
        """The bandwidth, 0-d."""
        num = len(distances)
        if num == 1:
            return distances.new_ones(())
        if self.pairs == "distinct":
            rows, columns = torch.triu_indices(num, num, 1, device=distances.device)
            values = distances[rows, columns]
        else:
            values = distances.flatten()
        logarithm = math.log(num + 1 if self.log == "P+1" else num)
        middle = _median(values)
        return torch.where(middle > 0, middle / logarithm, torch.ones_like(middle))


def _median(values: Tensor) -> Tensor:
    """The median, the mean of the middle two where their number is even."""
    half = values.numel() // 2
    ordered = values.sort().values
    if values.numel() % 2:
        return ordered[half]
    return 0.5 * (ordered[half - 1] + ordered[half])
