"""Many steps as one compiled loop.

Where nothing has to be seen between steps, the loop of torch's ``while_loop`` runs over them in
compiled code. How many steps it makes is one of its arguments, so it is compiled once, and every
step is the same code whatever the block that it lies in: where blocks end changes no bit.

What is told of the steps the loop writes into tensors that it is given, a row a step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed, UncapturedHigherOrderOpError
from torch._higher_order_ops.while_loop import while_loop
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from particlevi._tracing import tracing
from particlevi.data.batches import Indexed
from particlevi.running.compiling import compiled_as, kind_of_batch
from particlevi.running.controls import ControlRoom
from particlevi.running.feeds import LONGEST, Feed, feed_of
from particlevi.running.steps import Block, told
from particlevi.streams import ParticleStreams
from particlevi.typing import Controls, Sampler, SamplerState

__all__ = ["Blocks"]

_MOST_NUMBERS = 2**20
"""In the states that a block tells."""


class Blocks:
    """Makes blocks of steps.

    Args:
        sampler: that runs; it records nothing.
        source: of the batches.
        state: a state in the shapes of the run.
        noise, batches: the streams of the run.
        control_room: of the run.
        draws_apart: steps between draws, at least.

    Attributes:
        tells_states: whether a block tells the states after all its steps, so that a draw need not
            end it.
    """

    def __init__(
        self,
        sampler: Sampler,
        source: Indexed,
        state: SamplerState,
        noise: ParticleStreams,
        batches: ParticleStreams,
        control_room: ControlRoom,
        draws_apart: int,
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
        kept = [state.position, *pytree.tree_leaves(state.memory)]
        storable = _MOST_NUMBERS // max(1, sum(leaf.numel() for leaf in kept))
        self.tells_states: bool = 2 * draws_apart <= min(self.longest, storable)
        if self.tells_states:
            self.longest = min(self.longest, storable)
        self.path = _rows(self.longest, kept) if self.tells_states else []
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

        Torch's loops refuse tensors that share memory, of the data or inside a method, and before
        torch 2.13 to write into their inputs.
        """
        self.noise.left(), self.batches.left()
        try:
            self._run(state, step, 0)
        except (Untraceable, UncapturedHigherOrderOpError, BackendCompilerFailed):
            return False
        return True

    def advance(self, state: SamplerState, step: int, most: int) -> Block:
        """Go on from ``step``, for ``most`` steps at most."""
        steps = min(most, self.longest, self.noise.left(), self.batches.left())
        after, told_rows, scheduled, chosen = self._run(state, step, steps)
        info, potentials, *errors = pytree.tree_unflatten(told_rows, self.told_structure)

        def state_of(leaves: list[Tensor]) -> SamplerState:
            position, *memory = leaves
            return SamplerState(
                position, pytree.tree_unflatten(memory, self.structures[0]), state.estimator
            )

        before = state.position if steps == 1 else None
        if self.tells_states and steps > 1:
            before = self.path[0][steps - 2].clone()
        return Block(
            steps,
            state_of(after),
            {name: values[steps - 1] for name, values in scheduled.items()} | chosen,
            potentials[:steps],
            errors[0][:steps] if errors else None,
            before,
            lambda k: type(info)(*[rows[k] for rows in info]),
            lambda k: state_of([rows[k] for rows in self.path]),
        )

    def _run(
        self, state: SamplerState, step: int, steps: int
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Position and memory after so many steps, what is told of them; the controls."""
        noise, rows = self.noise.take(steps), self.batches.take(steps)
        scheduled = self.control_room.of_block(step, max(1, steps), self.longest, state.position)
        chosen = dict(self.control_room.chosen)
        told_rows = _rows(self.longest, self.told_like)
        inputs = Inputs(
            torch.tensor([steps, *noise.firsts, *rows.firsts]),
            self.estimator,
            noise.values,
            rows.values,
            scheduled,
            chosen,
            self.source.leaves,
            told_rows,
            self.path,
        )
        leaves = [state.position, *pytree.tree_leaves(state.memory)]
        after = self._move(scheduled, chosen, leaves, inputs)(leaves, inputs)
        return after, told_rows, scheduled, chosen

    def _move(
        self, scheduled: Controls, chosen: Controls, leaves: list[Tensor], inputs: Inputs
    ) -> Callable[..., Any]:
        """The compiled loop for controls of these names."""
        names = frozenset(chosen)
        if names not in self.moves:
            feeds = (self.noise, self.batches)
            kind = (
                kind_of_batch(self.source.example()),
                [(feed.axis, str(feed.structure)) for feed in feeds],
                str(self.structures),
                self.longest,
                self.tells_states,
                sorted(scheduled),
                sorted(chosen),
            )

            def make() -> Callable[..., list[Tensor]]:
                step = one_step(self.sampler, self.source, self.structures, feeds)
                return many_steps(as_graph(step, leaves, inputs))

            self.moves[names] = compiled_as(self.sampler, f"block {kind}", make)
        return self.moves[names]


class Untraceable(Exception):
    """A step is no fixed sequence of operations, or fails: alone and compiled it tells why."""


class Inputs(NamedTuple):
    """What the loop reads, and the rows that it writes.

    Attributes:
        numbers: of steps, and the places of the first step in the tensors of the feeds.
        estimator: leaves of its state.
        noise, rows: of the feeds.
        scheduled, chosen: controls.
        data: leaves of the source.
        told: rows of what is told of the steps, ``[longest, ...]`` each.
        path: rows of position and memory after each step, or nothing.
    """

    numbers: Tensor
    estimator: list[Tensor]
    noise: list[Tensor]
    rows: list[Tensor]
    scheduled: dict[str, Tensor]
    chosen: dict[str, Tensor]
    data: list[Tensor]
    told: list[Tensor]
    path: list[Tensor]


def one_step(
    sampler: Sampler,
    source: Indexed,
    structures: tuple[Any, Any],
    feeds: tuple[Feed, Feed],
) -> Callable[..., list[Tensor]]:
    """A step of the loop, as a function of tensors: step k, position and memory, and inputs.

    It gives position and memory after the step.
    """
    memory_structure, estimator_structure = structures
    noise_feed, batch_feed = feeds

    def one(k: Tensor, leaves: list[Tensor], inputs: Inputs) -> list[Tensor]:
        position, *memory = leaves
        known = pytree.tree_unflatten(inputs.estimator, estimator_structure)
        state = SamplerState(position, pytree.tree_unflatten(memory, memory_structure), known)

        def of_call(feed: Feed, values: list[Tensor], start: int) -> Any:
            firsts = inputs.numbers[start:]
            parts = [_at(firsts[i] + k, each, feed.axis) for i, each in enumerate(values)]
            return pytree.tree_unflatten(parts, feed.structure)

        batch = source.gather(inputs.data, of_call(batch_feed, inputs.rows, 1 + len(inputs.noise)))
        controls = {name: _at(k, each, 0) for name, each in inputs.scheduled.items()}
        controls |= inputs.chosen
        moved, info = sampler.step(state, batch, of_call(noise_feed, inputs.noise, 1), controls)
        after = [moved.position, *pytree.tree_leaves(moved.memory)]
        _write(k, pytree.tree_leaves(told(sampler, info, controls)), inputs.told)
        if inputs.path:
            _write(k, after, inputs.path)
        return _apart(after, leaves)

    return one


def as_graph(
    step: Callable[..., list[Tensor]], leaves: list[Tensor], inputs: Inputs
) -> Callable[..., list[Tensor]]:
    """A step as the operations that it makes.

    Torch's loops write into their inputs only where nothing in them is transformed, such as by
    ``vmap`` or ``grad``. Traced without numbers, so that nothing can depend on them unseen.

    Raises:
        Untraceable: code that needs them, or that fails.
    """
    k = torch.zeros((), dtype=torch.long, device=leaves[0].device)
    trace = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)
    with tracing():
        try:
            return trace(k, leaves, inputs)
        except Exception as error:
            raise Untraceable from error


def many_steps(step: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """The function of tensors that is compiled: position and memory after as many steps."""

    def advance(leaves: list[Tensor], inputs: Inputs) -> list[Tensor]:
        def more(k: Tensor, *carried: Tensor) -> Tensor:
            return k < inputs.numbers[0]

        def one(k: Tensor, *carried: Tensor) -> tuple[Tensor, ...]:
            return (k + 1, *step(k, list(carried), inputs))

        start = torch.zeros((), dtype=torch.long, device=leaves[0].device)
        after: tuple[Tensor, ...] = while_loop(more, one, (start, *leaves))
        return list(after[1:])

    return advance


def _write(k: Tensor, values: list[Tensor], rows: list[Tensor]) -> None:
    for value, into in zip(values, rows, strict=True):
        into.index_copy_(0, k.view(1), value.unsqueeze(0))


def _rows(size: int, like: list[Tensor]) -> list[Tensor]:
    """Room for so many of each."""
    return [each.new_empty(size, *each.shape) for each in like]


def _at(k: Tensor, values: Tensor, axis: int) -> Tensor:
    return values.index_select(axis, k.view(1)).squeeze(axis)


def _apart(after: list[Tensor], before: list[Tensor]) -> list[Tensor]:
    """Tensors of which none is another, nor one of those before, as a loop needs them."""
    seen, apart = list(before), []
    for tensor in after:
        apart.append(tensor.clone() if any(tensor is other for other in seen) else tensor)
        seen.append(tensor)
    return apart
