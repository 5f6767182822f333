"""A fully connected net, and its outputs under many weights at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "Activation", "make_net", "outputs_of"]

Activation: TypeAlias = Literal["relu", "silu", "tanh"]

ACTIVATIONS: dict[str, tuple[type[nn.Module], Callable[[Tensor], Tensor]]] = {
    "relu": (nn.ReLU, torch.relu),
    "silu": (nn.SiLU, torch.nn.functional.silu),
    "tanh": (nn.Tanh, torch.tanh),
}


def make_net(
    num_inputs: int, hidden: Sequence[int], num_outputs: int, activation: Activation, seed: int
) -> nn.Sequential:
    """A net with fresh weights; torch's own random numbers stay as they were."""
    layers: list[nn.Module] = []
    width = num_inputs
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for size in hidden:
            layers += [nn.Linear(width, size), ACTIVATIONS[activation][0]()]
            width = size
        layers.append(nn.Linear(width, num_outputs))
    return nn.Sequential(*layers)


def outputs_of(
    weights: Sequence[tuple[Tensor, Tensor]], inputs: Tensor, activation: Activation
) -> Tensor:
    """Outputs ``[S, B, K]`` of nets with weights ``[S, out, in]`` and biases ``[S, out]``."""
    apply = ACTIVATIONS[activation][1]
    values = inputs.expand(len(weights[0][0]), *inputs.shape)
    for k, (weight, bias) in enumerate(weights):
        values = torch.baddbmm(bias.unsqueeze(1), values, weight.mT)
        if k + 1 < len(weights):
            values = apply(values)
    return values
