"""Per-sample gradients as factors: inner products without a row of D numbers for each datum.

In a linear layer the gradient of datum k is the outer product of the slopes ``d_k [O]`` and the
inputs ``a_k [I]``, so that ``g_k . g_l = (d_k . d_l)(a_k . a_l)``: the Gram matrix of N data costs
``N^2 (O + I)`` operations in place of ``N^2 O I``, and ``N (O + I)`` numbers are kept. Layers whose
gradient is a sum over positions (convolutions, sequences) have few parameters for what they do;
their gradients are kept as they are, with one number on the left.

Reference: Goodfellow, "Efficient per-example gradient computations", 2015; Novak, Sohl-Dickstein
and Schoenholz, "Fast finite width neural tangent kernel", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from particlevi.curvature.layers import (
    Loss,
    Use,
    backward,
    patches,
    per_datum,
    positions,
    scaled,
)
from particlevi.potentials.layout import Layout

__all__ = ["Factors", "gradient_factors", "gram_matrix", "squared_norms"]

_ROWS = 1024


class Factors(NamedTuple):
    """Gradients of n data in some coordinates: the outer products of ``left_k`` and ``right_k``.

    Attributes:
        left: ``[n, O]``, or None for gradients that are kept as they are.
        right: ``[n, I]``.
        names: of the tensors whose columns, or numbers, stand side by side in the I coordinates.
    """

    left: Tensor | None
    right: Tensor
    names: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Numbers that are kept of each datum."""
        return self.right.shape[1] + (0 if self.left is None else self.left.shape[1])


def gradient_factors(
    module: nn.Module,
    layout: Layout,
    loss_fn: Loss,
    theta: Tensor,
    data: tuple[Tensor, ...],
    names: Sequence[str] | None = None,
) -> list[Factors]:
    """Of the gradients of some data, at ``theta [D]``; together their coordinates are all D.

    Args:
        module: in the mode in which it is to be evaluated; data must not be mixed in it.
        layout: of ``theta``: the module's parameters, or some of them.
        loss_fn: outputs ``[n, ...]`` and targets ``[n, ...]`` to a loss.
        theta: where.
        data: ``(inputs, ..., targets)``, evaluated at once.
        names: of the parameters that count; all of the layout if absent.

    Examples:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> data = torch.eye(2), torch.zeros(2, 1)
        >>> half = lambda o, y: 0.5 * (o - y).square().sum()
        >>> found = gradient_factors(net, Layout({"weight": (1, 2)}), half, torch.ones(2), data)
        >>> gram_matrix(found)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    found = backward(module, layout, loss_fn, theta, data)
    wanted = set(layout.shapes if names is None else names)
    factors: list[Factors] = []
    rows: dict[str, Tensor] = {}
    for name, use in found.uses.items():
        full = {p: found.of_layer(name, p) for p in ("weight", "bias")}
        own = {p: each for p, each in full.items() if each is not None and each in wanted}
        if isinstance(use.layer, nn.Linear) and use.slope.ndim == 2 and "weight" in own:
            ones = [use.inputs.new_ones(len(use.inputs), 1)] if "bias" in own else []
            right = torch.cat([use.inputs, *ones], 1)
            factors.append(Factors(use.slope, right, tuple(own.values())))
        elif own:
            each = _rows(use, set(own))
            rows |= {name: each[p] for p, name in own.items()}
    rest = [name for name in found.rest if name in wanted]
    if rest:
        each = per_datum(found.one, data)
        rows |= {name: each[name] for name in rest}
    if rows:
        flat = [row.reshape(len(data[-1]), -1) for row in rows.values()]
        factors.append(Factors(None, torch.cat(flat, 1), tuple(rows)))
    return factors


def _rows(use: Use, own: set[str]) -> dict[str, Tensor]:
    """Gradients ``[n, *shape]`` in the parameters of a layer."""
    layer, inputs, slope = use
    if isinstance(layer, nn.Embedding):
        hot = nn.functional.one_hot(inputs.flatten(1), layer.num_embeddings).to(slope.dtype)
        if layer.padding_idx is not None:
            hot[..., layer.padding_idx] = 0
        return {"weight": hot.mT @ slope.reshape(*hot.shape[:2], -1)}
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        d, a = patches(layer, inputs, slope)
    elif isinstance(layer, nn.Linear):
        d, a = (positions(part[:, None] if part.ndim == 2 else part) for part in (slope, inputs))
    else:
        return scaled(layer, inputs, slope)
    found = {"bias": d.sum(-2).flatten(1)}
    return found | ({"weight": d.mT @ a} if "weight" in own else {})


def gram_matrix(factors: Sequence[Factors]) -> Tensor:
    """``g_k . g_l`` of all data, ``[N, N]`` in float64 on the CPU, by tiles."""
    count = len(factors[0].right)
    gram = torch.empty(count, count, dtype=torch.float64)
    for i in range(0, count, _ROWS):
        below = [_tile(factor, i) for factor in factors]
        for j in range(0, i + 1, _ROWS):
            block = sum(_inner(x, _tile(f, j)) for x, f in zip(below, factors, strict=True))
            assert isinstance(block, Tensor)
            gram[i : i + _ROWS, j : j + _ROWS] = block.cpu()
            gram[j : j + _ROWS, i : i + _ROWS] = block.T.cpu()
    return gram


def _tile(factor: Factors, start: int) -> Factors:
    stop = start + _ROWS
    left = None if factor.left is None else factor.left[start:stop].double()
    return Factors(left, factor.right[start:stop].double(), factor.names)


def _inner(x: Factors, y: Factors) -> Tensor:
    found = x.right @ y.right.T
    return found if x.left is None or y.left is None else found * (x.left @ y.left.T)


def squared_norms(factors: Sequence[Factors]) -> Tensor:
    """``|g_k|^2 [n]`` in float64."""
    total = torch.zeros(len(factors[0].right), dtype=torch.float64, device=factors[0].right.device)
    for left, right, _ in factors:
        found = right.double().square().sum(1)
        total += found if left is None else found * left.double().square().sum(1)
    return total
