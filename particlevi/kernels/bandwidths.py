"""Bandwidth rules: from squared distances between particles to ``b`` in ``f(|x - y|^2 / b)``.

Six variants are in use in the field and give different answers; each here states its formula. A
rule for each group of parameters is a kernel's matter: see ``particlevi.kernels.grouped``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_function, check_positive, check_positive_int

__all__ = ["Bandwidth", "as_bandwidth", "fixed", "median", "pair_squares", "width_of"]

Bandwidth = Callable[[Tensor, int], Tensor]
"""``(squared distances [M] of distinct pairs, P) -> b``, 0-d."""

_MAX_PAIRS = 2**17


def pair_squares(x: Tensor, max_pairs: int = _MAX_PAIRS) -> Tensor:
    """``|x_i - x_j|^2`` of distinct pairs of ``x [P, D]`` as ``[M]``.

    All ``P (P - 1) / 2`` of them up to ``max_pairs``. Beyond, the pairs ``(i, i + s)`` for shifts
    ``s`` spread evenly over ``1 ... P/2``, about ``max_pairs`` in number: a fixed choice in which
    nearly every particle takes part, so the same particles always give the same bandwidth.
    """
    check_positive_int("max_pairs", max_pairs)
    num = len(x)
    if num * (num - 1) // 2 <= max_pairs:
        centred = x - x.mean(0)
        squares = centred.square().sum(-1)
        gram = centred @ centred.T
        rows, columns = torch.triu_indices(num, num, 1, device=x.device)
        return (squares[rows] + squares[columns] - 2 * gram[rows, columns]).clamp(min=0)
    spread: Tensor = _shifted_squares(x, min(num // 2, math.ceil(max_pairs / num)))
    return spread


def _shifts(num: int, count: int) -> list[int]:
    return [1 + (k * (num // 2)) // count for k in range(count)]


@torch.library.custom_op("particlevi::shifted_squares", mutates_args=())
def _shifted_squares(x: Tensor, count: int) -> Tensor:
    """One operation to a compiler, which would unroll the loop."""
    shifts = _shifts(len(x), count)
    return torch.cat([torch.linalg.vector_norm(x[s:] - x[:-s], dim=1).square() for s in shifts])


@_shifted_squares.register_fake
def _(x: Tensor, count: int) -> Tensor:
    return x.new_empty(sum(len(x) - s for s in _shifts(len(x), count)))


@dataclass(frozen=True)
class fixed:
    """``b = value`` whatever the particles."""

    value: float

    def __post_init__(self) -> None:
        check_positive("bandwidth", self.value)

    def __call__(self, squares: Tensor, num: int) -> Tensor:
        """The bandwidth, 0-d."""
        return squares.new_tensor(self.value)


@dataclass(frozen=True)
class median:
    """``b = med(r^2) / log(P + 1)``, the median over the P (P - 1) / 2 distinct pairs.

    With a single particle, or with all particles in one place, ``b = 1``. With more than 2^17
    pairs (P > 512) the median is that of about 2^17 pairs in a fixed pattern.

    Source: Liu and Wang, "Stein variational gradient descent: a general purpose Bayesian inference
    algorithm", 2016, with the logarithm as in the authors' code.

    Args:
        log: ``"P+1"``, or ``"P"`` for the rule of the paper, ``med(r^2) / log P``.
        pairs: ``"distinct"``, or ``"all"`` for the authors' code, which takes the median over the
            whole matrix, its zero diagonal included.
    """

    log: str = "P+1"
    pairs: str = "distinct"

    def __post_init__(self) -> None:
        check_choice("log", self.log, ["P+1", "P"])
        check_choice("pairs", self.pairs, ["distinct", "all"])

    def __call__(self, squares: Tensor, num: int) -> Tensor:
        """The bandwidth, 0-d, from distinct pairs ``[M]`` among ``num`` particles."""
        if num == 1:
            return squares.new_ones(())
        total = num * (num - 1) // 2
        count = len(squares)
        if self.pairs == "distinct":
            ranks = [(count - 1) // 2, count // 2]
        else:
            # The whole matrix in order: num zeros, then every distinct pair twice.
            size = num * num
            pairs = [(rank - num) // 2 for rank in ((size - 1) // 2, size // 2)]
            ranks = [pair * count // total if pair >= 0 else -1 for pair in pairs]
        logarithm = math.log(num + 1 if self.log == "P+1" else num)
        low, high = (_ranked(squares, rank) for rank in ranks)
        middle = 0.5 * (low + high)
        return torch.where(middle > 0, middle / logarithm, torch.ones_like(middle))


def _ranked(values: Tensor, rank: int) -> Tensor:
    """The ``rank``-th smallest, from 0; zero for the ranks before the first."""
    return values.new_zeros(()) if rank < 0 else values.kthvalue(rank + 1).values


def as_bandwidth(value: Bandwidth | float) -> Bandwidth:
    """A rule as it is; a number as a fixed one."""
    if callable(value) and not isinstance(value, type):
        check_function("bandwidth", value, "squared distances [M] and the number of particles", 2)
        return value
    return fixed(cast("float", value))


def width_of(rule: Bandwidth, squares: Tensor, num: int) -> Tensor:
    """The bandwidth, 0-d, that a rule gives, perhaps one of the user's."""
    width = rule(squares, num)
    if not isinstance(width, Tensor) or width.ndim or not width.is_floating_point():
        got = f"{width.dtype} {list(width.shape)}" if isinstance(width, Tensor) else repr(width)
        raise TypeError(f"A bandwidth must be a floating-point tensor of no axes, got {got}.")
    return width
