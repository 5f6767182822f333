"""The loop: it steps, and asks its collaborators for the rest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, Self
from uuid import uuid4

import torch
from torch import Tensor

from particlevi._warning import warn
from particlevi.draws import Draws
from particlevi.drawset.moments import RunningMoments
from particlevi.errors import DivergenceError, NotConvergedWarning
from particlevi.gradients.sharing import shared_by
from particlevi.kernels.exchange import exchanged_by
from particlevi.running.compiling import static_shapes
from particlevi.running.controls import ControlRoom
from particlevi.running.divergence import DivergenceWatch
from particlevi.running.monitor import Look, Monitor
from particlevi.running.plan import Plan
from particlevi.running.probes import Probes
from particlevi.running.result import draws_of
from particlevi.running.saving import Saved, Saver
from particlevi.running.spread import Archive, cut, gathered
from particlevi.running.steps import Block, Mover
from particlevi.running.watch import Watch, divergence_message
from particlevi.storage.store import Store
from particlevi.streams import ParticleStreams
from particlevi.typing import JSON, Progress, Proposals, SamplerState

__all__ = ["Loop"]


class RunStreams(NamedTuple):
    """Streams of the particles here: runs with one seed see the data in one order."""

    noise: ParticleStreams
    batches: ParticleStreams

    @classmethod
    def of(cls, plan: Plan) -> RunStreams:
        """At their beginning."""
        seed, device = plan.settings.seed, plan.sampler.potential.device
        first = plan.world.mine.start
        return cls(*(ParticleStreams(seed, purpose, first, device) for purpose in cls._fields))


class Loop:
    """A run on its way: where it stands, and what it needs to go on.

    Made by ``start`` at the beginning of a run and by ``restore`` from a checkpoint.
    """

    def __init__(
        self,
        plan: Plan,
        state: SamplerState,
        control_room: ControlRoom,
        streams: RunStreams,
        store: Store,
        divergence: DivergenceWatch,
        archive: Archive | None = None,
    ):
        self.plan = plan
        self.state: Any = state
        self.control_room = control_room
        self.streams = streams
        self.store = store
        self.divergence = divergence
        self.archive = archive
        self.moments: RunningMoments | None = _moments(plan, state.position)
        self.step: int = 0
        self.seconds: float = 0.0
        self.ended_by: str = ""
        self.run_name: str = uuid4().hex
        self.draws_seen: dict[int, int] = {}
        self.missed: str | None = None

    @classmethod
    def start(cls, plan: Plan, initial: Tensor, began: float) -> Self:
        """Begin at ``initial [P, D]``.

        Args:
            plan: of the run.
            initial: starting points.
            began: ``time.perf_counter()`` when the caller asked for the run.

        Raises:
            ValueError: a potential that is not finite there.
        """
        _check_start(plan.energies(initial))
        plan.check_memory(initial)
        streams = RunStreams.of(plan)
        state = plan.sampler.init(initial, streams.noise)
        control_room = plan.control_room()
        control_room.begin(initial)
        divergence, store = DivergenceWatch(initial), plan.open_store()
        loop = cls(plan, state, control_room, streams, store, divergence, _archive(plan))
        loop.seconds = time.perf_counter() - began
        if plan.folder is not None:
            if plan.world.leads:
                Probes.of(plan, initial, loop.run_name).write(plan.folder)
            loop.save(plan.folder)
        return loop

    @classmethod
    def restore(cls, plan: Plan, saved: Saved) -> Self:
        """Go on where a checkpoint stands."""
        if plan.world.spread:
            saved = cut(saved, plan)
        position = saved.position.to(plan.sampler.potential.device)
        blank = torch.zeros_like(position)
        plan.energies(position)
        if plan.folder is not None:
            Probes.read(plan.folder, saved.meta["run"]).check(plan)
        streams = RunStreams.of(plan)
        state = saved.tree("state", plan.sampler.init(blank, streams.noise))
        control_room = plan.control_room()
        if plan.tuner is not None:
            control_room.begin(blank)
            control_room.restore(saved.tree("tuner", control_room.tuner_state))
        streams.noise.restore(saved.part("streams.noise"))
        streams.batches.restore(saved.part("streams.batches"))
        divergence, archive = DivergenceWatch(position), _archive(plan)
        if archive is None:
            store = plan.open_store(receipt=saved.meta["receipt"])
        else:
            store = plan.open_store()
            archive.restore(saved.meta["receipt"], store)
        divergence.restore(saved.part("divergence"), saved.lost)
        plan.source.restore(saved.part("source"))
        saved.restore_global_generators(position.device)
        loop = cls(plan, state, control_room, streams, store, divergence, archive)
        if loop.moments is not None:
            loop.moments.restore(saved.part("moments"))
        loop.step, loop.seconds = saved.meta["step"], saved.meta["seconds"]
        loop.run_name = saved.meta["run"]
        loop.draws_seen = {int(k): seen for k, seen in saved.meta["draws_seen"].items()}
        return loop

    def save(self, folder: Any) -> None:
        """Write a checkpoint; every observed step must have been checked."""
        receipt = self._flush()
        saved = Saved.of(
            self.plan,
            self.state,
            self.control_room.tuner_state,
            self.streams._asdict(),
            self.divergence,
            {} if self.moments is None else self.moments.tensors(),
            {
                "run": self.run_name,
                "receipt": receipt,
                "step": self.step,
                "seconds": self.seconds,
                "draws_seen": self.draws_seen,
            },
        )
        if self.plan.world.spread:
            saved = gathered(saved, self.plan)
        if self.plan.world.leads:
            saved.write(folder)

    def _flush(self) -> JSON:
        """Write the draws that are new; the receipt, for the leader."""
        if self.archive is not None:
            return self.archive.flush(self.store)
        return self.store.flush() if self.plan.world.leads or self.plan.storage.shared else None

    def run(self, monitor: Monitor, progress: bool) -> Draws:
        """Go on to the end, to Ctrl-C, to the verdict of a rule, or until nothing is left to run.

        An error on the way leaves with the draws made before it, as its attribute ``draws``.
        """
        try:
            self._run(monitor, progress)
        except DivergenceError:
            raise
        except BaseException as error:
            self.store.abandon()
            draws = self.draws()
            self.store.describe(draws)
            error.draws = draws  # type: ignore[attr-defined]
            error.add_note(
                f"It came at step {self.step + 1}; the {self._num_draws()} of "
                f"{self.plan.settings.num_draws} draws made before it are in this error's .draws."
            )
            raise
        if self.ended_by == "interruption":
            self._warn_of_interruption()
        if self.missed is not None and self.plan.world.leads:
            warn(self.missed, NotConvergedWarning)
        return self._finished()

    def _run(self, monitor: Monitor, progress: bool) -> None:
        plan, num_steps = self.plan, self.plan.num_steps
        saver = Saver(plan.folder, plan.settings.checkpoint_every)
        began = time.perf_counter() - self.seconds
        shapes = static_shapes() if plan.settings.compile else nullcontext()
        shown = progress and plan.world.leads
        watching = Watch(plan.sampler, monitor, self.step, num_steps, shown, self.draws_seen)
        block: Block | None = None
        with shapes, watching as watch:
            mover = plan.mover(self.state, self.step, *self.streams, self.control_room)
            while self.step < num_steps:
                block = self._advance(mover, self._until_seen(mover, watch, saver))
                ended, due = self.step == num_steps, watch.due(self.step)
                stop, save = plan.world.agree(
                    watch.interrupt.requested,
                    saver.due(self.step),
                    ended or due or saver.regular(self.step),
                )
                last = ended or stop
                if not (last or due or save):
                    continue
                self.seconds = time.perf_counter() - began
                self._check(watch, block)
                self.store.tend()
                reason = None if last else self._ask(watch, block)
                if reason is not None:
                    self.ended_by, last = reason, True
                if plan.folder is not None and (last or save):
                    self.save(plan.folder)
                    saver.note()
                if last:
                    break
            self.seconds = time.perf_counter() - began
        if self.step == num_steps:
            self.ended_by = "the number of draws"
        elif not self.ended_by:
            self.ended_by = "interruption"
            return
        self.missed = self._targets_missed(monitor, self._look(block))

    def _advance(self, mover: Mover, most: int) -> Block:
        """The next steps: ``most``, or fewer."""
        plan, sampler = self.plan, self.plan.sampler
        with shared_by(plan.world.crew), exchanged_by(plan.world.exchange):
            block = mover.advance(self.state, self.step, most)
        self.state = block.state
        self.step += block.steps
        progress = Progress(self.step, plan.settings.num_warmup, plan.num_steps)
        if sampler.records:
            self.state = sampler.record(self.state, progress)
        self.divergence.observe(block.potentials)
        self._keep_of(block)
        if self.step <= plan.settings.num_warmup:
            self._tune(block, progress)
        return block

    def _until_seen(self, mover: Mover, watch: Watch, saver: Saver) -> int:
        """Steps to the next look, checkpoint or end of the warm-up, or draw that ends a block."""
        plan, step = self.plan, self.step
        num_warmup = plan.settings.num_warmup
        if step < num_warmup and plan.tuner is not None:
            return 1
        look = min(watch.next_look(step), plan.num_steps)
        stops = [look]
        if not mover.tells_states:
            if look > max(step + 1, num_warmup) and watch.compares(look, num_warmup):
                stops[0] -= 1  # The position before the last step is known of a block of one step.
            stops.append(plan.kept_steps[self.store.count] + 1)
        if step < num_warmup:
            stops.append(num_warmup)
        if saver.every is not None:
            stops.append(saver.next(step))
        return min(stops) - step

    def _keep_of(self, block: Block) -> None:
        """Put the draws of a block into the store."""
        kept, first, told = self.plan.kept_steps, self.step - block.steps, 0
        while self.store.count < len(kept) and kept[self.store.count] < self.step:
            k = kept[self.store.count] - first
            if block.energy_errors is not None:
                self.divergence.observe_energy(block.energy_errors[told : k + 1])
            last = k + 1 == block.steps
            self._keep(first + k, self.state if last else block.state_after(k), block.info_of(k))
            told = k + 1
        if block.energy_errors is not None and told < block.steps:
            self.divergence.observe_energy(block.energy_errors[told:])

    def _keep(self, step: int, state: Any, info: Any) -> None:
        """Put the state after a step, counted from 0, into the store."""
        sampler, rows = self.plan.sampler, self.plan.sampler.draws
        found = {**info._asdict(), **sampler.observe(state)}
        if sampler.energy_error is not None:
            found["diverging"] = self.divergence.take_divergent()
        stats = {name: value[rows] for name, value in found.items()}
        scalars = {"step": step + 1.0, **self.control_room.scalars(step)}
        self.store.append(self.plan.recorder(state.position[rows]), {**stats, **scalars})
        if self.moments is not None and step >= self.plan.settings.num_warmup:
            self.moments.update(state.position[rows])

    def _tune(self, block: Block, progress: Progress) -> None:
        """Let the tuner learn; a new metric takes a new memory, since momenta live in it."""
        sampler, position, world = self.plan.sampler, self.state.position, self.plan.world

        def proposals() -> Proposals:
            assert sampler.proposals is not None
            assert block.before is not None
            return sampler.proposals(block.before, self.state, block.info, block.controls)

        self.control_room.consider(proposals, progress, world)
        if self.control_room.update(position, block.info, progress, world):
            renewed = sampler.init(position, self.streams.noise)
            self.state = self.state._replace(memory=renewed.memory)
        if progress.step == progress.num_warmup:
            self.divergence.take_divergent()

    def _check(self, watch: Watch, block: Block) -> None:
        """Look for chains that are lost; end the run if none is left, else tell."""
        sampler, lost = self.plan.sampler, self.divergence.lost
        new = self.divergence.check(self.state.position)
        num_particles, world = self.plan.settings.num_particles, self.plan.world
        num_lost = world.count(len(lost))
        over = num_lost == world.total or (sampler.interacting and num_lost > 0)
        if new or over:
            told, first = new or lost, world.mine.start
            message = divergence_message(
                sampler,
                {first + chain: step for chain, step in told.items()},
                {first + chain: cause for chain, cause in self.divergence.causes.items()},
                float(block.controls["step_size"]),
            )
            if over:
                raise DivergenceError(message, self._draws_before(told))
            warn(message)
        if self.step > self.plan.settings.num_warmup:
            watch.warn(block.info, block.controls)
            watch.warn_of_rounding(block.before, self.state.position, block.controls)
        watch.show(self.step, block.info, [c for c in range(num_particles) if c not in lost])

    def _ask(self, watch: Watch, block: Block) -> str | None:
        """The verdict of the rules that are due."""
        if not watch.asks(self.step):
            return None
        return self.plan.world.verdict(
            lambda draws: watch.ask(replace(self._look(block), draws=draws)), self.draws
        )

    def _look(self, block: Block | None) -> Look:
        return Look(
            step=self.step,
            num_warmup=self.plan.settings.num_warmup,
            num_steps=self.plan.num_steps,
            seconds=self.seconds,
            num_draws=self._num_draws(),
            position=self.state.position,
            info=None if block is None else block.info,
            controls={} if block is None else block.controls,
            draws=self.draws,
            data=self.plan.data,
        )

    def _num_draws(self) -> int:
        return max(0, self.store.count - self.plan.num_warmup_draws)

    def _draws_before(self, new: Mapping[int, int]) -> Draws:
        """The draws of the particles just lost, from before the first of them was."""
        first, lost = min(new.values()), self.divergence.lost
        count = sum(step + 1 < first for step in self.plan.kept_steps[: self.store.count])
        earlier = {chain: step for chain, step in lost.items() if chain not in new}
        return self._result(count, earlier)

    def draws(self) -> Draws:
        """What was drawn so far."""
        return self._result(self.store.count, self.divergence.lost)

    def _finished(self) -> Draws:
        """What was drawn, of all processes in the first, also written down in the store."""
        draws = self.plan.world.whole(self.draws(), self.plan.storage.sharded)
        self.store.describe(draws)
        return draws

    def _result(self, count: int, left_out: Mapping[int, int]) -> Draws:
        return draws_of(
            self.plan,
            self.store,
            count=count,
            lost=self.divergence.lost,
            left_out=left_out,
            num_steps=self.step,
            seconds=self.seconds,
            ended_by=self.ended_by,
            tuning=self.control_room.report(),
            metric=self.control_room.metric(),
            end=self._end(),
            moments=self.moments,
        )

    def _end(self) -> Tensor | None:
        """Positions of all particles ``[P, D]``, where draws are of some or in part only."""
        everyone = self.plan.sampler.draws == slice(None)
        return None if everyone and self.plan.recorder.whole else self.state.position.clone()

    def _targets_missed(self, monitor: Monitor, look: Look) -> str | None:
        """What the run was to reach and did not."""
        if self.plan.sampler.interacting or not monitor.targets:
            return None

        def ask(draws: Callable[[], Draws]) -> str | None:
            seen = replace(look, draws=draws)
            found = [target.missed(seen) for target in monitor.targets]
            return " ".join(missed for missed in found if missed is not None) or None

        return self.plan.world.verdict(ask, self.draws)

    def _warn_of_interruption(self) -> None:
        folder, num_draws = self.plan.folder, self.plan.settings.num_draws
        where = f"; resume from {folder}" if folder is not None else ""
        warn(
            f"Interrupted after {self.step} of {self.plan.num_steps} steps: returning "
            f"{self._num_draws()} of {num_draws} draws{where}.",
        )


def _moments(plan: Plan, position: Tensor) -> RunningMoments | None:
    """Of the draws to come, if they are kept."""
    if not plan.recorder.moments:
        return None
    return RunningMoments(len(plan.rows), position.shape[1], position.device)


def _archive(plan: Plan) -> Archive | None:
    """Of a run with a checkpoint whose draws lie in several processes."""
    apart = plan.world.spread and not plan.storage.shared
    return Archive(plan) if apart and plan.folder is not None else None


def _check_start(energy: Tensor) -> None:
    """Every particle begins where the potential is finite."""
    bad = (~torch.isfinite(energy)).nonzero().flatten().tolist()
    if not bad:
        return
    empty = [row for row in bad if energy[row] == torch.inf][:10]
    why = (
        ""
        if not empty
        else (
            f" For {empty} it is infinite: a log-likelihood or log-prior of -inf, a density of "
            "zero for some of the data."
        )
    )
    raise ValueError(
        f"The potential is not finite at the start for particles {bad[:10]}.{why} Choose other "
        "starting points (initial=) inside the support, or rescale the data."
    )
