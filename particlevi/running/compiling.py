"""A sampler's step under ``torch.compile``."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.utils import _pytree as pytree

from particlevi.running.passes import TransposedProducts
from particlevi.typing import Batch, Sampler

__all__ = [
    "OLDEST_COMPILER",
    "check_compiler",
    "compiled",
    "compiled_as",
    "kind_of_batch",
    "static_shapes",
]

OLDEST_COMPILER = (2, 12)
"""The first torch under which every sampler of this package compiles whole."""

_WHILE_LOOP = "torch.ops.higher_order.while_loop"
"""Torch keeps graphs with loops on disk only if told so; the key holds the bodies of the loops."""

_unique = itertools.count()
_compiled_steps: WeakKeyDictionary[Sampler, dict[str, Callable[..., Any]]] = WeakKeyDictionary()


def compiled(
    sampler: Sampler, example: Batch | None, controls: Iterable[str]
) -> Callable[..., Any]:
    """The sampler's step compiled whole, once per sampler, kind of batch and names of controls."""
    kind = f"step {kind_of_batch(example)} {sorted(controls)}"
    return compiled_as(sampler, kind, lambda: sampler.step)


def check_compiler() -> None:
    """Torch's compiler is new enough.

    Raises:
        RuntimeError: a torch before 2.12, whose compiler fails on some samplers.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_COMPILER:
        raise RuntimeError(
            f"compile=True needs torch {'.'.join(map(str, OLDEST_COMPILER))} or later, got "
            f"{torch.__version__}: leave compile out, or upgrade torch."
        )


def kind_of_batch(example: Batch | None) -> str:
    """All of a batch that compiled code takes for granted, beside shapes."""
    fixed = None if example is None else (example.per_particle, example.scale is None)
    return f"{pytree.tree_structure(example)} {fixed} {example is not None and example.law}"


def compiled_as(
    sampler: Sampler, kind: str, make: Callable[[], Callable[..., Any]]
) -> Callable[..., Any]:
    """A function of tensors compiled whole, once per sampler and kind.

    A graph break is an error. The code object is made anew, because torch.compile counts
    compilations per code object and gives up after a few, and all samplers share theirs. Within
    one compilation only the tensors' shapes can change, so only they are guarded. Call it inside
    ``static_shapes()``.
    """
    compilations = _compiled_steps.setdefault(sampler, {})
    if kind not in compilations:
        step = make()
        assert isinstance(step, types.FunctionType)
        code = step.__code__.replace(co_name=f"step_{next(_unique)}")
        fresh = types.FunctionType(
            code, step.__globals__, step.__name__, step.__defaults__, step.__closure__
        )
        options: dict[str, Any] = {
            "guard_filter_fn": _shapes_only,
            "size_asserts": False,
            "cpp_wrapper": sampler.potential.device.type == "cpu",
            "unsafe_marked_cacheable_functions": {_WHILE_LOOP: "1"},
            "post_grad_custom_pre_pass": TransposedProducts(),
        }
        compilations[kind] = torch.compile(fresh, fullgraph=True, options=options)
    return compilations[kind]


def static_shapes() -> AbstractContextManager[None]:
    """Every shape compiled for itself: as an argument of torch.compile it would cost every call."""
    context: AbstractContextManager[None] = torch._dynamo.config.patch(
        assume_static_by_default=True, automatic_dynamic_shapes=False
    )
    return context


def _shapes_only(guards: Iterable[Any]) -> list[bool]:
    return [guard.guard_type == "TENSOR_MATCH" for guard in guards]
