"""A module's losses, one per datum, as a function of ``theta [D]``: one forward for all data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def doubled(leaf: Any) -> Any:
    """A floating-point tensor in float64; others as they are."""
    tensor = torch.as_tensor(leaf)
    return tensor.double() if tensor.is_floating_point() else tensor
