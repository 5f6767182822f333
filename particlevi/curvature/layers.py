"""What a backward pass leaves in the layers of a module: their inputs and the slopes of the loss.

In a linear layer ``o = W a + b`` the gradient of datum k is ``d_k [a_k, 1]'``, with ``d_k`` the
slope of its loss in ``o_k``. Convolutions are linear in patches of their inputs, normalisations
entry by entry. Parameters of other layers, or of layers used twice, are left to ``vmap``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from particlevi.curvature.reductions import losses_of
from particlevi.curvature.second_order import second_order
from particlevi.potentials.layout import Layout

__all__ = ["Backward", "Loss", "Use", "backward", "patches", "per_datum", "positions", "scaled"]

Loss = Callable[[Tensor, Tensor], Tensor]


class Use(NamedTuple):
    """The one use of a layer.

    Attributes:
        layer: of a known kind.
        inputs: ``[n, ...]``.
        slope: of the summed loss in its outputs ``[n, ...]``.
    """

    layer: nn.Module
    inputs: Tensor
    slope: Tensor


class Backward(NamedTuple):
    """One backward pass over some data.

    Attributes:
        gradient: of the summed loss, by name.
        uses: by name of the layer.
        rest: names of the parameters that belong to none of these.
        one: the gradient of one datum in the rest, for ``per_datum``.
    """

    gradient: dict[str, Tensor]
    uses: dict[str, Use]
    rest: list[str]
    one: Callable[..., dict[str, Tensor]]

    def of_layer(self, name: str, own: str) -> str | None:
        """The name of a layer's own parameter, if its gradient is wanted."""
        full = f"{name}.{own}" if name else own
        return full if full in self.gradient else None


def backward(
    module: nn.Module, layout: Layout, loss_fn: Loss, theta: Tensor, data: tuple[Tensor, ...]
) -> Backward:
    """Gradients and uses at ``theta [D]``, of data that are evaluated at once.

    Args:
        module: in the mode in which it is to be evaluated; data must not be mixed in it.
        layout: of ``theta``: the module's parameters, or some of them.
        loss_fn: outputs ``[n, ...]`` and targets ``[n, ...]`` to a loss.
        theta: where.
        data: ``(inputs, ..., targets)``.
    """
    *inputs, targets = data
    values = {name: part.detach() for name, part in layout.unravel(theta).items()}
    leaves = {name: part.clone().requires_grad_() for name, part in values.items()}
    layers = _layers(module)
    with second_order(), torch.enable_grad(), _recorded(layers) as seen:
        outputs = torch.func.functional_call(module, leaves, tuple(inputs))
        total = losses_of(loss_fn, outputs, targets).sum()
        once = {name: found[0] for name, found in seen.items() if len(found) == 1}
        wanted = list(leaves.values()) + [output for _, output in once.values()]
        found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    slopes = zip(once.items(), found[len(leaves) :], strict=True)
    uses = {name: Use(layers[name], used, d.detach()) for (name, (used, _)), d in slopes}
    gradient = {n: g.detach() for n, g in zip(leaves, found, strict=False)}
    owned = {
        f"{name}.{p}" if name else p for name in uses for p, _ in layers[name].named_parameters()
    }
    rest = [name for name in leaves if name not in owned]

    def one(chosen: dict[str, Tensor], *datum: Tensor) -> Tensor:
        batch = tuple(leaf[None] for leaf in datum)
        outputs = torch.func.functional_call(module, values | chosen, batch[:-1])
        return loss_fn(outputs, batch[-1]).sum()

    part = {name: values[name] for name in rest}
    slope = torch.func.grad(one)
    return Backward(gradient, uses, rest, lambda *datum: slope(part, *datum))


def _layers(module: nn.Module) -> dict[str, nn.Module]:
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
def _recorded(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[tuple[Tensor, Tensor]]]]:
    """Inputs and outputs of every use."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(layer: nn.Module, inputs: Any, outputs: Any) -> None:
            seen[name].append((inputs[0].detach(), outputs))

        return keep

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def positions(values: Tensor) -> Tensor:
    """``[n, ..., C]`` as ``[n, T, C]``."""
    return values.flatten(1, -2)


def patches(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes ``[n, G, T, O]`` and patches ``[n, G, T, I]`` of a convolution with G groups."""
    flat = isinstance(layer, nn.Conv1d)
    lead = (1,) if flat else ()
    unfolded = nn.functional.unfold(
        inputs[:, :, None] if flat else inputs,
        (*lead, *layer.kernel_size),
        dilation=(*lead, *layer.dilation),
        padding=(*((0,) if flat else ()), *(int(p) for p in layer.padding)),
        stride=(*lead, *layer.stride),
    )
    d = slope.flatten(2).unflatten(1, (layer.groups, -1)).transpose(2, 3)
    return d, unfolded.unflatten(1, (layer.groups, -1)).transpose(2, 3)


def scaled(layer: nn.Module, inputs: Tensor, slope: Tensor) -> dict[str, Tensor]:
    """Gradients ``[n, *shape]`` in a normalisation: ``o = w x + b`` with ``x`` normalised."""
    if isinstance(layer, nn.LayerNorm):
        x = nn.functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        axes = tuple(range(1, inputs.ndim - len(layer.normalized_shape)))
    else:
        assert isinstance(layer, _BatchNorm)
        x = nn.functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
        axes = tuple(range(2, inputs.ndim))
    each = {"weight": slope * x, "bias": slope}
    return {name: (rows.sum(axes) if axes else rows) for name, rows in each.items()}


def per_datum(
    slope: Callable[..., dict[str, Tensor]], data: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """Gradients ``[n, *shape]``, one datum at a time where ``vmap`` cannot."""
    with second_order():
        try:
            found: dict[str, Tensor] = torch.func.vmap(slope)(*data)
        except (RuntimeError, ValueError):
            rows = [slope(*datum) for datum in zip(*data, strict=True)]
            found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return found
