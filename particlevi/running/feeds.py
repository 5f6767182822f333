"""The random numbers of many steps at once, for a loop that is compiled whole.

A feed gives what so many calls of a function of streams would have given, as tensors in which the
call is an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.streams import Key, ParticleStreams, calls_at_once, keys_of

__all__ = ["LONGEST", "Fed", "Feed", "feed_of"]

LONGEST = 100
"""The most steps of a block."""

_MOST_NUMBERS = 2**21
"""In the buffers of a feed."""

_CHEAP_COPY = 2**16
"""Numbers of a step up to which it costs less to copy them than to make short blocks."""

Draw = Callable[[ParticleStreams], Any]


class Fed(NamedTuple):
    """Tensors ``values``; of tensor i the numbers of call k lie at ``firsts[i] + k``."""

    values: list[Tensor]
    firsts: list[int]


class Feed(Protocol):
    """Random numbers of many steps.

    Attributes:
        most: the most steps that it ever gives at once.
        axis: that of the calls, in each tensor.
        structure: of what one call gives.
    """

    most: int
    axis: int
    structure: Any

    def left(self) -> int:
        """How many steps ``take`` can give; at least 1."""
        ...

    def take(self, steps: int) -> Fed:
        """The numbers of the next steps."""
        ...


class Stacked:
    """Call by call, for functions that work on what they draw."""

    axis = 0

    def __init__(self, draw: Draw, streams: ParticleStreams, example: Any, most: int):
        leaves, self.structure = pytree.tree_flatten(example)
        self.draw, self.streams = draw, streams
        self.buffers = [leaf.new_zeros(most, *leaf.shape) for leaf in leaves]
        self.most = most if leaves else LONGEST

    def left(self) -> int:
        """As many as the buffers hold."""
        return self.most

    def take(self, steps: int) -> Fed:
        """Draw them."""
        if self.buffers and steps:
            drawn = [pytree.tree_leaves(self.draw(self.streams)) for _ in range(steps)]
            for buffer, leaves in zip(self.buffers, zip(*drawn, strict=True), strict=True):
                torch.stack(leaves, out=buffer[:steps])
        return Fed(self.buffers, [0] * len(self.buffers))


class Direct:
    """The blocks of the streams themselves, where they lie."""

    axis = 1

    def __init__(self, keys: Sequence[Key], streams: ParticleStreams, structure: Any):
        self.keys, self.streams, self.structure = keys, streams, structure
        self.most = shortest_block(keys)

    def left(self) -> int:
        """Until a block ends."""
        return self.streams.left(self.keys)

    def take(self, steps: int) -> Fed:
        """Where they lie."""
        taken = self.streams.take(self.keys, steps)
        return Fed([each.values for each in taken], [each.first for each in taken])


class Joined:
    """Blocks of the streams put together, where a block holds the numbers of a few steps only."""

    axis = 1

    def __init__(self, keys: Sequence[Key], streams: ParticleStreams, structure: Any, most: int):
        self.keys, self.streams, self.structure, self.most = keys, streams, structure, most
        self.buffers = [
            torch.zeros(key.shape[0], most, *key.shape[1:], dtype=key.dtype, device=streams.device)
            for key in keys
        ]

    def left(self) -> int:
        """As many as the buffers hold."""
        return self.most

    def take(self, steps: int) -> Fed:
        """Copy them."""
        parts: list[list[Tensor]] = []
        missing = steps
        while missing:
            now = min(self.streams.left(self.keys), missing)
            taken = self.streams.take(self.keys, now)
            parts.append([each.values.narrow(1, each.first, now) for each in taken])
            missing -= now
        for k, buffer in enumerate(self.buffers if steps else ()):
            pieces = [part[k] for part in parts]
            torch.cat(pieces, dim=1, out=buffer.narrow(1, 0, steps))
        return Fed(self.buffers, [0] * len(self.buffers))


def feed_of(draw: Draw, streams: ParticleStreams, trial: Draw | None = None) -> Feed:
    """A feed of what ``draw(streams)`` gives at every step; nothing is drawn yet.

    Args:
        draw: of one step; its shapes and its streams are the same at every step.
        streams: to draw from.
        trial: the same, to be tried, where ``draw`` changes more than streams.
    """
    trial = trial or draw
    keys = keys_of(trial, streams.device)
    example = trial(ParticleStreams(0, device=streams.device))
    leaves, structure = pytree.tree_flatten(example)
    numbers = sum(leaf.numel() for leaf in leaves)
    most = max(1, min(LONGEST, _MOST_NUMBERS // max(1, numbers)))
    if not keys:
        return Stacked(draw, streams, example, most)
    if numbers <= _CHEAP_COPY:
        return Joined(keys, streams, structure, most)
    return Direct(keys, streams, structure)


def shortest_block(keys: Sequence[Key]) -> int:
    """Of how many calls the streams draw the numbers at once."""
    return min(calls_at_once(torch.Size(key.shape[1:]).numel()) for key in keys)
