"""What bad workers may send in the place of their gradients.

An attack is called with the honest workers' gradients ``[h, D]`` and those that the attackers would
have sent, ``[b, D]``, and gives ``[b, D]``. It may keep what it has seen.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Normal

__all__ = [
    "ALittle",
    "Delayed",
    "Garbage",
    "InnerProduct",
    "Nobody",
    "Scaled",
    "Variance",
    "Zero",
]


@dataclass
class Nobody:
    """No attack."""

    def __call__(self, honest: Tensor, own: Tensor) -> Tensor:
        return own


@dataclass
class Scaled:
    """The gradient times a factor: -1 flips the sign, -0.4 is made to hide from a safeguard."""

    factor: float

    def __call__(self, honest: Tensor, own: Tensor) -> Tensor:
        return self.factor * own


@dataclass
class Zero:
    """Nothing."""

    def __call__(self, honest: Tensor, own: Tensor) -> Tensor:
        return torch.zeros_like(own)


@dataclass
class Delayed:
    """The gradient of ``delay`` steps ago; before that, the first."""

    delay: int
    seen: deque[Tensor] = field(default_factory=deque)

    def __call__(self, honest: Tensor, own: Tensor) -> Tensor:
        self.seen.append(own.clone())
        return self.seen.popleft() if len(self.seen) > self.delay else self.seen[0]


@dataclass
class Variance:
    """All send the honest mean, shifted by a fraction of a standard deviation per coordinate."""

    shift: float = 0.3

    def __call__(self, honest: Tensor, own: Tensor) -> Tensor:
        return (honest.mean(0) - self.shift * honest.std(0)).expand_as(own)


@dataclass
class ALittle:
    """The shift that a majority of workers still covers (Baruch, Baruch and Goldberg, 2019)."""

    def __call__(self, honest: Tensor, own: Tensor) -> Tensor:
        workers = len(honest) + len(own)
        supporters = math.floor(workers / 2 + 1) - len(own)
        covered = (workers - len(own) - supporters) / (workers - len(own))
        shift = float(Normal(0.0, 1.0).icdf(torch.tensor(covered)))
        return Variance(shift)(honest, own)


@dataclass
class InnerProduct:
    """Minus a multiple of the honest mean (Xie, Koyejo and Gupta, 2019)."""

    factor: float = 0.5

    def __call__(self, honest: Tensor, own: Tensor) -> Tensor:
        return (-self.factor * honest.mean(0)).expand_as(own)


@dataclass
class Garbage:
    """NaN."""

    def __call__(self, honest: Tensor, own: Tensor) -> Tensor:
        return torch.full_like(own, torch.nan)
