"""What a module does when it runs that its layers do not tell: found out by running it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from particlevi.potentials.random import seeded

__all__ = ["Habits", "probe"]

_ROWS = 4
"""Data that a module is probed on."""

Run = Callable[[nn.Module, dict[str, Tensor], Any], Tensor]
"""A module with these weights on these inputs."""


@dataclass(frozen=True)
class Habits:
    """What was found.

    Attributes:
        writes_inputs: the module changes its inputs in place.
        attends: the module calls scaled dot-product attention, whose fused kernels do not lift.
        convolved: numbers per datum in the largest output of a convolution; none without one.
    """

    writes_inputs: bool = False
    attends: bool = False
    convolved: int = 0


def probe(
    module: nn.Module,
    weights: dict[str, Tensor],
    inputs: Any,
    run: Run,
    *,
    random: bool,
    whole_batches: bool,
) -> Habits:
    """Run a module on a few data, in double precision, and refuse what cannot be sampled.

    Args:
        module: is copied, not run.
        weights: of one particle, by name.
        inputs: of a batch, leaves ``[B, ...]``.
        run: how the module is run.
        random: masks of dropout are meant to differ between runs.
        whole_batches: outputs are meant to depend on all the data of a batch.

    Raises:
        ValueError: buffers that change, outputs that differ from run to run, a gradient that is not
            the derivative of the output, or outputs of a datum that depend on its batch.
    """
    arguments = {"random": random, "whole_batches": whole_batches}
    exact = _Precision(torch.float64, steps=(1e-6, 1e-7, 1e-8, 1e-9), tolerance=1e-4)
    coarse = _Precision(next(iter(weights.values())).dtype, steps=(1e-2, 1e-3), tolerance=5e-2)
    for precision in (exact, coarse):
        try:
            return _probe(module, weights, inputs, run, precision, **arguments)
        except _RefusalError:
            raise
        except Exception:  # the evaluation itself tells what is wrong, in the caller's precision
            continue
    return Habits()


class _RefusalError(ValueError):
    """A module that cannot be sampled."""


class _Precision(NamedTuple):
    """How derivatives are compared: in this dtype, by differences of these steps, up to this."""

    dtype: torch.dtype
    steps: tuple[float, ...]
    tolerance: float


def _probe(
    module: nn.Module,
    weights: dict[str, Tensor],
    inputs: Any,
    run: Run,
    precision: _Precision,
    *,
    random: bool,
    whole_batches: bool,
) -> Habits:
    module = copy.deepcopy(module).to(precision.dtype)
    weights = {name: weight.detach().to(precision.dtype) for name, weight in weights.items()}
    inputs = pytree.tree_map(lambda leaf: _cast(leaf[:_ROWS], precision.dtype), inputs)

    def once(points: dict[str, Tensor], data: Any = inputs) -> Tensor:
        return run(module, points, _clone(data))

    with torch.enable_grad(), seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = _clone(inputs)
        with torch.no_grad(), _Calls() as calls:
            first = run(module, weights, given)
        if not isinstance(first, Tensor) or not first.is_floating_point():
            return Habits()
        rows = len(pytree.tree_leaves(inputs)[0])
        habits = Habits(not _same(given, inputs), calls.attends, calls.convolved // rows)
        first = first.detach().clone()
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        with torch.no_grad():
            once(weights, pytree.tree_map(lambda leaf: leaf.flip(0), inputs))
        _check_buffers(before, module)
        if random:
            return habits
        torch.manual_seed(1)
        with torch.no_grad():
            second = once(weights)
        _check_repeatable(first, second)
        if not torch.isfinite(first).all():
            return habits
        _check_gradient(module, weights, once, first, precision)
        if not whole_batches and first.ndim and len(first) > 1:
            part = pytree.tree_map(lambda leaf: leaf[:1], inputs)
            with torch.no_grad():
                _check_rows(module, first, once(weights, part), precision)
    return habits


def _cast(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _clone(data: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone(), data)


def _same(a: Any, b: Any) -> bool:
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in pairs)


def _check_buffers(before: dict[str, Tensor], module: nn.Module) -> None:
    after = dict(module.named_buffers())
    changed = [
        name
        for name, old in before.items()
        if name not in after or old.shape != after[name].shape or not _same(old, after[name])
    ]
    changed += [name for name in after if name not in before]
    if changed:
        raise _RefusalError(
            f"The buffers {changed} of {type(module).__name__} change when the module runs, so "
            "that a datum's likelihood depends on what was evaluated before: leave the update out "
            "in evaluation mode (if self.training: ...)."
        )


def _check_repeatable(first: Tensor, second: Tensor) -> None:
    same = first.shape == second.shape and torch.allclose(first, second, equal_nan=True)
    if not same:
        raise _RefusalError(
            "The module's outputs differ between two runs on the same data, though no dropout "
            "layer is on: it draws random numbers in forward, as F.dropout(x) does without "
            "training=self.training. Use nn.Dropout, and choose dropout='off' or 'sample'."
        )


def _check_rows(module: nn.Module, together: Tensor, alone: Tensor, precision: _Precision) -> None:
    if alone.shape[1:] != together.shape[1:] or len(alone) != 1:
        return
    scale = together.abs().max() + 1.0
    if bool(((alone[0] - together[0]).abs() > 0.1 * precision.tolerance * scale).any()):
        sequence_first = [
            name
            for name, layer in module.named_modules()
            if getattr(layer, "batch_first", True) is False
        ]
        advice = f" (batch_first=True in {sequence_first})" if sequence_first else ""
        raise _RefusalError(
            "The module's output for one datum depends on the other data in its batch, so that the "
            "likelihood is no sum over data: let the first dimension of the inputs count the data"
            f"{advice}, and normalise within a datum."
        )


def _check_gradient(
    module: nn.Module,
    weights: dict[str, Tensor],
    run: Callable[[dict[str, Tensor]], Tensor],
    outputs: Tensor,
    precision: _Precision,
) -> None:
    """The gradient along a random direction against central differences.

    A difference is off where a rectifier or a maximum switches within its step; the smaller the
    step, the fewer do. A gradient that is cut differs at every step.
    """
    direction = {name: torch.randn_like(w) for name, w in weights.items()}
    probe = torch.randn_like(outputs)
    leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
    with _noting_reruns(module) as rerun:
        value = (run(leaves) * probe).sum()
        grads: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if value.requires_grad:
            rerun.armed = True
            grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    if rerun.names:
        raise _RefusalError(
            f"{rerun.names} run once more in the backward pass (activation checkpointing), "
            "where the weights are not the particle's: switch checkpointing off, and bound memory "
            "by chunk_size= instead."
        )
    by_name = dict(zip(leaves, grads, strict=True))

    def difference(names: list[str], step: float) -> float:
        """The slope along the direction of some tensors."""
        values = []
        with torch.no_grad():
            for sign in (1.0, -1.0):
                moved = {n: w + sign * step * direction[n] for n, w in weights.items()}
                points = {n: moved[n] if n in names else weights[n] for n in weights}
                values.append(float((run(points) * probe).sum()))
        return (values[0] - values[1]) / (2 * step)

    tolerance = precision.tolerance
    scale = tolerance * (float(outputs.abs().max()) + 1e-3)

    def wrong(names: list[str]) -> bool:
        parts = [(g * direction[n]).sum() for n in names if (g := by_name[n]) is not None]
        gradient = float(sum(parts))

        def differs(slope: float) -> bool:
            size = max(abs(slope), abs(gradient))
            return abs(slope - gradient) > scale + 10 * tolerance * size

        return all(differs(difference(names, step)) for step in precision.steps)

    if wrong(list(weights)):
        names = [name for name in weights if wrong([name])]
        raise _RefusalError(
            f"The gradient of the module's outputs with respect to {names or list(weights)} is "
            "not their derivative: something in forward is cut from it (torch.no_grad(), .detach(),"
            " .data, .item(), reentrant checkpointing) or has a backward of its own. To freeze a "
            "tensor, set requires_grad=False."
        )


class _Calls(TorchFunctionMode):
    """Whether attention was called, and the largest output of a convolution."""

    attends = False
    convolved = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        self.attends |= name in ("scaled_dot_product_attention", "multi_head_attention_forward")
        if name.startswith("conv") and isinstance(found, Tensor):
            self.convolved = max(self.convolved, found.numel())
        return found


class _Reruns:
    """The layers that run while ``armed``."""

    def __init__(self) -> None:
        self.armed = False
        self.names: list[str] = []


@contextmanager
def _noting_reruns(module: nn.Module) -> Iterator[_Reruns]:
    found = _Reruns()

    def hook(name: str) -> Callable[..., None]:
        def note(*_: Any) -> None:
            if found.armed and name not in found.names:
                found.names.append(name)

        return note

    handles = [
        layer.register_forward_pre_hook(hook(name or type(module).__name__))
        for name, layer in module.named_modules()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
