"""Whether the loss of a batch is made of losses of its data, one each.

The noise of a gradient and the curvature of a mean loss need ``f = (1/N) sum_k f_k``. A loss that
divides by something in the batch, as ``CrossEntropyLoss(weight=w)`` and ``ignore_index`` do with
``reduction="mean"``, is no such sum: of a batch of one datum the weight cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from particlevi.potentials.likelihoods import plain_targets

__all__ = ["check_losses", "check_reduction", "losses_of"]

_WAY_OUT = (
    'Pass a loss with reduction="none" (or "sum"), such as '
    'torch.nn.CrossEntropyLoss(weight=w, reduction="none"): then the loss of datum k is '
    "w[y_k] l_k, and that of an ignored one 0. Divide w by its mean over the data to keep the "
    "scale."
)


def check_reduction(
    loss_fn: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor
) -> None:
    """The loss of this batch is the mean or the sum of its data's, or one value each.

    Args:
        loss_fn: outputs ``[n, ...]`` and targets ``[n, ...]`` to a loss.
        outputs: of a module at n data.
        targets: theirs.

    Raises:
        ValueError: another loss, with the way out; or losses that are not finite.
    """
    whole = loss_fn(outputs, targets).detach().double()
    single = losses_of(loss_fn, outputs, targets).detach().double()
    if not torch.isfinite(single).all():
        bad = int((~torch.isfinite(single)).sum())
        raise ValueError(
            f"loss_fn is not finite for {bad} of {len(single)} data taken one at a time, as where "
            f"all of a mean's terms are ignored. {_WAY_OUT}"
        )
    total, scale = float(single.sum()), float(single.abs().sum())
    tolerance = 1e-3 * scale / max(len(single), 1) ** 0.5 + 1e-30
    value = float(whole.sum())
    if abs(value - total) > tolerance and abs(value * len(single) - total) > tolerance:
        raise ValueError(
            f"loss_fn of {len(single)} data is {value:.6g}, neither the sum {total:.6g} nor the "
            f"mean {total / len(single):.6g} of their losses one at a time, so it is not known "
            f"what one datum's loss is. {_WAY_OUT}"
        )


def check_losses(
    module: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], pieces: Iterable[Any]
) -> None:
    """The module gives one output per datum, and the loss of a batch is made of its data's.

    Args:
        module: in the mode in which it is looked at.
        loss_fn: outputs ``[n, ...]`` and targets ``[n, ...]`` to a loss.
        pieces: of the data, ``(inputs, ..., targets)`` each.

    Raises:
        ValueError: if not.
    """
    with torch.no_grad():
        for *inputs, given in pieces:
            targets = plain_targets(given, "The loss of a module")
            outputs = module(*inputs)
            if not isinstance(outputs, Tensor) or len(outputs) != len(targets):
                got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
                raise ValueError(
                    f"The module must give one output per datum: {got} for {len(targets)} data."
                )
            check_reduction(loss_fn, outputs, targets)


def losses_of(
    loss_fn: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor
) -> Tensor:
    """The loss of each datum, ``[n]``, from outputs ``[n, ...]``; differentiable."""

    def one(output: Tensor, target: Tensor) -> Tensor:
        return loss_fn(output[None], target[None]).sum()

    try:
        found: Tensor = torch.func.vmap(one)(outputs, targets)
    except (RuntimeError, ValueError):
        found = torch.stack([one(o, t) for o, t in zip(outputs, targets, strict=True)])
    return found
