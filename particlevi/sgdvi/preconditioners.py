"""Families of preconditioners ``H [D, D]``, each a function of unconstrained numbers.

======================= =============================================================
``"scalar"``            ``a I``
``"diagonal"``          ``diag(a)``
``"low_rank"``          ``diag(a) + U U'`` with U of at most 10 columns
``"kronecker"``         one block per tensor: ``A (x) B`` for a matrix ``[out, in]`` (and for
                        a kernel, ``in`` its other axes together), a full one for a vector
``"full"``              any positive-definite matrix; solved for without a search
======================= =============================================================

Reference: Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate
curvature", 2015, for the Kronecker family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["Family", "Structure", "family"]

Structure = Literal["scalar", "diagonal", "low_rank", "kronecker", "full"]
"""The families of preconditioners."""

_MOST_COLUMNS = 10


class Family(NamedTuple):
    """A family of preconditioners.

    Attributes:
        matrix: numbers to ``H [D, D]``, differentiable.
        start: numbers whose ``H`` is near a given one.
        tolerance: of a search, relative to what is minimised.
    """

    matrix: Callable[[Tensor], Tensor]
    start: Callable[[Tensor], Tensor]
    tolerance: float = 1e-10


def family(structure: Structure, size: int, shapes: Sequence[tuple[int, ...]]) -> Family:
    """The family of a name for D parameters in tensors of given shapes."""
    if structure == "scalar":
        return Family(
            lambda a: a[0].exp() * torch.eye(size, dtype=torch.float64),
            lambda h: h.diagonal().mean().log()[None],
            1e-15,
        )
    if structure == "diagonal":
        return Family(lambda a: torch.diag(a.exp()), lambda h: h.diagonal().log(), 1e-15)
    if structure == "low_rank":
        return _low_rank(size)
    return _kronecker(shapes)


def _low_rank(size: int) -> Family:
    columns = min(_MOST_COLUMNS, max(1, size // 2))

    def matrix(a: Tensor) -> Tensor:
        u = a[size:].view(size, columns)
        return torch.diag(a[:size].exp()) + u @ u.T

    def start(h: Tensor) -> Tensor:
        base = 0.5 * h.diagonal()
        values, vectors = torch.linalg.eigh(h - torch.diag(base))
        top = values[-columns:].clamp(min=1e-3 * float(base.min())).sqrt()
        return torch.cat([base.log(), (vectors[:, -columns:] * top).reshape(-1)])

    return Family(matrix, start)


def _kronecker(shapes: Sequence[tuple[int, ...]]) -> Family:
    factors = [
        [shape[0], math.prod(shape[1:])] if len(shape) > 1 else [math.prod(shape)]
        for shape in shapes
    ]

    def matrix(a: Tensor) -> Tensor:
        blocks, at = [], 0
        for sizes in factors:
            block = torch.ones(1, 1, dtype=torch.float64)
            for n in sizes:
                root = _root(a[at : at + n * (n + 1) // 2], n)
                block = torch.kron(block, root @ root.T)
                at += n * (n + 1) // 2
            blocks.append(block)
        found: Tensor = torch.block_diag(*blocks)
        return found

    def start(h: Tensor) -> Tensor:
        parts, at = [], 0
        for sizes in factors:
            width = math.prod(sizes)
            level = float(h.diagonal()[at : at + width].log().mean())
            for n in sizes:
                numbers = torch.zeros(n * (n + 1) // 2, dtype=torch.float64)
                numbers[:n] = level / 2 / len(sizes)
                parts.append(numbers)
            at += width
        return torch.cat(parts)

    return Family(matrix, start)


def _root(numbers: Tensor, n: int) -> Tensor:
    """A lower-triangular matrix: logarithms of its diagonal first, then the rest by rows."""
    rows, columns = torch.tril_indices(n, n, -1)
    root = torch.diag(numbers[:n].exp())
    filled: Tensor = root.index_put((rows, columns), numbers[n:])
    return filled
