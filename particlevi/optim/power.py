"""Powers of gradients in front of any optimiser.

Every component of the gradient is replaced by ``sign(g) |g|^H``. At ``H = 1`` nothing changes, as
``H -> 0`` only signs are left; ``H > 1`` damps small components, the other way round.

On ``h x^2 / 2``, without noise and with ``H < 1``: gradient flow reaches 0 in the finite time
``|x0|^(1-H) / ((1-H) h^H)``; gradient descent ends in the stable 2-cycle
``|x| = (lr h^H / 2)^(1/(1-H))`` and never converges. Noise of standard deviation s makes the
mean step linear again near 0, with slope ``H s^(H-1) 2^((H-1)/2) Gamma(H/2) / sqrt(pi)``.
Gradients c times as large give steps ``c^H`` times as large: retune the learning rate with the
batch size, and take the power after the loss scale of mixed precision has been divided out.

Reference: Baiesi, "Power gradient descent", 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from particlevi._checks import check_positive
from particlevi._warning import warn
from particlevi.optim._base import Closure, real

__all__ = ["Power", "power", "signed_power"]


@torch.no_grad()
def signed_power(grads: list[Tensor], exponent: float) -> list[Tensor]:
    """``sign(g) |g|^H`` of each tensor, in new storage; real and imaginary parts apart."""
    dense = [g for g in grads if not g.is_sparse]
    parts = real(dense)
    powers: Iterable[Tensor] = ()
    if parts:
        powers = torch._foreach_abs(parts)
        torch._foreach_pow_(powers, exponent)
        torch._foreach_mul_(powers, torch._foreach_sign(parts))
    found = iter(
        torch.view_as_complex(p) if torch.is_complex(g) else p
        for g, p in zip(dense, powers, strict=True)
    )
    return [_sparse_power(g, exponent) if g.is_sparse else next(found) for g in grads]


def _sparse_power(grad: Tensor, exponent: float) -> Tensor:
    grad = grad.coalesce()
    values = signed_power([grad.values()], exponent)[0]
    return torch.sparse_coo_tensor(
        grad.indices(), values, grad.shape, is_coalesced=True, check_invariants=False
    )


class Shared:
    """An attribute of the wrapped optimiser."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, power: Any, owner: type | None = None) -> Any:
        return self if power is None else getattr(power.optimizer, self.name)

    def __set__(self, power: Any, value: Any) -> None:
        setattr(power.optimizer, self.name, value)


@final
class Power(Optimizer):
    """An optimiser that sees powers of the gradients: what ``power`` returns.

    It shares parameter groups, state and state hooks with the optimiser that it wraps. Schedulers,
    ``GradScaler`` and checkpoints take this one.

    Attributes:
        optimizer: what it wraps.
    """

    optimizer: Optimizer

    def __init__(self, optimizer: Optimizer, exponent: float) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"power takes a torch optimizer, got {type(optimizer).__name__}.")
        check_positive("exponent", exponent)
        if optimizer.defaults.get("differentiable"):
            raise ValueError(
                "power keeps no graph, since |g|^exponent has no derivative at 0: "
                "leave out differentiable=True."
            )
        optimizer.defaults["exponent"] = exponent
        for group in optimizer.param_groups:
            group.setdefault("exponent", exponent)
        self.__setstate__({"optimizer": optimizer})

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "optimizer" not in state:
            self.optimizer.__setstate__(state)
            return
        inner = state["optimizer"]
        shared = {name: hooks for name, hooks in vars(inner).items() if "state_dict" in name}
        super().__setstate__({"optimizer": inner, **shared})

    param_groups: Any = Shared()
    state: Any = Shared()
    defaults: Any = Shared()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the wrapped optimiser."""
        self.optimizer.add_param_group(param_group)

    def _replace(self, taken: list[tuple[Tensor, Tensor]]) -> None:
        taken.clear()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params or group["exponent"] == 1:
                continue
            grads = [p.grad for p in params]
            powers = signed_power(grads, group["exponent"])
            if torch.compiler.is_compiling():
                # A graph may not bind .grad anew before another optimiser's step.
                taken.extend(zip(params, [g.clone() for g in grads], strict=True))
                torch._foreach_copy_(grads, powers)
                continue
            taken.extend(zip(params, grads, strict=True))
            for p, g in zip(params, powers, strict=True):
                p.grad = g

    def _restore(self, taken: list[tuple[Tensor, Tensor]]) -> None:
        for p, grad in taken:
            if torch.compiler.is_compiling():
                p.grad.copy_(grad)  # type: ignore[union-attr]
            else:
                p.grad = grad

    def step(self, closure: Closure | None = None, **others: Any) -> Any:
        """One step of the wrapped optimiser on the powers; ``.grad`` is the gradient afterwards.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward``, returns the loss.
            **others: passed on.
        """
        if getattr(self, "grad_scale", None) is not None:
            warn(
                "The gradients still carry a loss scale, and the power of a scaled gradient is not "
                "the scaled power: call scaler.unscale_(optimizer) before step().",
            )
        taken: list[tuple[Tensor, Tensor]] = []

        def powered() -> Any:
            loss = None if closure is None else closure()
            self._replace(taken)
            return loss

        try:
            if closure is not None:
                return self.optimizer.step(powered, **others)
            powered()
            return traceable(self.optimizer)(**others)
        finally:
            self._restore(taken)


def traceable(optimizer: Optimizer) -> Callable[..., Any]:
    """The step of an optimiser, for a graph without the breaks that torch puts around its own."""
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if hooked or not torch.compiler.is_compiling():
        return optimizer.step
    step: Any = type(optimizer).step
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__

    def call(**others: Any) -> Any:
        with torch.no_grad():
            return step(optimizer, **others)

    return call


def power(optimizer: Optimizer, exponent: float) -> Power:
    """``optimizer`` on powers of the gradients, ``sign(g) |g|^exponent`` componentwise.

    Any optimiser: SGD with momentum or Nesterov's, Adam, AMSGrad. The gradients of a parameter
    group are raised to ``group["exponent"]``, which may differ between groups and change between
    steps. Below 1 small components count for more, above 1 for less. Not equivariant under
    rotations. Use the optimiser that is returned, not the one that was given, for steps.

    Source: Baiesi, "Power gradient descent", 2019.

    Args:
        optimizer: any optimiser of torch's kind that does not keep the graph of its step.
        exponent: H > 0 of the groups that do not set their own.

    Raises:
        TypeError: not an optimiser.
        ValueError: exponent not above 0, or a differentiable optimiser: the derivative of
            ``|g|^H`` is infinite at 0.

    Examples:
        >>> theta = torch.tensor([1e-4, 1.0], requires_grad=True)
        >>> optimizer = power(torch.optim.SGD([theta], lr=1.0), 0.5)
        >>> theta.square().sum().div(2).backward()
        >>> optimizer.step(); theta.detach()
        tensor([-0.0099,  0.0000])
    """
    return Power(optimizer, exponent)
