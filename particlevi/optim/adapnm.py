"""Positive-negative momentum with Adam's denominator.

Step t, with ``m_t`` as in ``PNM``::

    v_t = beta2 v_{t-1} + (1 - beta2) g_t^2,        w_t = max(w_{t-1}, v_t)
    d_t = sqrt(w_t / (1 - beta2^t)) + eps
    theta' = theta - lr / (1 - beta1^t) (m_t + beta0 (m_t - m_{t-1}))
                     / (d_t sqrt((1 + beta0)^2 + beta0^2))

The correction ``1 - beta1^t`` is that of the published code; the averages decay by ``beta1^2``
every second step. Under a constant gradient the first step is therefore 3.8 times the last.

Reference: Xie, Yuan, Zhu and Sugiyama, "Positive-negative momentum: manipulating stochastic
gradient noise to improve generalization", 2021.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_nonnegative
from particlevi.optim._base import Group, Params, Tensors, TorchOptimizer, check_betas
from particlevi.optim.pnm import alternate, store

__all__ = ["AdaPNM"]


class AdaPNM(TorchOptimizer):
    """Positive-negative momentum over Adam's denominator.

    ``m_t`` as in ``PNM``, ``v_t = beta2 v_{t-1} + (1 - beta2) g_t^2``, ``w_t`` the largest ``v`` so
    far (``amsgrad``) or ``v_t``; the step is ``-lr / (1 - beta1^t) (m_t + beta0 (m_t - m_{t-1})) /
    (sqrt((1 + beta0)^2 + beta0^2) (sqrt(w_t / (1 - beta2^t)) + eps))``.

    Source: Xie, Yuan, Zhu and Sugiyama, "Positive-negative momentum: manipulating stochastic
    gradient noise to improve generalization", 2021.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: the learning rate, a number or a tensor with one element.
        betas: beta1 and beta2 in [0, 1), and beta0, how much of the difference is added.
        eps: added to the denominator.
        weight_decay: the coefficient of the weight decay.
        amsgrad: divide by the largest ``v`` so far.
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
        >>> optimizer = AdaPNM([theta], lr=1.0)
        >>> theta.grad = torch.ones(1)
        >>> optimizer.step(); print(f"{theta.item():.4f}")
        -1.6994
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 1.0),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = True,
        *,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        check_betas(betas, ("beta1", "beta2", "beta0"))
        check_nonnegative("eps", eps)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
            },
        )

    def _buffers(self, group: Group) -> tuple[str, ...]:
        names = ("momentum_odd", "momentum_even", "square")
        return (*names, "max_square") if group["amsgrad"] else names

    def _update(
        self, group: Group, params: Tensors, grads: Tensors, steps: Tensors, *buffers: Tensors
    ) -> None:
        beta1, beta2, beta0 = group["betas"]
        odd, even, square, *largest = buffers
        copies = group["capturable"] or torch.compiler.is_compiling()
        m, previous = alternate(steps, odd, even, copies)
        torch._foreach_lerp_(m, grads, 1 - beta1**2)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
        if largest:
            kept = [v.clone() for v in square] if group["differentiable"] else square
            torch._foreach_maximum_(largest[0], kept)
        updates = torch._foreach_lerp(previous, m, 1 + beta0)
        denominators = torch._foreach_sqrt(largest[0] if largest else square)
        on_device = copies or group["differentiable"]
        counts = steps if on_device else [step.item() for step in steps]
        roots = [correction(beta2, t) ** 0.5 for t in counts]
        rates = [
            -group["lr"] * root / (correction(beta1, t) * math.hypot(1 + beta0, beta0))
            for t, root in zip(counts, roots, strict=True)
        ]
        offsets = [group["eps"] * root for root in roots]
        if isinstance(rates[0], Tensor):
            denominators = torch._foreach_add(denominators, offsets)
            quotients = torch._foreach_div(denominators, [rate.reshape(()) for rate in rates])
            torch._foreach_addcdiv_(params, updates, quotients)
        else:
            torch._foreach_add_(denominators, offsets)
            torch._foreach_addcdiv_(params, updates, denominators, rates)
        if copies:
            store(steps, odd, even, m, previous)


def correction(beta: float, step: Any) -> Any:
    """``1 - beta^step``, to rounding also where ``step`` is a tensor in single precision."""
    if isinstance(step, Tensor) and beta:
        return -torch.expm1(step * math.log(beta))
    return 1 - beta**step
