"""A run over several processes of ``torch.distributed``.

Chains do not see each other: every process runs some of them, with their own random streams, and
the processes meet when tuners take means over chains, when the monitor looks, and at the end.
Particles that see each other are held by every process, and their gradients are evaluated in parts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from particlevi.distributed import Peers, Processes, ProcessLostError, peers_of
from particlevi.draws import Draws
from particlevi.drawset.lazy import LazyTensor
from particlevi.gradients.sharing import Crew, Evaluation, by_data, by_particles
from particlevi.kernels.exchange import Exchange
from particlevi.running.world import Ask, OneProcess, RunWorld
from particlevi.tuning.here import BITS, on_grid
from particlevi.typing import Batch, Gradient, Sampler

__all__ = ["Ranks", "world_of"]

AXES = ("particles", "data")
_PATIENCE, _TIMEOUT = 10.0, 600.0
WIDE = 2**20
"""Numbers P D of particles that see each other, from which on they are spread by rows."""
_DRAWS = "\0draws"

Found = TypeVar("Found")


def world_of(processes: Processes, sampler: Sampler, num_particles: int) -> RunWorld:
    """The world of a run: of one process, or of those that a program was started with.

    Args:
        processes: ``"all"``: those of the default process group, which is made here if
            ``torchrun`` started the program; ``"one"``; a process group; or a ``DeviceMesh`` with
            axes ``"particles"`` and ``"data"``, or one of them.
        sampler: that runs.
        num_particles: of all processes.

    Raises:
        ValueError: a mesh with other axes, or fewer particles than processes.
        TypeError: something else.
    """
    peers = peers_of(processes, AXES, _PATIENCE, _TIMEOUT)
    if peers is None:
        return OneProcess(num_particles)
    particles, data = (peers.get(axis) for axis in AXES)
    size = 1 if particles is None else particles.size
    by_columns = size <= num_particles <= sampler.most_spread and data is None
    wide = num_particles * sampler.potential.num_params >= WIDE
    coupled = sampler.interacting or sampler.draws != slice(None) or sampler.estimator.interacting
    exchange = None
    if by_columns and wide and not sampler.estimator.interacting and particles is not None:
        coupled, exchange = (
            False,
            Transposed(particles, num_particles, sampler.potential.num_params),
        )
    world = Ranks(peers["everyone"], particles, data, num_particles, coupled, exchange)
    _check(world, sampler)
    return world


def _check(world: Ranks, sampler: Sampler) -> None:
    size = 1 if world.particles is None else world.particles.size
    if not world.coupled and world.total < size:
        raise ValueError(
            f"{world.total} particles cannot be spread over {size} processes: take more particles, "
            'fewer processes, or processes="one".'
        )
    if world.everyone.size > 1 and sampler.potential.random:
        raise ValueError(
            "This model draws random numbers of its own, one set for all particles of a process: "
            "those of different processes would repeat each other's, and the draws would depend on "
            'the number of processes. Give processes="one", or a model without random numbers '
            '(dropout="off").'
        )


class Ranks:
    """A ``RunWorld`` of several processes.

    Args:
        everyone: all processes of the run.
        particles: those over which particles are spread; None if every process has all.
        data: those over which the data of a batch are spread.
        total: particles of all.
        coupled: whether particles see each other, and so every process has them all.
        exchange: through whom particles that lie in different processes see each other.
    """

    def __init__(
        self,
        everyone: Peers,
        particles: Peers | None,
        data: Peers | None,
        total: int,
        coupled: bool,
        exchange: Exchange | None = None,
    ):
        self.everyone = everyone
        self.particles = particles
        self.data = data
        self.total = total
        self.coupled = coupled
        self.exchange = exchange
        self.alone = False
        self.number: int = everyone.number
        self.leads: bool = everyone.number == 0
        self.spread: bool = particles is not None and not coupled
        self.mine: range = self.share(total) if self.spread else range(total)
        self.writes: bool = self.leads or (self.spread and (data is None or data.number == 0))

    def share(self, num_particles: int) -> range:
        """The particles of this process."""
        return (
            range(num_particles) if self.particles is None else share(num_particles, self.particles)
        )

    def grid(self, values: Tensor, bits: int = BITS) -> Tensor:
        """``[P, ...]`` in float64, rounded to so many bits below the largest over particles."""
        largest = values.abs().amax(0)
        if self.spread:
            assert self.particles is not None
            largest = guarded(self.particles, self.particles.largest, [largest])[0]
        return on_grid(values, largest, bits)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over particles of ``[P, ...]``, ``[...]``."""
        here = self.grid(values).sum(0)
        return (self._added([here])[0] if self.spread else here).to(values)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over particles of ``[P, ...]``, ``[...]``."""
        return self.sum(values) / self.total

    def count(self, number: int) -> int:
        """The sum of a number over the processes that hold different particles."""
        return int(self.sum(torch.tensor([float(number)])))

    @property
    def crew(self) -> Crew | None:
        """Who evaluates gradients together: those that hold the same particles."""
        shares_particles = self.coupled and self.particles is not None
        return self._evaluate if shares_particles or self.data is not None else None

    @property
    def apart(self) -> bool:
        """Whether each process makes its steps without the others."""
        return self.crew is None and self.exchange is None

    def _evaluate(self, evaluate: Evaluation, particles: Tensor, batch: Batch | None) -> Gradient:
        if self.data is not None and batch is not None:
            whole, data = evaluate, self.data

            def evaluate(points: Tensor, part: Batch | None) -> Gradient:
                assert part is not None
                mine = share(part.size, data)
                return by_data(
                    whole, points, part, mine, lambda t: guarded(data, data.sum, list(t))
                )

        group = self.particles
        if group is None or not self.coupled or len(particles) != self.total:
            return evaluate(particles, batch)
        mine = share(len(particles), group)
        return by_particles(evaluate, particles, batch, mine, lambda t: self._gathered(t, group))

    @contextmanager
    def guard(self) -> Iterator[None]:
        """A context in which an error here ends the run in all processes."""
        try:
            yield
        except ProcessLostError:
            raise
        except BaseException as error:
            for peers in self._groups():
                peers.leave(f"{type(error).__name__}: {error}")
            raise
        else:
            for peers in self._groups():
                guarded(peers, peers.close)

    def _groups(self) -> list[Peers]:
        found = [self.everyone, self.particles, self.data]
        return [p for k, p in enumerate(found) if p is not None and p not in found[:k]]

    def check_same(self, what: dict[str, Any]) -> None:
        """Refuse a run of which these are not the same in every process.

        Raises:
            ValueError: in every process, with what differs and where.
        """
        mine = {name: json.dumps(value, default=str) for name, value in what.items()}
        said = guarded(self.everyone, self.everyone.objects, mine)
        for number, theirs in enumerate(said):
            different = [name for name in said[0] if theirs[name] != said[0][name]]
            if different:
                raise ValueError(
                    f"The processes of this run do not have the same {', '.join(different)}: "
                    f"process {number} differs from process 0. Every process must make the same "
                    "model, sampler and data, from the same seeds."
                )

    def agree(self, stop: bool, save: bool, now: bool) -> tuple[bool, bool]:
        """Whether to stop, which any may ask for, and to save, which the leader decides.

        Asked between two looks of the monitor, the answer is no.
        """
        if not now:
            return False, False
        wishes = torch.tensor([float(stop), float(save and self.leads)])
        found = guarded(self.everyone, self.everyone.sum, [wishes])[0]
        return bool(found[0]), bool(found[1])

    def verdict(self, ask: Ask, draws: Callable[[], Draws]) -> str | None:
        """The answer of the leader's rules, which see the draws of all."""
        if self.leads:

            def whole() -> Draws:
                self.said(_DRAWS)
                return self.whole(draws())

            verdict: str | None = self.said(ask(whole))
            return verdict
        while (verdict := self.said(None)) == _DRAWS:
            self.whole(draws())
        return verdict

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors ``[P, ...]`` of all particles, from those of each process."""
        if self.particles is None or self.coupled:
            return list(tensors)
        return self._gathered(tensors, self.particles)

    def objects(self, value: Any) -> list[Any]:
        """The values of the processes that hold different particles."""
        if self.particles is None or self.coupled:
            return [value]
        return guarded(self.particles, self.particles.objects, value)

    def whole(self, draws: Draws, sharded: bool = False) -> Draws:
        """The draws of all particles for the leader, unless ``sharded``; for others, their own."""
        first = self.mine.start
        numbered = replace(
            draws,
            chains=[first + chain for chain in draws.chains],
            diverged={first + chain: step for chain, step in draws.diverged.items()},
        )
        if not self.spread or sharded:
            return numbered
        assert self.particles is not None
        stats = {name for name, value in draws.stats.items() if value.ndim > 1}
        warm = {name for name, value in draws.warmup_stats.items() if value.ndim > 1}
        places = {"particles": draws.particles}
        places |= {} if draws.warmup is None else {"warmup": draws.warmup}
        places |= {} if draws.end is None else {"end": draws.end}
        if draws.moments is not None:
            places |= {"mean": draws.moments.mean, "variance": draws.moments.variance}
        places |= {f"stats {name}": draws.stats[name] for name in sorted(stats)}
        places |= {f"warmup_stats {name}": draws.warmup_stats[name] for name in sorted(warm)}
        lazy = {name: v for name, v in places.items() if isinstance(v, LazyTensor)}
        rows = {name: value.selection.chains for name, value in lazy.items()}
        own = (numbered.chains, numbered.diverged, draws.seconds, draws.gradients, rows)
        others = self.objects(own)
        here = {name: value for name, value in places.items() if name not in lazy}
        found = dict(zip(here, self._gathered(list(here.values()), self.particles), strict=True))
        for name, value in lazy.items():
            found[name] = value.of_chains(np.concatenate([part[4][name] for part in others]))
        if not self.leads:
            return numbered
        return replace(
            numbered,
            particles=found["particles"],
            warmup=found.get("warmup"),
            end=found.get("end"),
            moments=None
            if draws.moments is None
            else replace(draws.moments, mean=found["mean"], variance=found["variance"]),
            stats={**draws.stats, **{name: found[f"stats {name}"] for name in stats}},
            warmup_stats={
                **draws.warmup_stats,
                **{name: found[f"warmup_stats {name}"] for name in warm},
            },
            chains=[chain for part in others for chain in part[0]],
            diverged={chain: step for part in others for chain, step in part[1].items()},
            seconds=max(part[2] for part in others),
            gradients=None if draws.gradients is None else sum(part[3] for part in others),
            attrs={**draws.attrs, "num_particles": self.total, "num_processes": self.everyone.size},
        )

    def _gathered(self, tensors: Sequence[Tensor], peers: Peers) -> list[Tensor]:
        """Along the first axis, whose length may differ between processes."""
        return guarded(peers, peers.gather, list(tensors))

    def _added(self, tensors: list[Tensor]) -> list[Tensor]:
        assert self.particles is not None
        return guarded(self.particles, self.particles.sum, tensors)

    def said(self, value: Any) -> Any:
        """What the leader says."""
        return guarded(self.everyone, self.everyone.objects_of_first, value)

    def together(self, act: Callable[[], object]) -> None:
        """Do something in every process; the first error of any is raised in all."""
        error = None
        try:
            act()
        except Exception as caught:
            error = caught
        for each in guarded(self.everyone, self.everyone.objects, error):
            if each is not None:
                raise each


class Transposed:
    """Rows of particles for columns, and back, by one message to every other process.

    Messages are put together, and rows received, in memory of the size of the particles here that
    is kept from step to step: that of large tensors is found anew page by page, which takes longer
    than to fill it.

    Args:
        peers: that hold the rows.
        num_particles: P, of all.
        num_params: D.
    """

    def __init__(self, peers: Peers, num_particles: int, num_params: int):
        self.peers = peers
        numbers = range(peers.size)
        self.rows: list[int] = [len(share(num_particles, peers, number)) for number in numbers]
        self.cols: list[int] = [len(share(num_params, peers, number)) for number in numbers]
        self.mine: range = share(num_particles, peers)
        self._room: Tensor = torch.empty(0)

    def to_columns(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """``[P, D_r]`` from ``[P_r, D]``."""
        width = self.cols[self.peers.number]
        sizes = [len(self.mine) * cols for cols in self.cols], [num * width for num in self.rows]
        found = []
        for x in rows:
            room = self._room_like(x)
            for part, place in zip(x.split(self.cols, 1), room.split(sizes[0]), strict=True):
                place.view(part.shape).copy_(part)
            flat = x.new_empty(sum(sizes[1]))
            guarded(self.peers, self.peers.swap, room, flat, *sizes)
            found.append(flat.view(-1, width))
        return found

    def to_rows(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """``[P_r, D]`` from ``[P, D_r]``."""
        here, width = len(self.mine), self.cols[self.peers.number]
        sizes = [num * width for num in self.rows], [here * cols for cols in self.cols]
        found = []
        for x in columns:
            room = self._room_like(x)
            guarded(self.peers, self.peers.swap, x.flatten(), room, *sizes)
            parts = zip(room.split(sizes[1]), self.cols, strict=True)
            found.append(torch.cat([part.view(here, cols) for part, cols in parts], 1))
        return found

    def _room_like(self, x: Tensor) -> Tensor:
        """Memory for the particles here, ``[P_r D]``, in which nothing is kept."""
        if not len(self._room) or self._room.dtype != x.dtype or self._room.device != x.device:
            self._room = x.new_empty(len(self.mine) * sum(self.cols))
        return self._room

    def add(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        return guarded(self.peers, self.peers.sum, [values])[0]

    def own(self, values: Tensor) -> Tensor:
        """The rows of the particles here."""
        return values[self.mine.start : self.mine.stop]


def guarded(peers: Peers, collective: Callable[..., Found], *values: Any) -> Found:
    """What a collective gives.

    Raises:
        ProcessLostError: a process ended; it tells which and why.
    """
    try:
        return collective(*values)
    except RuntimeError as error:
        reason = str(error)
    del values
    raise peers.lost(reason)


def share(size: int, peers: Peers, number: int | None = None) -> range:
    """The part of ``range(size)`` that a process has, this one if none is named."""
    which = peers.number if number is None else number
    return range(size * which // peers.size, size * (which + 1) // peers.size)
