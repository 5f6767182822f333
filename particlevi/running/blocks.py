"""Many steps as one compiled loop.

Where nothing has to be seen between steps, the loop of torch's ``while_loop`` runs over them in
compiled code. How many steps it makes is one of its arguments, so it is compiled once, and every
step is the same code whatever the block that it lies in: where blocks end changes no bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed, UncapturedHigherOrderOpError
from torch._higher_order_ops.while_loop import while_loop
from torch.utils import _pytree as pytree

from particlevi.data.batches import Indexed
from particlevi.running.compiling import compiled_as, kind_of_batch
from particlevi.running.controls import ControlRoom
from particlevi.running.feeds import LONGEST, Feed, feed_of
from particlevi.running.steps import Block, told
from particlevi.streams import ParticleStreams
from particlevi.typing import Controls, Sampler, SamplerState

__all__ = ["Blocks"]


class Blocks:
    """Makes blocks of steps.

    Args:
        sampler: that runs; it records nothing.
        source: of the batches.
        state: a state in the shapes of the run.
        noise, batches: the streams of the run.
        control_room: of the run.
    """

    def __init__(
        self,
        sampler: Sampler,
        source: Indexed,
        state: SamplerState,
        noise: ParticleStreams,
        batches: ParticleStreams,
        control_room: ControlRoom,
    ):
        self.sampler = sampler
        self.source = source
        self.control_room = control_room
        self.structures = (
            pytree.tree_structure(state.memory),
            pytree.tree_structure(state.estimator),
        )
        self.noise = feed_of(lambda streams: sampler.draw_noise(state, streams), noise)
        self.batches = feed_of(source.rows, batches, copy.copy(source).rows)
        self.longest = min(LONGEST, self.noise.most, self.batches.most)
        example = self._example(state)
        self.told_structure = pytree.tree_structure(example)
        self.told_like = pytree.tree_leaves(example)
        self.estimator = pytree.tree_leaves(state.estimator)
        self.moves: dict[frozenset[str], Callable[..., Any]] = {}

    def _example(self, state: SamplerState) -> tuple[Any, ...]:
        """What a step tells, from one that is made to no other end."""
        blank = ParticleStreams(0, device=state.position.device)
        controls = self.control_room.at(0, state.position)
        noise = self.sampler.draw_noise(state, blank)
        _, info = self.sampler.step(state, self.source.example(), noise, controls)
        return told(self.sampler, info, controls)

    def works(self, state: SamplerState, step: int) -> bool:
        """Whether the loop compiles, tried with no step at all.

        Torch's loops refuse tensors that share memory, of the data or inside a method.
        """
        self.noise.left(), self.batches.left()
        try:
            self._run(state, step, 0)
        except (UncapturedHigherOrderOpError, BackendCompilerFailed):
            return False
        return True

    def advance(self, state: SamplerState, step: int, most: int) -> Block:
        """Go on from ``step``, for ``most`` steps at most."""
        steps = min(most, self.longest, self.noise.left(), self.batches.left())
        found, scheduled, chosen = self._run(state, step, steps)
        rows_told, (position, *memory) = found[: len(self.told_like)], found[len(self.told_like) :]
        info, potentials, *errors = pytree.tree_unflatten(rows_told, self.told_structure)
        return Block(
            steps,
            SamplerState(
                position, pytree.tree_unflatten(memory, self.structures[0]), state.estimator
            ),
            type(info)(*[rows[steps - 1] for rows in info]),
            {name: values[steps - 1] for name, values in scheduled.items()} | chosen,
            potentials[:steps],
            errors[0][:steps] if errors else None,
            state.position if steps == 1 else None,
        )

    def _run(
        self, state: SamplerState, step: int, steps: int
    ) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """What is told of so many steps, position and memory; the controls."""
        noise, rows = self.noise.take(steps), self.batches.take(steps)
        scheduled = self.control_room.of_block(step, max(1, steps), self.longest, state.position)
        chosen = dict(self.control_room.chosen)
        found = self._move(scheduled, chosen)(
            torch.tensor([steps, *noise.firsts, *rows.firsts]),
            state.position,
            pytree.tree_leaves(state.memory),
            self.estimator,
            noise.values,
            rows.values,
            scheduled,
            chosen,
            self.source.leaves,
            self.told_like,
        )
        return found, scheduled, chosen

    def _move(self, scheduled: Controls, chosen: Controls) -> Callable[..., Any]:
        """The compiled loop for controls of these names."""
        names = frozenset(chosen)
        if names not in self.moves:
            feeds = (self.noise, self.batches)
            kind = (
                kind_of_batch(self.source.example()),
                [(feed.axis, str(feed.structure)) for feed in feeds],
                str(self.structures),
                self.longest,
                sorted(scheduled),
                sorted(chosen),
            )
            self.moves[names] = compiled_as(self.sampler, f"block {kind}", self._many_steps)
        return self.moves[names]

    def _many_steps(self) -> Callable[..., list[Tensor]]:
        return many_steps(
            self.sampler,
            self.source,
            self.structures,
            (self.noise, self.batches),
            len(self.told_like),
            self.longest,
        )


def many_steps(
    sampler: Sampler,
    source: Indexed,
    structures: tuple[Any, Any],
    feeds: tuple[Feed, Feed],
    num_told: int,
    longest: int,
) -> Callable[..., list[Tensor]]:
    """The function of tensors that is compiled: as many steps as the first of ``numbers`` says.

    The other ``numbers`` are the places of the first step in the tensors of the feeds.

    It gives what is told of the steps, ``[longest, ...]``, and position and memory after them.
    """
    memory_structure, estimator_structure = structures
    noise_feed, batch_feed = feeds

    def advance(
        numbers: Tensor,
        position: Tensor,
        memory: list[Tensor],
        estimator: list[Tensor],
        noise: list[Tensor],
        rows: list[Tensor],
        scheduled: dict[str, Tensor],
        chosen: dict[str, Tensor],
        data: list[Tensor],
        told_like: list[Tensor],
    ) -> list[Tensor]:
        known = pytree.tree_unflatten(estimator, estimator_structure)

        def of_call(k: Tensor, feed: Feed, values: list[Tensor], start: int) -> Any:
            parts = [
                _at(numbers[1 + start + i] + k, each, feed.axis) for i, each in enumerate(values)
            ]
            return pytree.tree_unflatten(parts, feed.structure)

        def more(k: Tensor, *carried: Tensor) -> Tensor:
            return k < numbers[0]

        def one(k: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
            position, *memory = carried[num_told:]
            state = SamplerState(position, pytree.tree_unflatten(memory, memory_structure), known)
            batch = source.gather(data, of_call(k, batch_feed, rows, len(noise)))
            controls = {name: _at(k, each, 0) for name, each in scheduled.items()} | chosen
            moved, info = sampler.step(state, batch, of_call(k, noise_feed, noise, 0), controls)
            found = pytree.tree_leaves(told(sampler, info, controls))
            after = [moved.position, *pytree.tree_leaves(moved.memory)]
            here = torch.arange(longest, device=k.device) == k
            written = [
                torch.where(here.view(-1, *[1] * value.ndim), value, rows)
                for value, rows in zip(found, carried[:num_told], strict=True)
            ]
            return (k + 1, *written, *_apart(after, [position, *memory]))

        start = torch.zeros((), dtype=torch.long, device=position.device)
        blank = [
            torch.zeros(longest, *each.shape, dtype=each.dtype, device=position.device)
            for each in told_like
        ]
        found: tuple[Tensor, ...] = while_loop(more, one, (start, *blank, position, *memory))
        return list(found[1:])

    return advance


def _at(k: Tensor, values: Tensor, axis: int) -> Tensor:
    return values.index_select(axis, k.view(1)).squeeze(axis)


def _apart(after: list[Tensor], before: list[Tensor]) -> list[Tensor]:
    """Tensors of which none is another, nor one of those before, as a loop needs them."""
    seen, apart = list(before), []
    for tensor in after:
        apart.append(tensor.clone() if any(tensor is other for other in seen) else tensor)
        seen.append(tensor)
    return apart
