"""The numbers of a run, and what another run must share to go on with its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from particlevi.data import Batching
from particlevi.typing import JSON, Sampler, Tuner

__all__ = ["Settings", "identity", "identity_of_sampler"]


@dataclass(frozen=True)
class Settings:
    """The arguments of a run that a checkpoint writes down."""

    num_particles: int
    num_warmup: int
    num_draws: int
    thin: int
    batch_size: int | None
    batching: Batching
    shared_batch: bool
    seed: int
    compile: bool
    keep_warmup: bool
    storage_dtype: str
    checkpoint_every: int | None


def identity_of_sampler(sampler: Sampler) -> dict[str, JSON]:
    """Method and estimator with their arguments."""
    return {
        "sampler": sampler.name,
        "sampler_settings": dict(sampler.settings),
        "estimator": sampler.estimator.name,
        "estimator_settings": dict(sampler.estimator.settings),
    }


def identity(sampler: Sampler, tuner: Tuner | None) -> dict[str, JSON]:
    """Potential, method, estimator and tuner as JSON."""
    fingerprint_of_potential: Mapping[str, JSON] = sampler.potential.fingerprint
    return {
        "potential": dict(fingerprint_of_potential),
        "sampler": identity_of_sampler(sampler),
        "tuner": describe_tuner(tuner),
    }


def describe_tuner(tuner: Tuner | None) -> JSON:
    """Name and arguments of a tuner."""
    return None if tuner is None else {"name": tuner.name, "settings": dict(tuner.settings)}
