"""Positive-definite kernels, each with the sums that a Stein direction needs.

Every kernel works rectangular, ``k(x [P, D], y [Q, D]) -> [P, Q]``. No kernel forms a tensor of
size P x P x D, and none a matrix P x P where P is above ``DENSE``: see
``particlevi.kernels.reduction``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from particlevi._checks import check_positive_int, check_seed
from particlevi.kernels.bandwidths import (
    Bandwidth,
    as_bandwidth,
    fixed,
    median,
    pair_squares,
    width_of,
)
from particlevi.kernels.reduction import PROFILES, dense_sums, radial_sums, squared_distances

__all__ = [
    "Kernel",
    "Radial",
    "Space",
    "as_kernel",
    "as_radial",
    "imq",
    "linear",
    "random_features",
    "rbf",
    "squared_distances",
]


class Space(Protocol):
    """What a kernel may know of the parameters: how many there are, and their groups."""

    @property
    def num_params(self) -> int:
        """D."""
        ...

    def groups(self, rule: Any, seed: int = 0) -> Tensor:
        """Group numbers ``LongTensor [D]``."""
        ...


class Kernel(Protocol):
    """A kernel, and the Stein direction that it gives."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel matrix ``[P, Q]``."""
        ...

    def direction(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Attraction and repulsion ``[P, D]`` on particles with scores ``[P, D]``.

        ``sum_j k(x_j, x_i) s_j / P`` and ``sum_j grad_{x_j} k(x_j, x_i) / P``.
        """
        ...

    def bind(self, space: Space) -> Kernel:
        """The kernel for these parameters; itself if it needs to know nothing of them."""
        ...


@dataclass(frozen=True)
class Radial:
    """``k(x, y) = f(|x - y|^2 / b)`` with one bandwidth ``b`` for all coordinates.

    Args:
        bandwidth: a rule from ``particlevi.kernels.bandwidths``, or a number. It is held constant
            in gradients.
    """

    bandwidth: Bandwidth | float = median()
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "bandwidth", as_bandwidth(self.bandwidth))

    def width(self, x: Tensor) -> Tensor:
        """The bandwidth b, 0-d, of the points ``x [P, D]``."""
        rule = cast("Bandwidth", self.bandwidth)
        squares = x.new_empty(0) if isinstance(rule, fixed) else pair_squares(x)
        return width_of(rule, squares, len(x))

    def __call__(self, x: Tensor, y: Tensor, width: Tensor | None = None) -> Tensor:
        """The kernel matrix ``[P, Q]``, the bandwidth taken from the points of ``x`` if absent."""
        b = self.width(x) if width is None else width
        return PROFILES[self.kind].value(squared_distances(x, y) / b)

    def direction(
        self, x: Tensor, scores: Tensor, width: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``sum_j k_ij s_j / P`` and ``(2/b) sum_j -f'(u_ij) (x_i - x_j) / P``.

        ``u_ij = |x_i - x_j|^2 / b``. The scores may have other columns than ``x``.
        """
        b = self.width(x) if width is None else width
        return radial_sums(x - x.mean(0), scores, b, self.kind)

    def columns(
        self, x: Tensor, scores: Tensor, add: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The same of some columns ``[P, D_r]``; ``add`` sums over those who have the others."""
        x = x - x.mean(0)
        gram = add(x @ x.T)
        lengths = torch.diagonal(gram)
        squares = (lengths.unsqueeze(1) + lengths - 2 * gram).clamp_(min=0)
        pairs = torch.triu_indices(len(x), len(x), 1, device=x.device)
        width = width_of(cast("Bandwidth", self.bandwidth), squares[pairs[0], pairs[1]], len(x))
        return dense_sums(x, scores, squares, width, self.kind)

    def bind(self, space: Space) -> Kernel:
        """Itself."""
        return self


class rbf(Radial):
    """``k(x, y) = exp(-|x - y|^2 / b)`` with one bandwidth ``b`` for all coordinates.

    Args:
        bandwidth: a rule from ``particlevi.kernels.bandwidths``, or a number; by default
            ``med(r^2) / log(P + 1)``. It is held constant in gradients.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> rbf(2.0)(x, x)
    tensor([[1.0000, 0.6065],
            [0.6065, 1.0000]])
    """

    kind = "rbf"


class imq(Radial):
    """``k(x, y) = (1 + |x - y|^2 / b)^(-1/2)``, the inverse multiquadric.

    Its slow decay keeps far particles in touch, and makes the kernel Stein discrepancy control
    convergence, which the RBF kernel's does not in three dimensions and more.

    Source: Gorham and Mackey, "Measuring sample quality with kernels", 2017.

    Args:
        bandwidth: as for ``rbf``.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> imq(1.0)(x, x)
    tensor([[1.0000, 0.7071],
            [0.7071, 1.0000]])
    """

    kind = "imq"


@dataclass(frozen=True)
class linear:
    """``k(x, y) = x.y + 1``: controls mean and covariance, and nothing else.

    With more particles than dimensions, SVGD under this kernel matches the mean and covariance of
    a Gaussian target exactly.

    Source: Liu and Wang, "Stein variational gradient descent as moment matching", 2018.
    """

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel matrix ``[P, Q]``."""
        return x @ y.T + 1

    def direction(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Attraction ``(x x' + 1) s / P`` and repulsion ``x_i``."""
        narrow = len(x) <= x.shape[1]
        product = (x @ x.T) @ scores if narrow else x @ (x.T @ scores)
        return (product + scores.sum(0)) / len(x), x

    def columns(
        self, x: Tensor, scores: Tensor, add: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The same of some columns ``[P, D_r]``; ``add`` sums over those who have the others."""
        return (add(x @ x.T) @ scores + scores.sum(0)) / len(x), x

    def bind(self, space: Space) -> Kernel:
        """Itself."""
        return self


@dataclass(frozen=True, eq=False)
class random_features:
    """``k(x, y) = (1/R) sum_r cos(w_r . (x - y))`` with R random ``w_r ~ N(0, (2/b) I)``.

    Its mean over frequencies is the RBF kernel; the error is of order ``R^(-1/2)``. A direction
    takes O(P R D) operations and O(P R + R D) numbers: linear in P. The rank is at most 2 R.

    Source: Rahimi and Recht, "Random features for large-scale kernel machines", 2007.

    Args:
        num_features: R.
        bandwidth: as for ``rbf``.
        seed: of the frequencies, which are drawn once.
    """

    num_features: int = 1024
    bandwidth: Bandwidth | float = median()
    seed: int = 0
    _frequencies: Tensor | None = None

    def __post_init__(self) -> None:
        check_positive_int("num_features", self.num_features)
        check_seed("seed", self.seed)
        object.__setattr__(self, "bandwidth", as_bandwidth(self.bandwidth))

    def __repr__(self) -> str:
        return f"random_features({self.num_features}, {self.bandwidth}, seed={self.seed})"

    def bind(self, space: Space) -> random_features:
        """With frequencies for D parameters."""
        return self._drawn(space.num_params)

    def _drawn(self, dim: int) -> random_features:
        generator = torch.Generator().manual_seed(int(self.seed))
        drawn = torch.randn(self.num_features, dim, generator=generator, dtype=torch.float64)
        return replace(self, _frequencies=drawn)

    def _scaled(self, x: Tensor) -> Tensor:
        """Frequencies ``[R, D]`` for the bandwidth of ``x``."""
        kernel = self if self._frequencies is not None else self._drawn(x.shape[1])
        assert kernel._frequencies is not None
        rule = cast("Bandwidth", self.bandwidth)
        squares = x.new_empty(0) if isinstance(rule, fixed) else pair_squares(x)
        b = width_of(rule, squares, len(x))
        return kernel._frequencies.to(x) * (2 / b).sqrt()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The kernel matrix ``[P, Q]``, the bandwidth taken from the points of ``x``."""
        frequencies, center = self._scaled(x), x.mean(0)
        a, b = (x - center) @ frequencies.T, (y - center) @ frequencies.T
        return (a.cos() @ b.cos().T + a.sin() @ b.sin().T) / self.num_features

    def direction(self, x: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """As for every kernel, by the features."""
        frequencies = self._scaled(x)
        angles = (x - x.mean(0)) @ frequencies.T
        cosines, sines = angles.cos(), angles.sin()
        scale = 1 / (self.num_features * len(x))
        attraction = cosines @ (cosines.T @ scores) + sines @ (sines.T @ scores)
        turn = sines * cosines.sum(0) - cosines * sines.sum(0)
        return scale * attraction, scale * (turn @ frequencies)


def as_kernel(value: Kernel | None) -> Kernel:
    """``value``, or ``rbf()`` for None; anything that is no kernel is refused."""
    chosen = rbf() if value is None else value
    whole = all(callable(getattr(chosen, name, None)) for name in ("direction", "bind"))
    if isinstance(chosen, type) or not whole:
        got = f"the class {chosen.__name__}" if isinstance(chosen, type) else repr(chosen)
        raise TypeError(
            f"kernel must be a kernel, such as pvi.kernels.rbf() or pvi.kernels.imq(), got {got}."
        )
    return chosen


def as_radial(value: Radial | None, default: type[Radial] = rbf) -> Radial:
    """``value``, or the default kernel for None; one without a bandwidth is refused."""
    chosen = default() if value is None else value
    if not isinstance(chosen, Radial):
        raise TypeError(
            "kernel must have a bandwidth, that is pvi.kernels.rbf(...) or pvi.kernels.imq(...), "
            f"got {chosen!r}."
        )
    return chosen
