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

from particlevi.typing import Batch, Sampler

__all__ = ["compiled", "static_shapes"]

_unique = itertools.count()
_compiled_steps: WeakKeyDictionary[Sampler, dict[str, Callable[..., Any]]] = WeakKeyDictionary()


def compiled(sampler: Sampler, example: Batch | None) -> Callable[..., Any]:
    """The sampler's step compiled whole, once per sampler and kind of batch.

    A graph break is an error. The code object is made anew, because torch.compile counts
    compilations per code object and gives up after a few, and all samplers share theirs. Within
    one compilation only the tensors' shapes can change, so only they are guarded. Call it inside
    ``static_shapes()``.
    """
    fixed = None if example is None else (example.per_particle, example.scale is None)
    kind = f"{pytree.tree_structure(example)} {fixed} {example is not None and example.law}"
    compilations = _compiled_steps.setdefault(sampler, {})
    if kind not in compilations:
        step = sampler.step
        assert isinstance(step, types.FunctionType)
        code = step.__code__.replace(co_name=f"step_{next(_unique)}")
        fresh = types.FunctionType(
            code, step.__globals__, step.__name__, step.__defaults__, step.__closure__
        )
        options: dict[str, Any] = {
            "guard_filter_fn": _shapes_only,
            "size_asserts": False,
            "cpp_wrapper": sampler.potential.device.type == "cpu",
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
