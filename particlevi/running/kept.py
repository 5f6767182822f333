"""Which steps of a run end in a draw."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from particlevi.running.settings import Settings
from particlevi.typing import Schedule

__all__ = ["kept_steps"]

_LONGEST_GAP = 1_000_000


def kept_steps(settings: Settings, schedules: Mapping[str, Schedule]) -> list[int]:
    """The steps (from 0) that end in a draw, those of the warm-up first if they are kept.

    A schedule may rule steps out by its ``keep``.
    """
    warm = range(settings.thin - 1, settings.num_warmup, settings.thin)
    kept = list(warm) if settings.keep_warmup else []
    allowed = _allowed(schedules, settings.num_warmup)
    sound = itertools.islice(allowed, settings.thin - 1, None, settings.thin)
    return kept + list(itertools.islice(sound, settings.num_draws))


def _allowed(schedules: Mapping[str, Schedule], first: int) -> Iterator[int]:
    """The steps from ``first`` on that every schedule keeps."""
    gates = [s.keep for s in schedules.values() if hasattr(s, "keep")]
    last = first
    for step in itertools.count(first):
        if all(gate(step) for gate in gates):
            last = step
            yield step
        elif step - last > _LONGEST_GAP:
            raise ValueError(
                f"The schedules keep no draw in {_LONGEST_GAP} steps after step {last}: their "
                "cycles never sample at one time. Give them one period."
            )
