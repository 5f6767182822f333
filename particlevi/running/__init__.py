"""The loop, and what runs beside it."""

from particlevi.running.converged import converged
from particlevi.running.monitor import Every, Look, Monitor, Rule, Target, max_seconds
from particlevi.running.world import OneProcess

__all__ = [
    "Every",
    "Look",
    "Monitor",
    "OneProcess",
    "Rule",
    "Target",
    "converged",
    "max_seconds",
]
