"""The convention of ``torch.optim``, written once for every optimiser of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from particlevi._checks import as_list, check_flag, check_nonnegative, is_number

__all__ = [
    "Closure",
    "Group",
    "Params",
    "Tensors",
    "TorchOptimizer",
    "check_betas",
    "check_lr",
    "descend",
    "mixed",
    "real",
]

Params: TypeAlias = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
"""Parameters, named parameters or parameter groups, as ``torch.optim`` takes them."""

Closure: TypeAlias = Callable[[], Any]
"""Clears the gradients, computes the loss, calls ``backward`` and returns the loss."""

Group: TypeAlias = Mapping[str, Any]
"""The settings of one parameter group."""

Tensors: TypeAlias = list[Tensor]
"""One tensor per parameter."""


def check_lr(lr: float | Tensor) -> None:
    """``lr`` is a number of at least 0, or a tensor with one element."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"A tensor lr must have one element, got {list(lr.shape)}.")
    else:
        check_nonnegative("lr", lr)
        if float(lr) > torch.finfo(torch.float32).max:
            raise ValueError(f"lr must fit single precision, got {lr!r}.")


def check_betas(betas: Sequence[float], names: Sequence[str]) -> None:
    """All but the last are decay rates in [0, 1); the last is any finite number."""
    betas = as_list("betas", betas, f"({', '.join(names)})")
    if len(betas) != len(names):
        raise ValueError(f"betas must be ({', '.join(names)}), got {betas!r}.")
    for name, beta in zip(names[:-1], betas[:-1], strict=True):
        if not is_number(beta) or not 0 <= beta < 1:
            raise ValueError(f"{name} must be a number in [0, 1), got {beta!r}.")
    if not is_number(betas[-1]) or not abs(betas[-1]) < float("inf"):
        raise ValueError(f"{names[-1]} must be a finite number, got {betas[-1]!r}.")


def descend(params: Tensors, updates: Tensors, lr: float | Tensor, scale: float = 1.0) -> None:
    """``params -= lr scale updates``."""
    if isinstance(lr, Tensor):
        torch._foreach_add_(params, torch._foreach_mul(updates, lr.reshape(()) * -scale))
    else:
        torch._foreach_add_(params, updates, alpha=-lr * scale)


def decay(params: Tensors, lr: float | Tensor, weight_decay: float) -> None:
    """Decoupled weight decay, ``params *= 1 - lr weight_decay``."""
    factor = 1 - lr * weight_decay
    torch._foreach_mul_(params, factor.reshape(()) if isinstance(factor, Tensor) else factor)


def real(tensors: Tensors) -> Tensors:
    """Complex tensors seen as pairs of real numbers."""
    return [torch.view_as_real(t) if torch.is_complex(t) else t for t in tensors]


