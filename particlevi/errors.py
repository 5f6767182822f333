"""Errors and warnings that a caller can catch by kind; each is also of its builtin kind."""

from __future__ import annotations

from typing import Any

__all__ = [
    "DivergenceError",
    "NotConvergedWarning",
    "NotStationaryWarning",
    "ParticleviError",
    "ParticleviWarning",
]


class ParticleviError(Exception):
    """Every error that particlevi raises on its own account at run time."""


class ParticleviWarning(UserWarning):
    """Every warning of particlevi."""


class NotStationaryWarning(ParticleviWarning):
    """A run's halves have different laws, or it is hardly longer than its memory."""


class NotConvergedWarning(ParticleviWarning):
    """A run ended before it reached what was asked of it."""


class DivergenceError(ParticleviError, RuntimeError):
    """Every chain, or an interacting particle, became non-finite or ran away.

    Attributes:
        draws: what was drawn before it happened.
    """

    def __init__(self, message: str, draws: Any):
        super().__init__(message)
        self.draws = draws

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.draws)
