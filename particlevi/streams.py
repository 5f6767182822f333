"""Random numbers that belong to particles.

Row ``i`` of what a ``Streams`` draws depends on the seed, the purpose and the particle's own number
and on nothing else: neither other particles nor the processes of a run change what particle 3 does.

Every particle has a generator. Its 32-bit seed is a bijection of the particle's number, so that no
two particles of a run share one. Numbers are drawn for several calls at once, a block per particle,
since a call costs more than the few hundred numbers that a small model needs; how many depends on
the numbers per particle alone. A loop that makes many steps at once reads these blocks in place:
``keys_of`` tells what a step draws, ``left`` for how many steps it is there, and ``take`` gives it,
drawn in the order in which single steps would have drawn it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_seed

__all__ = ["Key", "ParticleStreams", "Taken", "calls_at_once", "keys_of"]

_BLOCK = 8192
_MOST_CALLS = 256
_MASK = 2**32 - 1

Kind: TypeAlias = Literal["normal", "uniform", "integers", "gamma"]


class Key(NamedTuple):
    """What is drawn at one place of a program."""

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    parameter: float

    def __str__(self) -> str:
        return f"{self.kind} {list(self.shape[1:])} {self.dtype} {self.parameter!r}"


@dataclass(eq=False)
class _Block:
    """Numbers ``[P, K, ...]`` of K calls, of which ``used`` are given out."""

    values: Tensor
    used: int

    @cached_property
    def views(self) -> tuple[Tensor, ...]:
        """The numbers of each call ``[P, ...]``."""
        return self.values.unbind(1)

    @property
    def left(self) -> int:
        """Calls whose numbers are not given out."""
        return self.values.shape[1] - self.used


class Taken(NamedTuple):
    """Numbers of several calls: those of call k are ``values[:, first + k]``."""

    values: Tensor
    first: int


class ParticleStreams:
    """One random stream per particle, and one that all share.

    Args:
        seed: of all of them.
        purpose: streams of different purposes are independent.
        first: the number of the particle in the first row.
        device: of the numbers.

    Raises:
        TypeError: a seed that is no integer.
        ValueError: a seed out of its range.

    Examples:
        >>> four = ParticleStreams(7).normal((4, 2))
        >>> two = ParticleStreams(7).normal((2, 2))
        >>> bool((four[:2] == two).all())
        True
        >>> last = ParticleStreams(7, first=3).normal((1, 2))
        >>> bool((four[3:] == last).all())
        True
    """

    def __init__(
        self,
        seed: int,
        purpose: str = "noise",
        first: int = 0,
        device: torch.device | str = "cpu",
    ):
        check_seed("seed", seed)
        self.seed: int = int(seed)
        self.purpose = purpose
        self.first = first
        self.device: torch.device = torch.device(device)
        self._base = zlib.crc32(f"{self.seed} {purpose}".encode())
        self._generators: list[torch.Generator] = []
        self._blocks: dict[Key, _Block] = {}
        self._waiting: dict[str, Tensor] = {}
        self._shared: ParticleStreams | None = None

    @property
    def shared(self) -> _Shared:
        """The stream that all particles share: all its numbers come from one generator."""
        if self._shared is None:
            self._shared = ParticleStreams(self.seed, f"shared {self.purpose}", 0, self.device)
        return _Shared(self._shared)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers ``[P, ...]``."""
        return self._next(Key("normal", tuple(shape), dtype, 0))

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers in [0, 1), ``[P, ...]``."""
        return self._next(Key("uniform", tuple(shape), dtype, 0))

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """Integers from 0 to below ``high``, ``[P, ...]``."""
        return self._next(Key("integers", tuple(shape), torch.long, high))

    def gamma(self, concentration: float, shape: Sequence[int]) -> Tensor:
        """Gamma variates of scale 1 in float64, ``[P, ...]``."""
        return self._next(Key("gamma", tuple(shape), torch.float64, concentration))

    def left(self, keys: Sequence[Key]) -> int:
        """For how many steps, each of which draws every key once, the numbers are there.

        It is at least 1: blocks that are used up are drawn, in the order of the keys.
        """
        blocks = [self._block(key) for key in keys]
        return min((block.left for block in blocks), default=_MOST_CALLS)

    def take(self, keys: Sequence[Key], steps: int) -> list[Taken]:
        """The numbers of so many steps, no more than are left."""
        taken = []
        for key in keys:
            block = self._blocks[key]
            taken.append(Taken(block.values, block.used))
            block.used += steps
        return taken

    def _next(self, key: Key) -> Tensor:
        block = self._block(key)
        view = block.views[block.used]
        block.used += 1
        return view

    def _block(self, key: Key) -> _Block:
        """One of which at least one call is left."""
        block = self._blocks.get(key)
        if block is None or not block.left:
            block = self._blocks[key] = self._taken_up(key) or self._drawn(key)
        return block

    def _drawn(self, key: Key) -> _Block:
        num_particles, rest = key.shape[0], key.shape[1:]
        calls = calls_at_once(torch.Size(rest).numel())
        values = torch.empty(num_particles, calls, *rest, dtype=key.dtype, device=self.device)
        rows = values.view(num_particles, -1).unbind(0)
        for row, generator in zip(rows, self._of_particles(num_particles), strict=True):
            _fill(row, key, generator)
        return _Block(values, 0)

    def _of_particles(self, num_particles: int) -> list[torch.Generator]:
        while len(self._generators) < num_particles:
            particle = self.first + len(self._generators)
            generator = torch.Generator(self.device)
            self._generators.append(generator.manual_seed(_mixed(particle) ^ self._base))
        return self._generators[:num_particles]

    @property
    def nbytes(self) -> int:
        """Memory of the particles' blocks of numbers that are there."""
        return sum(b.values.numel() * b.values.element_size() for b in self._blocks.values())

    def state(self) -> dict[str, Tensor]:
        """What ``restore`` needs: generators, and numbers drawn but not given out yet."""
        state: dict[str, Tensor] = dict(self._waiting)
        if self._generators:
            states = [generator.get_state() for generator in self._generators]
            state["generators"] = torch.stack(states)
        for key, block in self._blocks.items():
            state[str(key)] = block.values[:, block.used :].contiguous()
        if self._shared is not None:
            state |= {f"shared.{name}": value for name, value in self._shared.state().items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``."""
        self._blocks.clear()
        self._generators.clear()
        self._shared = None
        prefix = "shared."
        own = {name: value for name, value in state.items() if not name.startswith(prefix)}
        generators = own.pop("generators", None)
        if generators is not None:
            for generator, saved in zip(
                self._of_particles(len(generators)), generators, strict=True
            ):
                generator.set_state(saved.cpu().clone())
        self._waiting = own
        if len(own) + (generators is not None) < len(state):
            self._shared = ParticleStreams(self.seed, f"shared {self.purpose}", 0, self.device)
            self._shared.restore(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )

    def _taken_up(self, key: Key) -> _Block | None:
        """What was left of a block in the state that was restored."""
        values = self._waiting.pop(str(key), None) if self._waiting else None
        if values is None or not values.shape[1]:
            return None
        # A copy, because how torch rounds depends on how memory is aligned; of the shape of every
        # block, because compiled loops read them where they lie.
        calls = calls_at_once(torch.Size(key.shape[1:]).numel())
        used = calls - values.shape[1]
        whole = torch.zeros(len(values), calls, *key.shape[1:], dtype=key.dtype, device=self.device)
        whole[:, used:] = values
        return _Block(whole, used)


@dataclass(frozen=True)
class _Shared:
    """One stream, whatever the shape."""

    streams: ParticleStreams

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        return self.streams.normal((1, *shape), dtype)[0]

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers in [0, 1)."""
        return self.streams.uniform((1, *shape), dtype)[0]

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """Integers from 0 to below ``high``."""
        return self.streams.integers(high, (1, *shape))[0]

    def gamma(self, concentration: float, shape: Sequence[int]) -> Tensor:
        """Gamma variates of scale 1 in float64."""
        return self.streams.gamma(concentration, (1, *shape))[0]

    @property
    def shared(self) -> _Shared:
        """Itself."""
        return self


class _Blank(ParticleStreams):
    """Writes down what is drawn, and draws nothing."""

    def __init__(self, device: torch.device):
        super().__init__(0, device=device)
        self.asked: list[tuple[Key, Tensor]] = []

    def _next(self, key: Key) -> Tensor:
        blank = torch.zeros(key.shape, dtype=key.dtype, device=self.device)
        self.asked.append((key, blank))
        return blank


def keys_of(draw: Callable[[ParticleStreams], Any], device: torch.device) -> list[Key] | None:
    """What a step draws, if ``draw(streams)`` is a tree of just these numbers, in the same order.

    None if it works on them, draws from the shared stream, or draws one key twice.
    """
    blank = _Blank(device)
    leaves = pytree.tree_leaves(draw(blank))
    keys = [key for key, _ in blank.asked]
    same = len(leaves) == len(keys) and all(
        leaf is tensor for leaf, (_, tensor) in zip(leaves, blank.asked, strict=True)
    )
    return keys if same and blank._shared is None and len(set(keys)) == len(keys) else None


def calls_at_once(size: int) -> int:
    """For how many calls of so many numbers per particle a block is drawn."""
    return min(max(1, _BLOCK // max(1, size)), _MOST_CALLS)


def _fill(row: Tensor, key: Key, generator: torch.Generator) -> None:
    """Draw the numbers ``[K n]`` of one particle."""
    if key.kind == "normal":
        row.normal_(generator=generator)
    elif key.kind == "uniform":
        row.uniform_(generator=generator)
    elif key.kind == "integers":
        row.random_(0, int(key.parameter), generator=generator)
    else:
        concentration = torch.full_like(row, key.parameter)
        row.copy_(torch._standard_gamma(concentration, generator=generator))


def _mixed(number: int) -> int:
    """A bijection of the integers below 2^32 (the finaliser of MurmurHash3, Appleby, 2011)."""
    number &= _MASK
    number = ((number ^ (number >> 16)) * 0x85EBCA6B) & _MASK
    number = ((number ^ (number >> 13)) * 0xC2B2AE35) & _MASK
    return number ^ (number >> 16)