def mixed(*numbers: int) -> int:
    """One well-mixed number of 64 bits from several (splitmix64)."""
    mask, value = 2**64 - 1, 0
    for number in numbers:
        value = (value + number + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        value ^= value >> 31
    return value


def fast_together(params: Tensors) -> bool:
    """Whether one operation on all tensors beats one tensor after the other.

    On a CPU it does while they fit into the cache.
    """
    if not all(type(p) in {Tensor, torch.nn.Parameter} for p in params):
        return False
    return not params[0].is_cpu or sum(p.numel() for p in params) < 2**17


def _checked_params(params: Params) -> Params:
    """Parameters or groups of them; what torch says of others does not name the argument."""
    listed = as_list("params", params, "parameters or groups of them, as net.parameters()")
    for each in listed:
        group = isinstance(each, dict) and "params" in each
        named = isinstance(each, tuple) and len(each) == 2 and isinstance(each[1], Tensor)
        if not (group or named or isinstance(each, Tensor)):
            raise TypeError(
                "params must be parameters or groups of them, as net.parameters(), got "
                f"{type(each).__name__} among them."
            )
    if not listed:
        raise ValueError("params is empty: give what is to be optimised, as net.parameters().")
    return listed


_FLAGS = {
    "amsgrad",
    "capturable",
    "decoupled_weight_decay",
    "differentiable",
    "maximize",
    "nesterov",
}


class TorchOptimizer(Optimizer):
    """Loss, groups, state and gradients as in ``torch.optim``; a subclass says how a list moves.

    A parameter's state is ``step``, a 0-d tensor that counts its steps, and what ``_buffers``
    names, tensors of the parameter's shape that start at 0. Gradients are read and never written;
    parameters without one are left alone. Complex parameters move as pairs of real numbers.
    """

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        check_lr(defaults["lr"])
        check_nonnegative("weight_decay", defaults["weight_decay"])
        for name in _FLAGS & set(defaults):
            check_flag(name, defaults[name])
        if defaults["foreach"] is not None:
            check_flag("foreach", defaults["foreach"])
        if defaults["foreach"] and defaults.get("differentiable"):
            raise ValueError("foreach=True keeps no graph: leave it out for differentiable=True.")
        super().__init__(_checked_params(params), {"differentiable": False, **defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take further parameters, as ``torch.optim.Optimizer.add_param_group``.

        Raises:
            TypeError: tensors of whole numbers, which have no gradient.
        """
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if not (p.is_floating_point() or p.is_complex()):
                raise TypeError(
                    f"params must be tensors of floating-point numbers, got {p.dtype}, which has "
                    "no gradient."
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _buffers(self, group: Group) -> tuple[str, ...]:
        """The names of the state tensors."""
        return ()

    def _update(
        self, group: Group, params: Tensors, grads: Tensors, steps: Tensors, *buffers: Tensors
    ) -> None:
        """Move some parameters of a group; ``steps`` already counts this step."""
        descend(params, grads, group["lr"])

    def _init_group(
        self,
        group: dict[str, Any],
        params: Tensors,
        grads: Tensors,
        steps: Tensors,
        *buffers: Tensors,
    ) -> None:
        # torch.compile runs this method as it is, and only under this name.
        names = self._buffers(group)
        on_device = group.get("capturable", False)
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{type(self).__name__} takes dense gradients, got one of layout "
                    f"{p.grad.layout}: use sparse=False in the layer, or torch.optim.SparseAdam "
                    "for it."
                )
            state = self.state[p]
            if "step" not in state:
                device = p.device if on_device else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in names:
                if name not in state:
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
            params.append(p)
            grads.append(p.grad)
            steps.append(state["step"])
            for name, tensors in zip(names, buffers, strict=True):
                tensors.append(state[name])

    def _chunks(self, group: Group, lists: list[Tensors]) -> Iterator[list[Tensors]]:
        foreach = group["foreach"]
        if foreach is None:
            foreach = not group["differentiable"] and fast_together(lists[0])
        if foreach:
            grouped = self._group_tensors_by_device_and_dtype(cast(Any, lists))
            yield from (cast("list[Tensors]", tensors) for tensors, _ in grouped.values())
        else:
            yield from ([[t] for t in tensors] for tensors in zip(*lists, strict=True))

    def step(self, closure: Closure | None = None) -> Any:
        """One step.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward``, returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_groups()
        return loss

    def _collect(self, group: dict[str, Any]) -> list[Tensors]:
        """Parameters, gradients, steps and buffers of a group, complex ones as real."""
        lists: list[Tensors] = [[] for _ in range(3 + len(self._buffers(group)))]
        self._init_group(group, *lists)
        return [real(tensors) for tensors in lists]

    def _step_groups(self) -> None:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            for group in self.param_groups:
                self._step_lists(group, self._collect(group))

    def _step_lists(self, group: Group, lists: list[Tensors]) -> None:
        for chunk in self._chunks(group, lists) if lists[0] else ():
            self._move(group, *chunk)

    def _move(
        self, group: Group, params: Tensors, grads: Tensors, steps: Tensors, *buffers: Tensors
    ) -> None:
        if steps[0].is_cpu and not torch.compiler.is_compiling():
            torch._foreach_add_(steps, torch.ones(()), alpha=1.0)
        else:
            torch._foreach_add_(steps, 1)
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        if group["weight_decay"] and group["decoupled_weight_decay"]:
            decay(params, group["lr"], group["weight_decay"])
        elif group["weight_decay"]:
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
        self._update(group, params, grads, steps, *buffers)
