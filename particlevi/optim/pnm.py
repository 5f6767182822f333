"""Positive-negative momentum.

Step t, with gradient ``g_t``, ``m_0 = m_{-1} = 0``::

    m_t = beta1^2 m_{t-2} + (1 - beta1^2) g_t
    theta' = theta - lr (m_t + beta0 (m_t - m_{t-1})) / sqrt((1 + beta0)^2 + beta0^2)

Two averages of gradients alternate, one of the odd steps and one of the even ones. A gradient
enters with total weight 1, as under an EMA, and with opposite signs at successive steps: the
noise of a step is amplified, that at frequency zero is not.

Reference: Xie, Yuan, Zhu and Sugiyama, "Positive-negative momentum: manipulating stochastic
gradient noise to improve generalization", 2021.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from particlevi.optim._base import Group, Params, Tensors, TorchOptimizer, check_betas, descend

__all__ = ["PNM", "alternate", "store"]


def alternate(
    steps: Tensors, odd: Tensors, even: Tensors, on_device: bool
) -> tuple[Tensors, Tensors]:
    """The average to be updated at this step and the other one.

    They are the state itself, or copies of it where the count of steps may not be read
    (``on_device``); ``store`` then writes them back.
    """
    pairs = list(zip(odd, even, strict=True))
    if on_device:
        now = [step % 2 == 1 for step in steps]
        current = [torch.where(n, o, e) for n, (o, e) in zip(now, pairs, strict=True)]
        return current, [torch.where(n, e, o) for n, (o, e) in zip(now, pairs, strict=True)]
    counts = [step.item() for step in steps]
    pairs = [(o, e) if n % 2 else (e, o) for n, (o, e) in zip(counts, pairs, strict=True)]
    return [current for current, _ in pairs], [previous for _, previous in pairs]


def store(steps: Tensors, odd: Tensors, even: Tensors, current: Tensors, previous: Tensors) -> None:
    """Write copies back into the state."""
    for step, o, e, c, p in zip(steps, odd, even, current, previous, strict=True):
        now = step % 2 == 1
        o.copy_(torch.where(now, c, p))
        e.copy_(torch.where(now, p, c))


class PNM(TorchOptimizer):
    """Positive-negative momentum on plain SGD.

    With ``m_t = beta1^2 m_{t-2} + (1 - beta1^2) g_t``, the step is ``-lr (m_t + beta0 (m_t -
    m_{t-1})) / sqrt((1 + beta0)^2 + beta0^2)``. Its gain on a constant gradient is ``1 /
    sqrt((1 + beta0)^2 + beta0^2)``, 0.447 by default: compare it with SGD at that multiple of
    ``lr``. No bias correction.

    Source: Xie, Yuan, Zhu and Sugiyama, "Positive-negative momentum: manipulating stochastic
    gradient noise to improve generalization", 2021.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: the learning rate, a number or a tensor with one element.
        betas: beta1 in [0, 1), the decay of both averages per step, and beta0, how much of the
            difference of the two is added; ``-beta1 / (1 + beta1)`` gives an ordinary EMA.
        weight_decay: the coefficient of the weight decay.
        decoupled_weight_decay: ``theta *= 1 - lr weight_decay`` rather than a term of the gradient.
        maximize: go up.
        foreach: one kernel for many tensors; by default where that is faster.
        capturable: the count of steps lives on the device and is never read by the host.
        differentiable: keep the graph through the step.

    Raises:
        ValueError: a setting out of its range.
        RuntimeError: a sparse gradient.

    Examples:
        >>> theta = torch.zeros(1, requires_grad=True)
        >>> optimizer = PNM([theta], lr=1.0)
        >>> theta.grad = torch.ones(1)
        >>> optimizer.step(); print(f"{theta.item():.4f}")
        -0.1699
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 1.0),
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_betas(betas, ("beta1", "beta0"))
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
            },
        )

    def _buffers(self, group: Group) -> tuple[str, ...]:
        return ("momentum_odd", "momentum_even")

    def _update(
        self, group: Group, params: Tensors, grads: Tensors, steps: Tensors, *buffers: Tensors
    ) -> None:
        beta1, beta0 = group["betas"]
        copies = group["capturable"] or torch.compiler.is_compiling()
        odd, even = buffers
        m, previous = alternate(steps, odd, even, copies)
        torch._foreach_lerp_(m, grads, 1 - beta1**2)
        updates = list(torch._foreach_lerp(previous, m, 1 + beta0))
        descend(params, updates, group["lr"], 1 / math.hypot(1 + beta0, beta0))
        if copies:
            store(steps, odd, even, m, previous)
