"""A module's losses, one per datum, as a function of ``theta [D]``: one forward for all data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from particlevi.curvature.operators import losses_of
from particlevi.potentials.layout import Layout

__all__ = ["doubled", "module_losses"]


def module_losses(
    module: nn.Module, layout: Layout, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> Callable[..., Tensor]:
    """``(theta [D], inputs, ..., targets) -> [n]``, for modules that do not mix their data."""

    def losses(theta: Tensor, *piece: Any) -> Tensor:
        leaves = piece[0] if len(piece) == 1 else piece
        *inputs, targets = leaves
        outputs = torch.func.functional_call(module, layout.unravel(theta), tuple(inputs))
        return losses_of(loss_fn, outputs, targets)

    return losses


def doubled(data: Any) -> tuple[Tensor, ...]:
    """``(inputs, ..., targets)`` as tensors, floating-point ones in float64.

    Raises:
        ValueError: anything but a tuple of tensors or arrays.
    """
    right = isinstance(data, (tuple, list)) and len(data) >= 2
    if not right or not all(isinstance(leaf, (Tensor, np.ndarray)) for leaf in data):
        kinds = [type(leaf).__name__ for leaf in data] if right else type(data).__name__
        raise ValueError(f"data must be a tuple (inputs, ..., targets) of tensors, got {kinds}.")
    leaves = [torch.as_tensor(leaf).detach() for leaf in data]
    if any(leaf.ndim == 0 for leaf in leaves):
        raise ValueError("data must have a first dimension N, got a number.")
    return tuple(leaf.double() if leaf.is_floating_point() else leaf for leaf in leaves)
