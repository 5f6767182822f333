"""The law of balance: what gradient noise does to weights that can be rescaled against each other.

Let the loss of every datum stay as it is under ``u -> s u, w -> w / s``, as for the incoming and
outgoing weights of a ReLU unit. Then ``u . g_u = w . g_w`` for every datum, and every step of
plain SGD at rate ``eta`` obeys, exactly::

    (|u'|^2 - |w'|^2) - (|u|^2 - |w|^2) = eta^2 (|g_u|^2 - |g_w|^2)

with the gradient of the minibatch. Over minibatches its mean is
``eta^2 [k (tr C_uu - tr C_ww) + |E g_u|^2 - |E g_w|^2]``, ``k`` that of ``batch_factor``. Noise
comes to rest where ``tr C_uu = tr C_ww``.

Reference: Ziyin, Li and Ueda, "Law of balance and stationary distribution of stochastic gradient
descent", 2023; the exact form for a finite step follows from the invariance directly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_has, check_particles, check_positive, check_positive_int
from particlevi._shown import Shown
from particlevi.curvature.factors import Factors
from particlevi.noise.scalings import FreshBatching, batch_factor
from particlevi.noise.torques import torques

if TYPE_CHECKING:
    from particlevi.noise.covariance import GradientNoise

__all__ = ["Balance", "BalancePath", "Pair", "balance_along", "balance_of"]

_DATA = 32
_SHIFT = 0.1


class _Symmetry(NamedTuple):
    """Two blocks of weights, by positions in theta: row i of one against that of the other.

    Attributes:
        first, second: their names.
        u, w: positions ``[n, ...]``.
    """

    first: str
    second: str
    u: Tensor
    w: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Pair(Shown):
    """Two blocks of weights that can be rescaled against each other, in n units.

    Attributes:
        first, second: their tensors; the weights into a unit and those out of it, or the two
            factors of a product, as queries and keys are.
        first_norm, second_norm: ``|u|^2`` and ``|w|^2`` of each unit ``[n]``.
        first_noise, second_noise: ``tr C_uu`` and ``tr C_ww`` of each unit ``[n]``.
        first_gradient, second_gradient: ``|g_u|^2`` and ``|g_w|^2`` of the mean gradient ``[n]``.
        identity_error: ``|u . g_u - w . g_w|`` of a datum and unit over the size of its terms, the
            largest; rounding errors where the symmetry is exact.
        num_data: N.
    """

    first: str
    second: str
    first_norm: Tensor
    second_norm: Tensor
    first_noise: Tensor
    second_noise: Tensor
    first_gradient: Tensor
    second_gradient: Tensor
    identity_error: float
    num_data: int

    @property
    def imbalance(self) -> float:
        """``(tr C_uu - tr C_ww) / (tr C_uu + tr C_ww)`` of the whole pair; 0 at noise balance."""
        return _contrast(self.first_noise.sum(), self.second_noise.sum())

    @property
    def norm_ratio(self) -> Tensor:
        """``|u|^2 / |w|^2`` of each unit ``[n]``."""
        return self.first_norm / self.second_norm

    @property
    def balanced_norm_ratio(self) -> Tensor:
        """The ratio that rescaling each unit to noise balance would give ``[n]``.

        Scaling by s multiplies ``tr C_uu`` by ``s^-2``, ``tr C_ww`` by ``s^2`` and the ratio of the
        norms by ``s^4``, so it is ``norm_ratio * tr C_uu / tr C_ww``. Exact while the product of
        the two stays as it is.
        """
        return self.norm_ratio * self.first_noise / self.second_noise

    def drift(
        self, learning_rate: float, batch_size: int, batching: FreshBatching = "replacement"
    ) -> Tensor:
        """The mean change of ``|u|^2 - |w|^2`` in one step of plain SGD, ``[n]``.

        Args:
            learning_rate: ``eta`` on the mean loss.
            batch_size: b.
            batching: how a minibatch is drawn.
        """
        check_positive("learning_rate", learning_rate)
        check_positive_int("batch_size", batch_size)
        k = batch_factor(batch_size, self.num_data, batching)
        noise = k * (self.first_noise - self.second_noise)
        return learning_rate**2 * (noise + self.first_gradient - self.second_gradient)


@dataclass(frozen=True, eq=False, repr=False)
class Balance(Shown):
    """Every pair of weights with a rescaling symmetry that was found."""

    pairs: tuple[Pair, ...]

    def __str__(self) -> str:
        rows = []
        for pair in self.pairs:
            moving = pair.first_noise + pair.second_noise > 0
            now, then = (
                float(part[moving].median()) if bool(moving.any()) else math.nan
                for part in (pair.norm_ratio, pair.balanced_norm_ratio)
            )
            still = int((~moving).sum())
            rows.append(
                f"{pair.first} / {pair.second} ({len(moving)} units"
                f"{f', {still} without gradients' if still else ''}): noise imbalance "
                f"{pair.imbalance:+.3f}, median |u|^2/|w|^2 {now:.3g}, at balance {then:.3g}"
            )
        return "\n".join(rows)


@dataclass(frozen=True, eq=False, repr=False)
class BalancePath(Shown):
    """Balance along a trajectory.

    Attributes:
        names: of the pairs, K.
        first_norm, second_norm: ``|u|^2`` and ``|w|^2`` of whole pairs ``[T, K]``.
        imbalance: ``[T, K]``; see ``Pair``.
        balanced_norm_ratio: of whole pairs ``[T, K]``; compare with the ratio of the norms.
    """

    names: tuple[str, ...]
    first_norm: Tensor
    second_norm: Tensor
    imbalance: Tensor
    balanced_norm_ratio: Tensor


def balance_of(noise: GradientNoise) -> Balance:
    """See ``GradientNoise.balance``."""
    found = _symmetries(noise)
    return Balance(tuple(_pairs(noise, found)))


def balance_along(noise: GradientNoise, positions: Tensor) -> BalancePath:
    """How norms and noise of symmetric pairs go along points ``[T, D]`` of a trajectory.

    Args:
        noise: from ``measure``.
        positions: parameter vectors, for instance ``draws.particles[0]``.

    Raises:
        ValueError: positions of another length, or a net without a rescaling symmetry.

    Examples:
        >>> import particlevi as pvi
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)
        ... )
        >>> x = torch.randn(20, 2)
        >>> noise = pvi.noise.measure(net, (x, x[:, :1]), torch.nn.functional.mse_loss)
        >>> path = balance_along(noise, noise.position.repeat(2, 1))
        >>> path.names, list(path.imbalance.shape)
        (('0 / 2.weight',), [2, 1])
    """
    check_has("noise", noise, ["num_params", "at", "samples"], "what noise.measure gives")
    check_particles(positions, noise.num_params, "positions")
    found = _symmetries(noise)
    rows = []
    for position in positions:
        pairs = list(_pairs(noise.at(position), found))
        rows.append([_whole(pair) for pair in pairs])
    u, w, imbalance, ratio = torch.tensor(rows, dtype=torch.float64).unbind(2)
    names = tuple(f"{s.first} / {s.second}" for s in found)
    return BalancePath(names, u, w, imbalance, ratio)


def _whole(pair: Pair) -> tuple[float, float, float, float]:
    u, w = float(pair.first_norm.sum()), float(pair.second_norm.sum())
    ratio = u / w * float(pair.first_noise.sum() / pair.second_noise.sum())
    return u, w, pair.imbalance, ratio


def _contrast(first: Tensor, second: Tensor) -> float:
    total = float(first + second)
    return float(first - second) / total if total > 0 else 0.0


def _pairs(noise: GradientNoise, found: list[_Symmetry]) -> Iterator[Pair]:
    theta, layout = noise.position.double(), noise.samples.layout
    diagonal, mean = noise.diagonal().double(), noise.gradient.double()
    worst = [0.0] * len(found)
    names = tuple(layout.shapes)
    shifted = bool(noise._shift.any())
    rows = ([Factors(None, each, names)] for each in noise.per_sample())
    for factors in rows if shifted else noise._factors():
        for i, s in enumerate(found):
            (left, size), (right, more) = (
                torques(factors, layout, theta, groups) for groups in (s.u, s.w)
            )
            scale = (size + more).clamp(min=torch.finfo(torch.float64).tiny)
            worst[i] = max(worst[i], float(((left - right).abs() / scale).max()))
    for s, error in zip(found, worst, strict=True):
        yield Pair(
            first=s.first,
            second=s.second,
            first_norm=_sum(theta**2, s.u),
            second_norm=_sum(theta**2, s.w),
            first_noise=_sum(diagonal, s.u),
            second_noise=_sum(diagonal, s.w),
            first_gradient=_sum(mean**2, s.u),
            second_gradient=_sum(mean**2, s.w),
            identity_error=error,
            num_data=noise.num_data,
        )


def _sum(values: Tensor, index: Tensor) -> Tensor:
    """Sums ``[..., n]`` of the values at positions ``[n, ...]``."""
    return values[..., index].sum(-1)


class _Block(NamedTuple):
    """The weights of a layer by output unit: positions of weights and biases, ``[n, ...]``."""

    name: str
    weight_name: str
    weight: Tensor
    bias: Tensor | None

    @property
    def rows(self) -> Tensor:
        """Weights into each unit with its bias, ``[n, ...]``."""
        flat = self.weight.flatten(1)
        return flat if self.bias is None else torch.cat([flat, self.bias.unsqueeze(1)], 1)


def _blocks(noise: GradientNoise) -> list[_Block]:
    layout, found = noise.samples.layout, []
    where = layout.slices()
    for name, shape in layout.shapes.items():
        if len(shape) < 2 or not name.endswith("weight"):
            continue
        index = torch.arange(where[name].start, where[name].stop).view(shape)
        bias_name = name.removesuffix("weight") + "bias"
        bias = None
        if layout.shapes.get(bias_name) == (shape[0],):
            bias = torch.arange(where[bias_name].start, where[bias_name].stop)
        layer = name.removesuffix("weight").rstrip("._") or "weight"
        if name.endswith("in_proj_weight") and shape[0] % 3 == 0:
            thirds = [None] * 3 if bias is None else bias.chunk(3)
            for part, rows, own in zip("qkv", index.chunk(3), thirds, strict=True):
                found.append(_Block(f"{layer}[{part}]", f"{name}[{part}]", rows, own))
            continue
        found.append(_Block(layer, name, index, bias))
    return found


def _candidates(noise: GradientNoise) -> Iterator[list[_Symmetry]]:
    """Pairs to try: unit by unit, and all units of a layer at once."""
    blocks = _blocks(noise)
    order = {block.name: i for i, block in enumerate(blocks)}
    for a, b in permutations(blocks, 2):
        count, rest = len(a.weight), b.weight.flatten(1)
        if rest.shape[1] % count == 0:
            out = rest.view(len(rest), count, -1).transpose(0, 1).flatten(1)
            unit = _Symmetry(a.name, b.weight_name, a.rows, out)
            yield [unit, _merged(unit)]
        if order[a.name] < order[b.name] and len(b.weight) == count:
            unit = _Symmetry(a.name, b.name, a.rows, b.rows)
            yield [unit, _merged(unit)]


def _merged(unit: _Symmetry) -> _Symmetry:
    return unit._replace(u=unit.u.reshape(1, -1), w=unit.w.reshape(1, -1))


def _symmetries(noise: GradientNoise) -> list[_Symmetry]:
    """The candidates under which the loss of no datum changes, at a point beside the given one.

    At the given point itself biases may be zero, and hide that a symmetry is none.
    """
    generator = torch.Generator().manual_seed(0)
    shift = torch.randn(noise.num_params, generator=generator) * _SHIFT
    point = noise.position + shift.to(noise.position)
    count = min(_DATA, noise.num_data)

    def losses(theta: Tensor) -> Tensor:
        with torch.no_grad():
            return noise.samples.losses(theta, 0, count)

    here, found = losses(point), []
    tolerance = torch.finfo(here.dtype).eps ** 0.5 * float(here.abs().max())
    for options in _candidates(noise):
        for symmetry in options:
            scale = torch.rand(len(symmetry.u), 1, generator=generator) * 2 + 1.5
            scale = scale.to(point)
            moved = point.clone()
            moved[symmetry.u] = point[symmetry.u] * scale
            moved[symmetry.w] = point[symmetry.w] / scale
            if bool((losses(moved) - here).abs().max() <= tolerance):
                found.append(symmetry)
                break
    if not found:
        raise ValueError(
            "No two weight tensors can be rescaled against each other without a change of the "
            "loss, so there is no law of balance. ReLU and linear units, values and outputs, "
            "queries and keys have that symmetry; tanh, normalisation between the two, weight "
            "decay in the loss and priors break it."
        )
    return [s for s in found if not any(_inside(s, other) for other in found)]


def _inside(one: _Symmetry, other: _Symmetry) -> bool:
    """Whether a symmetry of whole layers is all within one of units.

    Such is that of queries and keys without the bias of the keys, which softmax does not see.
    """
    if len(one.u) > 1 or len(other.u) == 1:
        return False
    mine, theirs = (torch.cat([s.u.flatten(), s.w.flatten()]) for s in (one, other))
    return bool(torch.isin(mine, theirs).all())
