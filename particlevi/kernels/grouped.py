"""Kernels made of one kernel per group of parameters.

A group is a set of coordinates, given as ``LongTensor [D]`` of group numbers, or as a rule of the
potential's layout (``"tensor"``, ``"layer"``, ``"neuron"`` ...). Each group has the bandwidth that
the rule gives on its own coordinates.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_groups
from particlevi.kernels.kernels import Radial, Space, as_radial, rbf
from particlevi.kernels.reduction import radial_sums, squared_distances

__all__ = ["additive", "graphical", "product"]


def _members(groups: Tensor) -> tuple[Tensor, ...]:
    return tuple((groups == g).nonzero().flatten() for g in range(int(groups.max()) + 1))


@dataclass(frozen=True, eq=False)
class _Grouped:
    groups: Any
    kernel: Radial = field(default_factory=rbf)
    _members: tuple[Tensor, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.groups, Tensor):
            check_groups(self.groups)
            object.__setattr__(self, "_members", _members(self.groups))
        as_radial(self.kernel)

    def __repr__(self) -> str:
        groups = self.groups
        if isinstance(groups, Tensor):
            digest = zlib.crc32(groups.cpu().numpy().tobytes())
            groups = f"{int(groups.max()) + 1} groups of {len(groups)} parameters, {digest:08x}"
        return f"{type(self).__name__}({groups}, {self.kernel})"

    def bind(self, space: Space) -> Any:
        """With the group numbers of these parameters."""
        return replace(self, groups=space.groups(self.groups))

    def _parts(self) -> tuple[Tensor, ...]:
        if not self._members:
            raise TypeError(
                f"The groups {self.groups!r} are a rule: give group numbers LongTensor [D], "
                "potential.layout.groups(rule)."
            )
        return self._members


class product(_Grouped):
    """``k(x, y) = prod_g k_g(x_g, y_g)^(1/G)``, for the RBF kernel.

    That is ``exp(-sum_g |x_g - y_g|^2 / (G b_g))``: one RBF kernel in which each group is measured
    in its own bandwidth. Without the power 1/G, the kernel of many groups would be zero between
    any two particles.

    Args:
        groups: group numbers ``LongTensor [D]``, or a rule.
        kernel: the kernel of each group, ``pvi.kernels.rbf(...)``.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.kernel, rbf):
            raise TypeError(f"product is for the RBF kernel, got {type(self.kernel).__name__}.")

    def _scales(self, x: Tensor) -> Tensor:
        parts = self._parts()
        scales = torch.ones_like(x[0])
        for part in parts:
            scales = scales.index_copy(
                0, part, (len(parts) * self.kernel.width(x[:, part])).rsqrt().expand(len(part))
            )
        return scales

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel matrix ``[P, Q]``, the bandwidths taken from the points of ``x``."""
        scales = self._scales(x)
        return (-squared_distances(x * scales, y * scales)).exp()

    def direction(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """As for every kernel."""
        scales = self._scales(x)
        centred = (x - x.mean(0)) * scales
        attraction, repulsion = radial_sums(centred, scores, scales.new_ones(()), "rbf")
        return attraction, repulsion * scales


class additive(_Grouped):
    """``k(x, y) = (1/G) sum_g k_g(x_g, y_g)``.

    Args:
        groups: group numbers ``LongTensor [D]``, or a rule.
        kernel: the kernel of each group.
    """

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel matrix ``[P, Q]``, the bandwidths taken from the points of ``x``."""
        parts = self._parts()
        return torch.stack([self.kernel(x[:, part], y[:, part]) for part in parts]).mean(0)

    def direction(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """As for every kernel."""
        parts = self._parts()
        attraction, repulsion = torch.zeros_like(scores), torch.zeros_like(x)
        for part in parts:
            toward, away = self.kernel.direction(x[:, part], scores)
            attraction = attraction + toward / len(parts)
            repulsion = repulsion.index_copy(1, part, away / len(parts))
        return attraction, repulsion


@dataclass(frozen=True, eq=False, repr=False)
class graphical(_Grouped):
    """One kernel per group, over the group and its neighbours: message-passing SVGD.

    The direction of group g is ``(1/P) sum_j [k_g(x_j, x) s_{j,g} + grad_g k_g(x_j, x)]`` with
    ``k_g`` a function of the coordinates of g and of its neighbours alone. With the Markov blanket
    of every group for neighbours, fixed points match the conditionals of a factorised model, and
    the kernels see few dimensions however many there are, so that marginals do not collapse. With
    no neighbours every group is moved by its own kernel; dependence between groups is then
    controlled only through the scores.

    Calling it gives the kernel of the first group.

    Source: Zhuo, Liu, Shi, Zhu, Chen and Zhang, "Message passing Stein variational gradient
    descent", 2018; Wang, Zeng and Liu, "Stein variational message passing for continuous
    graphical models", 2018.

    Args:
        groups: group numbers ``LongTensor [D]``, or a rule.
        kernel: the kernel of each group.
        neighbours: ``BoolTensor [G, G]``, whether group h is a neighbour of group g; none if
            absent.
    """

    neighbours: Tensor | None = None
    _around: tuple[Tensor, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = getattr(self.neighbours, "dtype", type(self.neighbours).__name__)
        if self.neighbours is not None and kind != torch.bool:
            raise TypeError(f"neighbours must be a BoolTensor [G, G], got {kind}.")
        if self._members:
            object.__setattr__(self, "_around", self._blankets())

    def __repr__(self) -> str:
        if self.neighbours is None:
            return super().__repr__()
        digest = zlib.crc32(self.neighbours.cpu().numpy().tobytes())
        return super().__repr__()[:-1] + f", neighbours {digest:08x})"

    def _blankets(self) -> tuple[Tensor, ...]:
        """For every group, the coordinates of its neighbours."""
        parts, around = self._members, self.neighbours
        if around is None:
            return tuple(part[:0] for part in parts)
        if around.shape != (len(parts), len(parts)):
            raise ValueError(
                f"neighbours must be [{len(parts)}, {len(parts)}], one row per group, "
                f"got {list(around.shape)}."
            )
        return tuple(
            torch.cat([parts[g][:0]] + [parts[h] for h in row.nonzero().flatten() if h != g])
            for g, row in enumerate(around)
        )

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel matrix ``[P, Q]`` of the first group."""
        seen = torch.cat([self._parts()[0], self._around[0]])
        return self.kernel(x[:, seen], y[:, seen])

    def direction(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Attraction and repulsion, each group's by its own kernel."""
        attraction, repulsion = torch.zeros_like(scores), torch.zeros_like(x)
        for own, others in zip(self._parts(), self._around, strict=True):
            seen = torch.cat([own, others])
            toward, away = self.kernel.direction(x[:, seen], scores[:, own])
            attraction = attraction.index_copy(1, own, toward)
            repulsion = repulsion.index_copy(1, own, away[:, : len(own)])
        return attraction, repulsion
