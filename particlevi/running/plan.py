"""What is fixed before the first step of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from particlevi.data import BatchSource, Data
from particlevi.data.batches import Indexed
from particlevi.potentials.chunks import chunks
from particlevi.running.blocks import Blocks
from particlevi.running.compiling import compiled
from particlevi.running.controls import ControlRoom, fewest_proposing
from particlevi.running.kept import kept_steps
from particlevi.running.memory import step_nbytes
from particlevi.running.settings import Settings, identity, identity_of_sampler
from particlevi.running.steps import Mover, SingleSteps
from particlevi.running.world import RunWorld
from particlevi.samplers.requirements import check_batch
from particlevi.schedules import describe
from particlevi.storage.recording import Recorder, check_memory, describe_keep
from particlevi.storage.store import Recording, Storage, Store
from particlevi.streams import ParticleStreams
from particlevi.typing import JSON, Sampler, SamplerState, Schedule, Tuner

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """A run before its first step: the collaborators, checked against each other.

    Attributes:
        sampler: what runs.
        settings: the numbers of the run.
        data: of the potential.
        source: of the batches; it remembers where in an epoch it is.
        schedules: of all scalars, by name.
        tuner: None if there is none.
        recorder: from positions to what is kept of them.
        storage: what kind of store to open.
        kept_steps: the steps (from 0) that end in a draw.
        identity: what another run must share to go on with this one's checkpoint.
        keep: what is kept, for the record.
        world: the processes of the run.
        folder: of the checkpoint, if there is one.
        needs: bytes of what the run keeps, by name.
    """

    sampler: Sampler
    settings: Settings
    data: Data
    source: BatchSource
    schedules: dict[str, Schedule]
    tuner: Tuner | None
    recorder: Recorder
    storage: Storage
    kept_steps: list[int]
    identity: dict[str, JSON]
    keep: JSON
    world: RunWorld
    folder: Path | None
    needs: dict[str, int]

    @classmethod
    def of(
        cls,
        sampler: Sampler,
        data: Data,
        settings: Settings,
        step_size: Schedule | None,
        storage: Storage,
        tuner: Tuner | None,
        folder: Path | None,
        world: RunWorld,
    ) -> Plan:
        """Put the collaborators together.

        Raises:
            ValueError: data that do not fit the potential, or collaborators that do not go
                together.
            MemoryError: a run that would not fit in memory.
        """
        source = data.batches(
            batch_size=settings.batch_size,
            num_particles=settings.num_particles,
            shared=settings.shared_batch,
            batching=settings.batching,
        )
        potential = sampler.potential
        check_batch(sampler.name, sampler.requires, source.example(), potential.num_data)
        _check_proposals(sampler, tuner, world.total)
        recorder = Recorder(sampler.potential, storage.keep)
        given = {} if step_size is None else {"step_size": step_size}
        schedules = {**given, **sampler.schedules}
        needs = _needs(sampler, settings, storage, recorder, source)
        check_memory(needs)
        return cls(
            sampler=sampler,
            settings=settings,
            source=source,
            schedules=schedules,
            tuner=tuner,
            recorder=recorder,
            storage=storage,
            kept_steps=kept_steps(settings, schedules),
            identity=identity(sampler, tuner),
            data=data,
            keep=describe_keep(storage.keep),
            world=world,
            folder=folder,
            needs=needs,
        )

    def check_memory(self, initial: Tensor) -> None:
        """Refuse a run whose steps, with what it keeps, would not fit in memory.

        Raises:
            MemoryError: with the sizes and the ways out.
        """
        step = step_nbytes(self.sampler, initial, self.source.example())
        # A checkpoint is put together in memory: the states and, at worst, all draws.
        saved = 0 if self.folder is None else step["states"] // 2 + self.needs["draws"]
        check_memory({**self.needs, **step, "a checkpoint": saved})

    @cached_property
    def data_fingerprint(self) -> JSON:
        """What identifies the data; read once, if a checkpoint is written."""
        return self.data.fingerprint()

    @property
    def summary(self) -> dict[str, JSON]:
        """What the processes of a run must have in common."""
        return {
            "sampler or model": self.identity,
            "data": self.data_fingerprint,
            "arguments": {**asdict(self.settings), "num_particles": self.world.total},
        }

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.kept_steps[-1] + 1

    @property
    def num_warmup_draws(self) -> int:
        """Draws of the warm-up that are kept."""
        return len(self.kept_steps) - self.settings.num_draws

    @property
    def rows(self) -> list[int]:
        """The particles whose states are draws."""
        return list(range(self.settings.num_particles)[self.sampler.draws])

    def mover(
        self,
        state: SamplerState,
        step: int,
        noise: ParticleStreams,
        batches: ParticleStreams,
        control_room: ControlRoom,
    ) -> Mover:
        """What makes the steps: many at once where that is compiled and nothing sees between."""
        sampler, source = self.sampler, self.source
        if not self.settings.compile:
            return SingleSteps(sampler, sampler.step, source, noise, batches, control_room)
        if (
            self.world.apart
            and not (sampler.records or sampler.potential.random)
            and isinstance(source, Indexed)
            and sampler.potential.device.type == "cpu"
        ):
            apart = self.settings.thin
            blocks = Blocks(sampler, source, state, noise, batches, control_room, apart)
            if blocks.works(state, step):
                return blocks
        one = compiled(sampler, source.example(), {*self.schedules, *control_room.chosen})
        return SingleSteps(sampler, one, source, noise, batches, control_room)

    def open_store(self, num_particles: int | None = None, receipt: JSON = None) -> Store:
        """The store of the run, empty or with the draws of a receipt.

        Args:
            num_particles: of all processes; if absent, those here, or all where processes share
                a store.
            receipt: of the checkpoint from which the run goes on.
        """
        world, shared, known = self.world, self.storage.shared, self.known
        here, total = range(len(self.rows)), len(self.rows)
        if shared and world.spread:
            here, total = world.mine, world.total
            known = {**known, "chains": list(range(total))}
            known["attrs"] = {**known["attrs"], "num_particles": total}
        elif num_particles is not None:
            here, total = range(num_particles), num_particles
        recording = Recording(
            recorder=self.recorder,
            num_particles=total,
            num_draws=len(self.kept_steps),
            num_warmup=self.num_warmup_draws,
            dtype=getattr(torch, self.settings.storage_dtype),
            folder=None if num_particles is None and world.spread else self.folder,
            known=known,
            here=here,
            **({"team": world} if shared else {}),
        )
        return self.storage.open(recording, receipt)

    @property
    def known(self) -> dict[str, Any]:
        """What is known of the draws before the first, as fields of a ``DrawSet``."""
        sampler, settings, recorder = self.sampler, self.settings, self.recorder
        step_size = self.schedules.get("step_size")
        return {
            "chains": self.rows,
            "minibatch": self.source.law not in ("none", "all"),
            "coordinates": None if recorder.columns is None else recorder.columns.cpu(),
            "output_shape": recorder.output_shape,
            "kept": dict(recorder.kept),
            "shapes": dict(sampler.potential.layout.shapes),
            "facts": sampler.facts,
            "attrs": {
                **identity_of_sampler(sampler),
                **asdict(settings),
                "step_size": None if step_size is None else describe(step_size),
                "gradients_per_step": sampler.gradients_per_step,
            },
            "fingerprint": dict(sampler.potential.fingerprint),
        }

    def control_room(self) -> ControlRoom:
        """Schedules and tuner, before the first step."""
        return ControlRoom(self.schedules, self.tuner)

    def energies(self, particles: Tensor) -> Tensor:
        """Potentials ``[P]`` on an example batch, after checks of shapes and targets."""
        potential, batch = self.sampler.potential, self.source.example()
        if batch is not None:
            self.source.check_targets(potential.target_check(particles, batch))
        energies = []
        for part, piece in chunks(particles, batch, potential.chunk_size):
            energies.append(potential(part, piece))
        energy = torch.cat(energies)
        if energy.shape != (len(particles),):
            raise ValueError(
                f"The potential must give one value per particle, [{len(particles)}], "
                f"got {list(energy.shape)}."
            )
        return energy


def _check_proposals(sampler: Sampler, tuner: Tuner | None, num_chains: int) -> None:
    """A tuner that looks at proposals has a sampler that makes them, and enough chains.

    Raises:
        ValueError: if not.
    """
    fewest = fewest_proposing(tuner)
    if not fewest or tuner is None:
        return
    if sampler.proposals is None:
        raise ValueError(
            f"The tuner {tuner.name} was to learn the length of trajectories, but those of "
            f"{sampler.name} have no length that could be chosen: take randomized_hmc or mams, or "
            "another trajectory_length of the tuner."
        )
    if num_chains < fewest:
        raise ValueError(
            f"The tuner {tuner.name} learns the length of trajectories from the proposals of "
            f"{fewest} chains or more, got {num_chains}: raise num_particles, or give "
            "trajectory_length a number."
        )


def _needs(
    sampler: Sampler,
    settings: Settings,
    storage: Storage,
    recorder: Recorder,
    source: BatchSource,
) -> dict[str, int]:
    """Bytes of what a run keeps, by name."""
    dtype = getattr(torch, settings.storage_dtype)
    warm = settings.num_warmup // settings.thin if settings.keep_warmup else 0
    rows = len(range(settings.num_particles)[sampler.draws])
    draws = storage.nbytes(rows, settings.num_draws + warm, recorder.size, dtype)
    moments = 16 * rows * sampler.potential.num_params if recorder.moments else 0
    return {
        "draws": draws,
        "running moments": moments,
        f"the {sampler.estimator.name} estimator": sampler.estimator.nbytes(settings.num_particles),
        "the order of the data": source.nbytes(),
        "minibatches": source.batch_nbytes(settings.num_particles),
    }
