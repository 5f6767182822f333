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

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from particlevi.curvature.operators import losses_of
from particlevi.curvature.second_order import second_order
from particlevi.potentials.layout import Layout

__all__ = ["GradientSquares", "gradient_squares"]

Loss = Callable[[Tensor, Tensor], Tensor]
_MOST_NUMBERS = 2**24


class GradientSquares(NamedTuple):
    """Sums over data, in float64.

    Attributes:
        gradient: ``sum_k g_k [D]``.
        squares: ``sum_k g_k^2 [D]``, entry by entry.
    """

    gradient: Tensor
    squares: Tensor


class _Use(NamedTuple):
    layer: nn.Module
    inputs: Tensor
    outputs: Tensor


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
    *inputs, targets = data
    values = {name: part.detach() for name, part in layout.unravel(theta).items()}
    leaves = {name: part.clone().requires_grad_() for name, part in values.items()}
    layers = _layers(module, leaves)
    with second_order(), torch.enable_grad(), _recorded(layers) as uses:
        outputs = torch.func.functional_call(module, leaves, tuple(inputs))
        total = losses_of(loss_fn, outputs, targets).sum()
        once = {name: found for name, found in uses.items() if len(found) == 1}
        wanted = list(leaves.values()) + [found[0].outputs for found in once.values()]
        found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    gradient = {n: g.detach().double() for n, g in zip(leaves, found, strict=False)}
    squares: dict[str, Tensor] = {}
    for (name, use), slope in zip(once.items(), found[len(leaves) :], strict=True):
        for own, value in _of_layer(use[0], slope.detach()).items():
            full = f"{name}.{own}" if name else own
            if full in leaves:
                squares[full] = value
    rest = [name for name in leaves if name not in squares]
    if rest:
        squares |= _by_vmap(module, loss_fn, values, rest, tuple(inputs), targets)
    return GradientSquares(layout.ravel(gradient), layout.ravel(squares))


def _layers(module: nn.Module, leaves: dict[str, Tensor]) -> dict[str, nn.Module]:
    """Layers of known kinds whose parameters are all their own."""
    owners: dict[int, int] = {}
    for each in module.modules():
        for parameter in each.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    found = {}
    for name, each in module.named_modules():
        own = list(each.parameters(recurse=False))
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm, nn.Embedding, _BatchNorm)
        plain = isinstance(each, kinds) and all(owners[id(p)] == 1 for p in own)
        if isinstance(each, (nn.Conv1d, nn.Conv2d)):
            plain = plain and each.padding_mode == "zeros" and not isinstance(each.padding, str)
        if isinstance(each, nn.Embedding):
            plain = plain and each.max_norm is None and not each.scale_grad_by_freq
        if plain and own:
            found[name] = each
    return found


@contextmanager
def _recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[_Use]]]:
    uses: dict[str, list[_Use]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(layer: nn.Module, inputs: Any, outputs: Any) -> None:
            uses[name].append(_Use(layer, inputs[0].detach(), outputs))

        return keep

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _of_layer(use: _Use, slope: Tensor) -> dict[str, Tensor]:
    layer, inputs = use.layer, use.inputs
    if isinstance(layer, nn.Linear):
        found = _products(slope, inputs)
    elif isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        found = _convolution(layer, inputs, slope)
    elif isinstance(layer, nn.Embedding):
        found = {"weight": _embedding(layer, inputs, slope)}
    else:
        found = _scaled(layer, inputs, slope)
    return found


def _products(slope: Tensor, inputs: Tensor) -> dict[str, Tensor]:
    """Of ``sum_t d_kt a_kt'``, from ``[n, ..., O]`` and ``[n, ..., I]``."""
    if slope.ndim == 2:
        weight = slope.square().T @ inputs.square()
        return {"weight": weight.double(), "bias": slope.square().sum(0, dtype=torch.float64)}
    slope, inputs = slope.flatten(1, -2), inputs.flatten(1, -2)
    step = max(1, _MOST_NUMBERS // (slope.shape[-1] * inputs.shape[-1]))
    weight = torch.zeros(slope.shape[-1], inputs.shape[-1], dtype=torch.float64).to(slope.device)
    for d, a in zip(slope.split(step), inputs.split(step), strict=True):
        weight += torch.einsum("nto,nti->noi", d, a).square().sum(0, dtype=torch.float64)
    return {"weight": weight, "bias": slope.sum(1).square().sum(0, dtype=torch.float64)}


def _convolution(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor, slope: Tensor) -> dict[str, Tensor]:
    groups = layer.groups
    flat = isinstance(layer, nn.Conv1d)
    lead = (1,) if flat else ()
    patches = nn.functional.unfold(
        inputs[:, :, None] if flat else inputs,
        (*lead, *layer.kernel_size),
        dilation=(*lead, *layer.dilation),
        padding=(*((0,) if flat else ()), *(int(p) for p in layer.padding)),
        stride=(*lead, *layer.stride),
    )
    d = slope.flatten(2).unflatten(1, (groups, -1)).transpose(2, 3)
    a = patches.unflatten(1, (groups, -1)).transpose(2, 3)
    each = [_products(d[:, g], a[:, g]) for g in range(groups)]
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


def _scaled(layer: nn.Module, inputs: Tensor, slope: Tensor) -> dict[str, Tensor]:
    """Normalisations: ``o = w x + b`` with ``x`` normalised, entry by entry."""
    if isinstance(layer, nn.LayerNorm):
        x = nn.functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        axes = tuple(range(1, inputs.ndim - len(layer.normalized_shape)))
    else:
        assert isinstance(layer, _BatchNorm)
        x = nn.functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
        axes = tuple(range(2, inputs.ndim))

    def over_places(values: Tensor) -> Tensor:
        return (values.sum(axes) if axes else values).square().sum(0, dtype=torch.float64)

    return {"weight": over_places(slope * x), "bias": over_places(slope)}


def _by_vmap(
    module: nn.Module,
    loss_fn: Loss,
    values: dict[str, Tensor],
    names: list[str],
    inputs: tuple[Tensor, ...],
    targets: Tensor,
) -> dict[str, Tensor]:
    part = {name: values[name] for name in names}

    def one(chosen: dict[str, Tensor], datum: tuple[Tensor, ...], target: Tensor) -> Tensor:
        batch = tuple(leaf[None] for leaf in datum)
        outputs = torch.func.functional_call(module, values | chosen, batch)
        return loss_fn(outputs, target[None]).sum()

    size = sum(value.numel() for value in part.values())
    step = max(1, _MOST_NUMBERS // size)
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in part.items()}
    slope = torch.func.grad(one)
    for start in range(0, len(targets), step):
        piece = tuple(leaf[start : start + step] for leaf in inputs), targets[start : start + step]
        for name, rows in _each(slope, part, *piece).items():
            total[name] += rows.square().sum(0, dtype=torch.float64)
    return total


def _each(
    slope: Callable[..., dict[str, Tensor]],
    part: dict[str, Tensor],
    inputs: tuple[Tensor, ...],
    targets: Tensor,
) -> dict[str, Tensor]:
    """Per-sample gradients ``[n, *shape]``, one datum at a time where ``vmap`` cannot."""
    with second_order():
        try:
            return torch.func.vmap(slope, in_dims=(None, 0, 0))(part, inputs, targets)
        except (RuntimeError, ValueError):
            rows = [
                slope(part, tuple(leaf[k] for leaf in inputs), targets[k])
                for k in range(len(targets))
            ]
            return {name: torch.stack([row[name] for row in rows]) for name in part}
