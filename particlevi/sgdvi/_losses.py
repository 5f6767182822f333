"""A module's losses, one per datum, as a function of ``theta [D]``: one forward for all data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from particlevi.curvature.reductions import losses_of
from particlevi.data import DataLike, Place, as_pairs
from particlevi.potentials._module_modes import set_plain_paths
from particlevi.potentials.layout import Layout

__all__ = ["doubled", "module_losses"]


def module_losses(
    module: nn.Module, layout: Layout, loss_fn: Callable[[Tensor, Tensor], Tensor]
) -> Callable[..., Tensor]:
    """``(theta [D], inputs, ..., targets) -> [n]`` in evaluation mode, if data are not mixed."""
    own = copy.deepcopy(module).eval()
    set_plain_paths(own)

    def losses(theta: Tensor, *piece: Any) -> Tensor:
        leaves = piece[0] if len(piece) == 1 else piece
        *inputs, targets = leaves
        with sdpa_kernel(SDPBackend.MATH):  # fused attention does not know vmap
            outputs = torch.func.functional_call(own, layout.unravel(theta), tuple(inputs))
        return losses_of(loss_fn, outputs, targets)

    return losses


def doubled(
    module: nn.Module, data: DataLike, loss_fn: Any
) -> tuple[nn.Module, tuple[Tensor, ...], Any]:
    """A copy of the module, ``(inputs, ..., targets)`` and a loss's own weights in float64."""
    module = copy.deepcopy(module).double()
    own = copy.deepcopy(loss_fn).double() if isinstance(loss_fn, nn.Module) else loss_fn
    return module, as_pairs(data, Place(next(module.parameters()).device, torch.float64)), own
