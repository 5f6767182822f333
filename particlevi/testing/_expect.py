"""What the checks are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["NUM_PARTICLES", "equal", "expect", "own", "slopes", "unchanged"]

NUM_PARTICLES = 7  # unlike D, B and N, so that a leading 7 marks what belongs to particles


def expect(condition: bool, message: str) -> None:
    """Raise an ``AssertionError`` unless it holds, also where ``assert`` is switched off."""
    if not condition:
        raise AssertionError(message)


def equal(actual: Any, expected: Any, message: str, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Two trees of tensors have the same structure and values, bit for bit without tolerances."""
    left, right = pytree.tree_flatten(actual), pytree.tree_flatten(expected)
    expect(left[1] == right[1], f"{message}: {left[1]} is not {right[1]}")
    for a, b in zip(left[0], right[0], strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(
                a, b, rtol=rtol, atol=atol, msg=lambda text: f"{message}: {text}"
            )
        else:
            expect(a == b, f"{message}: {a!r} is not {b!r}")


def unchanged(call: Callable[[], Any], arguments: Any, message: str) -> Any:
    """What a call gives that must leave its arguments and torch's global generator alone."""
    before = pytree.tree_map_only(Tensor, torch.clone, arguments)
    stream = torch.get_rng_state()
    found = call()
    equal(arguments, before, f"{message} changes its arguments")
    expect(torch.equal(torch.get_rng_state(), stream), f"{message} uses torch's global generator")
    return found


def own(tree: Any, particle: int) -> Any:
    """What belongs to one particle, in a tree of tensors ``[P, ...]`` and of shared ones."""

    def part(leaf: Tensor) -> Tensor:
        mine = leaf.shape[:1] == (NUM_PARTICLES,)
        return leaf[particle : particle + 1] if mine else leaf

    return pytree.tree_map_only(Tensor, part, tree)


def slopes(function: Callable[[Tensor], Tensor], points: Tensor, width: float = 1e-5) -> Tensor:
    """Central differences ``[P, D]`` of a function ``[P, D] -> [P]``, in double precision."""
    columns = []
    for direction in width * torch.eye(points.shape[1], dtype=points.dtype, device=points.device):
        ahead, behind = function(points + direction), function(points - direction)
        columns.append((ahead - behind) / (2 * width))
    return torch.stack(columns, dim=1)
