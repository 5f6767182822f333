"""Weights that were trained under other running statistics.

A normalisation layer in evaluation mode is affine in its input h, ``gamma (h - m) / s + beta``,
with the running mean m and ``s^2 = v + eps`` of the running variance v. Weights that belong to
other statistics m' and v' are therefore the same function as these under m and v::

    gamma = gamma' s / s',    beta = beta' + gamma' (m - m') / s'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["STATISTICS", "absorbing_layers", "carried_over"]

STATISTICS = ("running_mean", "running_var")

# In evaluation mode exactly the equation above; a class of a user's may do anything.
_AFFINE = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


def absorbing_layers(module: nn.Module, sampled: Collection[str]) -> dict[str, _NormBase]:
    """Layers whose scale and shift are sampled and their own, by the prefix of their tensors."""
    uses = Counter(id(p) for layer in module.modules() for p in layer._parameters.values())
    found = {}
    for name, layer in module.named_modules():
        prefix = f"{name}." if name else ""
        if type(layer) not in _AFFINE or layer.running_mean is None:
            continue
        own = [layer._parameters["weight"], layer._parameters["bias"]]
        named = {f"{prefix}weight", f"{prefix}bias"} <= set(sampled)
        if named and all(uses[id(parameter)] == 1 for parameter in own):
            found[prefix] = layer
    return found


def carried_over(
    layers: Mapping[str, _NormBase], tensors: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Weights ``[..., *shape]`` that are under the layers' statistics what these are under theirs.

    Args:
        layers: from ``absorbing_layers``.
        tensors: weights and running statistics by name; layers without them stay as they are.
    """
    found = dict(tensors)
    for prefix, layer in layers.items():
        names = [f"{prefix}{name}" for name in ("weight", "bias", *STATISTICS)]
        given = [tensors[name] for name in names if name in tensors]
        if len(given) < len(names) or any(t.shape[-1:] != (layer.num_features,) for t in given):
            continue
        scale, shift, mean, variance = (tensor.double() for tensor in given)
        assert layer.running_mean is not None and layer.running_var is not None
        own_mean, own_variance = (each.to(mean) for each in (layer.running_mean, layer.running_var))
        spread = (variance + layer.eps).sqrt()
        found[names[0]] = (scale * (own_variance + layer.eps).sqrt() / spread).to(tensors[names[0]])
        found[names[1]] = (shift + scale * (own_mean - mean) / spread).to(tensors[names[1]])
    return found
