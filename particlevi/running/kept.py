"""Which steps of a run end in a draw."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from particlevi.running.settings import Settings
from particlevi.typing import Schedule

__all__ = ["kept_steps"]

_LONGEST_GAP = 1_000_000


def kept_steps(
    settings: Settings, schedules: Mapping[str, Schedule], draw_every: int = 1
) -> list[int]:
    """The steps (from 0) that end in a draw, those of the warm-up first if they are kept.

    A schedule may rule steps out by its ``keep``, a method by ``draw_every``: then the steps
    between draws are ``thin`` rounded up to a multiple of it.
    """
    warm = range(settings.thin - 1, settings.num_warmup, settings.thin)
    kept = list(warm) if settings.keep_warmup else []
    thin = -(-settings.thin // draw_every)
    sound = itertools.islice(
        _sound(schedules, settings.num_warmup, draw_every), thin - 1, None, thin
    )
    return kept + list(itertools.islice(sound, settings.num_draws))


def _sound(schedules: Mapping[str, Schedule], first: int, draw_every: int) -> Iterator[int]:
    """The steps from ``first`` on that the method and every schedule keep."""
    gates = [s.keep for s in schedules.values() if hasattr(s, "keep")]
    start = -(-(first + 1) // draw_every) * draw_every - 1
    last = start
    for step in itertools.count(start, draw_every):
        if all(gate(step) for gate in gates):
            last = step
            yield step
        elif step - last > _LONGEST_GAP:
            raise ValueError(
                f"The schedules keep no draw in {_LONGEST_GAP} steps after step {last}: their "
                "cycles never sample at one time. Give them one period."
            )
