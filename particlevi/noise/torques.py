"""Sums of ``g_ki theta_i`` over groups of parameters, for every datum, from factors of gradients.

In a linear layer with ``g_k = d_k a_k'`` the sum over the weights into unit o is ``d_ko (W a_k)_o``
and over those out of unit i ``a_ki (W' d_k)_i``: a matrix product for all data and units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from particlevi.curvature.factors import Factors
from particlevi.potentials.layout import Layout

__all__ = ["torques"]

_MOST_NUMBERS = 2**24


def torques(
    factors: Sequence[Factors], layout: Layout, theta: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums of ``g_ki theta_i`` and of their sizes over each group, ``[K, n]`` each, in float64.

    Args:
        factors: of the gradients of K data, with the names of their tensors.
        layout: of ``theta``.
        theta: ``[D]``.
        groups: positions in ``theta`` of n groups, ``[n, ...]``, each in one of them at most.

    Examples:
        >>> gradient = Factors(torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0]]), ("w",))
        >>> layout, theta = Layout({"w": (2, 1)}), torch.tensor([3.0, 4.0])
        >>> torques([gradient], layout, theta, torch.tensor([[0, 1]]))
        (tensor([[-2.]], dtype=torch.float64), tensor([[14.]], dtype=torch.float64))
    """
    theta = theta.double()
    count = len(groups)
    group = torch.full((len(theta),), count, device=theta.device)
    group[groups.flatten(1).to(theta.device)] = torch.arange(count, device=theta.device)[:, None]
    rows = len(factors[0].right)
    total, size = (theta.new_zeros(rows, count + 1) for _ in range(2))
    where = layout.slices()
    for left, right, names in factors:
        parts = [torch.arange(where[n].start, where[n].stop).to(theta.device) for n in names]
        width = 1 if left is None else left.shape[1]
        places = torch.cat([part.view(width, -1) for part in parts], 1)
        inside = group[places]
        if bool((inside < count).any()):
            ones = right.new_ones(rows, 1)
            d, a = (ones if left is None else left).double(), right.double()
            _add(total, d, a, theta[places], inside)
            _add(size, d.abs(), a.abs(), theta[places].abs(), inside)
    return total[:, :count], size[:, :count]


def _add(total: Tensor, d: Tensor, a: Tensor, weights: Tensor, group: Tensor) -> None:
    """Add ``d_ko a_ki W_oi`` to the groups ``[O, I]`` of its places; the last stands for none."""
    none = total.shape[1] - 1
    kept = group < none
    by_row, by_column = group.amin(1), group.amin(0)
    if torch.equal(group, torch.where(kept.any(0), by_row[:, None], none)):
        total.index_add_(1, by_row, d * ((a * kept.any(0)) @ weights.T))
    elif torch.equal(group, torch.where(kept.any(1)[:, None], by_column, none)):
        total.index_add_(1, by_column, a * ((d * kept.any(1)) @ weights))
    else:
        step = max(1, _MOST_NUMBERS // weights.numel())
        for part, left, right in zip(total.split(step), d.split(step), a.split(step), strict=True):
            products = left[:, :, None] * right[:, None] * weights
            part.index_add_(1, group.flatten(), products.flatten(1))
