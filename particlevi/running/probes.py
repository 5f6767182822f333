"""What the functions of a run compute at a few points, so that others are not taken for them.

A function of the user's own cannot be read, but it can be evaluated. Before the first step the
potential, the estimator's gradient and one step of the sampler are evaluated at two particles near
the start, with fixed random numbers; schedules at a few steps; a loader gives its first batch.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from particlevi.data.fingerprint import fingerprint
from particlevi.data.isolated import quietly
from particlevi.potentials.chunks import chunks
from particlevi.potentials.random import global_seed
from particlevi.running.plan import Plan
from particlevi.storage import checkpoint as files
from particlevi.streams import ParticleStreams
from particlevi.typing import JSON, Batch

__all__ = ["PROBE_FILE", "Probes"]

PROBE_FILE = "probe.safetensors"
_JITTER = 0.3
_MOST_ROWS = 8
_NUM_STEPS = 12


@dataclass(frozen=True, eq=False)
class Probes:
    """Points ``[p, D]`` and what a run computes there.

    Attributes:
        position: of the probing particles.
        values: by what was computed; None where that failed.
        run: the name of the run.
        num_steps: of the run when it began; it may have been made longer since.
    """

    position: Tensor
    values: dict[str, JSON]
    run: str
    num_steps: int

    @classmethod
    def of(cls, plan: Plan, initial: Tensor, run: str) -> Self:
        """Evaluate a plan near its starting points ``[P, D]``."""
        position = _points(plan, initial)
        return cls(position, _values(plan, position, plan.num_steps), run, plan.num_steps)

    def write(self, folder: Path) -> None:
        """Write them down, once."""
        known = {"run": self.run, "values": self.values, "num_steps": self.num_steps}
        files.write(folder / PROBE_FILE, {"position": self.position}, known)

    @classmethod
    def read(cls, folder: Path, run: str) -> Self:
        """Those of the run in a folder.

        Raises:
            FileNotFoundError: there are none.
            ValueError: a damaged file, or that of another run.
        """
        path = folder / PROBE_FILE
        tensors, known = files.read(path)
        if known["run"] != run:
            raise ValueError(f"{path} is of another run: put back the file of this one.")
        return cls(tensors["position"], known["values"], run, known["num_steps"])

    def check(self, plan: Plan) -> None:
        """Refuse a plan that computes something else.

        Raises:
            ValueError: with what differs.
        """
        position = self.position.to(plan.sampler.potential.device)
        given = _values(plan, position, self.num_steps)
        tolerance = torch.finfo(position.dtype).eps ** 0.6
        different = [
            what
            for what, before in self.values.items()
            if before is not None and not _close(before, given.get(what), tolerance)
        ]
        if different:
            raise ValueError(
                f"{plan.folder} is a checkpoint of another run, so it is not resumed. Computed "
                f"anew at its probing points, these are not what they were: {', '.join(different)}."
            )


def _points(plan: Plan, initial: Tensor) -> Tensor:
    """The start of the first particle, and points beside the start of others."""
    sampler = plan.sampler
    if sampler.draws != slice(None):
        rows = initial.clone()
    elif sampler.interacting:
        rows = initial[:4].clone()
    else:
        rows = torch.stack([initial[0], initial[min(1, len(initial) - 1)]])
    generator = torch.Generator().manual_seed(0)
    rows[1:] += _JITTER * torch.randn(rows[1:].shape, generator=generator).to(rows)
    return rows


def _values(plan: Plan, position: Tensor, num_steps: int) -> dict[str, JSON]:
    values: dict[str, JSON] = {}
    last = num_steps - 1
    steps = sorted({int(last ** (k / _NUM_STEPS)) - 1 for k in range(_NUM_STEPS)} | {last})
    for name, schedule in plan.schedules.items():
        values[f"the schedule of {name}"] = [float(schedule(step)) for step in steps if step >= 0]
    loader = plan.data.loader
    if loader is not None:
        values["the first batch of the loader"] = fingerprint(next(quietly(loader)))
    with global_seed(0), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        batch = _batch(plan, len(position))
        values["the potential"] = _tried(lambda: _energies(plan, position, batch))
        values["the gradient"] = _tried(lambda: _gradients(plan, position, batch))
        values["a step of the sampler"] = _tried(lambda: _moves(plan, position, batch))
    return values


def _batch(plan: Plan, num_rows: int) -> Batch | None:
    """The first data, weighted as in the run; shared unless all its particles are probed."""
    example = plan.source.example()
    if example is None:
        return None
    if plan.data.loader is None and (
        not example.per_particle or num_rows == plan.settings.num_particles
    ):
        return example
    data = plan.data.first(plan.source.batch_size or 1).data
    return Batch(data, scale=example.scale, law=example.law)


def _tried(compute: Any) -> JSON:
    """A value, or None where it cannot be had apart from the run."""
    try:
        found: JSON = compute()
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
        return None
    return found


def _energies(plan: Plan, position: Tensor, batch: Batch | None) -> JSON:
    potential = plan.sampler.potential
    parts = [potential(*piece) for piece in chunks(position, batch, potential.chunk_size)]
    return [[float(value)] for value in torch.cat(parts)[:_MOST_ROWS]]


def _gradients(plan: Plan, position: Tensor, batch: Batch | None) -> JSON:
    estimator, streams = plan.sampler.estimator, _streams(plan)
    state = estimator.init(position, streams)
    found = estimator(state, position, batch, estimator.draw_noise(state, streams))
    return _summary(found.gradient)


def _moves(plan: Plan, position: Tensor, batch: Batch | None) -> JSON:
    sampler, streams, room = plan.sampler, _streams(plan), plan.control_room()
    room.begin(position)
    state = sampler.init(position.clone(), streams)
    noise = sampler.draw_noise(state, streams)
    after, _ = sampler.step(state, batch, noise, room.at(0, position))
    return _summary(after.position - position)


def _streams(plan: Plan) -> ParticleStreams:
    return ParticleStreams(0, "probe", 0, plan.sampler.potential.device)


def _summary(vectors: Tensor) -> JSON:
    """Of each row of ``[p, D]`` its component along a fixed direction, and its norm."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(vectors.shape[1], generator=generator).to(vectors)
    rows = vectors[:_MOST_ROWS]
    return torch.stack([rows @ direction, torch.linalg.vector_norm(rows, dim=1)], 1).tolist()


def _close(before: JSON, now: JSON, tolerance: float) -> bool:
    """Whether lists of numbers agree, row by row; anything else must be equal."""
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        if not all(isinstance(value, float) for value in (*before, *now)):
            return all(_close(b, n, tolerance) for b, n in zip(before, now, strict=True))
        finite = [abs(v) for v in before if isinstance(v, float) and math.isfinite(v)]
        slack = tolerance * max(finite, default=0.0)
        return all(_same(b, n, slack) for b, n in zip(before, now, strict=True))
    return before == now


def _same(before: Any, now: Any, slack: float) -> bool:
    if math.isfinite(before) and math.isfinite(now):
        return bool(abs(before - now) <= slack)
    return repr(before) == repr(now)
