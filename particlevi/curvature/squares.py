"""Sums of squared per-sample gradients at about the cost of one gradient.

A linear layer ``o = W a + b`` has the per-sample gradient ``d_k a_k'`` of its weight, ``d_k`` being
the slope of the loss in ``o_k``; the sum of its squares over data is ``(d^2)' (a^2)``, one matrix
product. With several positions per datum (a sequence, or a convolution's patches) the gradient is a
sum over them, ``sum_t d_kt a_kt'``, formed for a few data at a time. Layer norms, batch norms in
evaluation mode and embeddings are as simple. Parameters of other layers, or that are used twice,
get per-sample gradients by ``vmap``.

Reference: Goodfellow, "Efficient per-example gradient computations", 2015; Dangel, Kunstner and
Hennig, "BackPACK: packing more into backprop", 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from particlevi.curvature.layers import (
    Backward,
    Loss,
    Use,
    backward,
    patches,
    per_datum,
    positions,
    scaled,
)
from particlevi.potentials.layout import Layout

__all__ = ["GradientSquares", "gradient_squares"]

_MOST_NUMBERS = 2**24


class GradientSquares(NamedTuple):
    """Sums over data, in float64.

    Attributes:
        gradient: ``sum_k g_k [D]``.
        squares: ``sum_k g_k^2 [D]``, entry by entry.
    """

    gradient: Tensor
    squares: Tensor


def gradient_squares(
    module: nn.Module, layout: Layout, loss_fn: Loss, theta: Tensor, data: tuple[Tensor, ...]
) -> GradientSquares:
    """Sums of gradients and of their squares over some data, at ``theta [D]``.

    Args:
        module: in the mode in which it is to be evaluated; data must not be mixed in it.
        layout: of ``theta``: the module's parameters, or some of them.
        loss_fn: outputs ``[n, ...]`` and targets ``[n, ...]`` to a loss.
        theta: where.
        data: ``(inputs, ..., targets)``, evaluated at once.

    Examples:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> data = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
        >>> half = lambda o, y: 0.5 * (o - y).square().sum()
        >>> gradient_squares(net, Layout({"weight": (1, 1)}), half, torch.ones(1), data)
        GradientSquares(gradient=tensor([5.], dtype=torch.float64), squares=tensor([17.], ...))
    """
    found = backward(module, layout, loss_fn, theta, data)
    squares: dict[str, Tensor] = {}
    for name, use in found.uses.items():
        for own, value in _of_layer(use).items():
            full = found.of_layer(name, own)
            if full is not None:
                squares[full] = value
    if found.rest:
        squares |= _by_vmap(found, data)
    gradient = {name: part.double() for name, part in found.gradient.items()}
    return GradientSquares(layout.ravel(gradient), layout.ravel(squares))


def _of_layer(use: Use) -> dict[str, Tensor]:
    layer, inputs, slope = use
    if isinstance(layer, nn.Linear):
        return _products(slope, inputs)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return _convolution(layer, inputs, slope)
    if isinstance(layer, nn.Embedding):
        return {"weight": _embedding(layer, inputs, slope)}
    rows = scaled(layer, inputs, slope)
    return {name: row.square().sum(0, dtype=torch.float64) for name, row in rows.items()}


def _products(slope: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    """Of ``sum_t d_kt a_kt'``, from ``[n, ..., O]`` and ``[n, ..., I]``."""
    if slope.ndim == 2:
        weight = slope.square().T @ inputs.square()
        return {"weight": weight.double(), "bias": slope.square().sum(0, dtype=torch.float64)}
    slope, inputs = positions(slope), positions(inputs)
    step = max(1, _MOST_NUMBERS // (slope.shape[-1] * inputs.shape[-1]))
    weight = torch.zeros(slope.shape[-1], inputs.shape[-1], dtype=torch.float64).to(slope.device)
    for d, a in zip(slope.split(step), inputs.split(step), strict=True):
        weight += torch.einsum("nto,nti->noi", d, a).square().sum(0, dtype=torch.float64)
    return {"weight": weight, "bias": slope.sum(1).square().sum(0, dtype=torch.float64)}


def _convolution(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor, slope: Tensor) -> dict[str, Tensor]:
    d, a = patches(layer, inputs, slope)
    each = [_products(d[:, g], a[:, g]) for g in range(layer.groups)]
    weight = torch.cat([found["weight"] for found in each])
    return {
        "weight": weight.view(layer.weight.shape),
        "bias": torch.cat([found["bias"] for found in each]),
    }


def _embedding(layer: nn.Embedding, inputs: Tensor, slope: Tensor) -> Tensor:
    """A datum's gradient of a row is the sum over the places where it uses that row."""
    count = len(inputs)
    places, slopes = inputs.reshape(count, -1), slope.reshape(count, -1, slope.shape[-1])
    keys = places + layer.num_embeddings * torch.arange(count, device=places.device)[:, None]
    used, where = keys.unique(return_inverse=True)
    sums = slopes.new_zeros(len(used), slopes.shape[-1], dtype=torch.float64)
    sums.index_add_(0, where.reshape(-1), slopes.flatten(0, 1).double())
    rows = used % layer.num_embeddings
    total = sums.new_zeros(layer.num_embeddings, sums.shape[1])
    total.index_add_(0, rows, sums.square())
    if layer.padding_idx is not None:
        total[layer.padding_idx] = 0
    return total


def _by_vmap(found: Backward, data: tuple[Tensor, ...]) -> dict[str, Tensor]:
    part = {name: found.gradient[name] for name in found.rest}
    step = max(1, _MOST_NUMBERS // sum(value.numel() for value in part.values()))
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in part.items()}
    for piece in zip(*(leaf.split(step) for leaf in data), strict=True):
        for name, rows in per_datum(found.one, piece).items():
            total[name] += rows.square().sum(0, dtype=torch.float64)
    return total
