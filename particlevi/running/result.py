"""From the store of a run to its draws."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from particlevi.draws import Draws
from particlevi.drawset.moments import RunningMoments
from particlevi.running.plan import Plan
from particlevi.storage.store import Store
from particlevi.typing import JSON, Grouped

__all__ = ["draws_of"]


def draws_of(
    plan: Plan,
    store: Store,
    *,
    count: int,
    lost: Mapping[int, int],
    left_out: Mapping[int, int],
    num_steps: int,
    seconds: float,
    ended_by: str,
    tuning: Mapping[str, JSON] | None,
    metric: Tensor | None,
    end: Tensor | None,
    moments: RunningMoments | None,
) -> Draws:
    """The first ``count`` draws of the chains that were not lost.

    Args:
        plan: of the run.
        store: its draws.
        count: how many of them.
        lost: chains that diverged, with their steps.
        left_out: those of them that are left out.
        num_steps: that were made.
        seconds: that they took.
        ended_by: what ended the run.
        tuning: the tuner's report.
        metric: the map to theta from the coordinates in which the method moved.
        end: positions of all particles ``[P, D]``, where the draws are fewer or in part.
        moments: of the draws, if they were kept.
    """
    sampler, settings = plan.sampler, plan.settings
    estimator = sampler.estimator
    rows = plan.rows
    places = [k for k, row in enumerate(rows) if row not in left_out]
    warm = min(plan.num_warmup_draws, count)

    def cut(value: Tensor) -> Tensor:
        return value if value.ndim == 1 or len(places) == len(rows) else value[places]

    def part(start: int, stop: int) -> tuple[Tensor, dict[str, Tensor]]:
        values, stats = store.read(start, stop)
        return cut(values), {name: cut(value) for name, value in stats.items()}

    particles, stats = part(warm, count)
    warmup, warmup_stats = part(0, warm) if settings.keep_warmup else (None, {})
    known = plan.known
    counted = moments is not None and moments.count == count - warm
    return Draws(
        **{
            **known,
            "chains": [rows[k] for k in places],
            "attrs": {
                **known["attrs"],
                "ended_by": ended_by,
                "tuning": None if tuning is None else dict(tuning),
            },
        },
        particles=particles,
        stats=stats,
        warmup=warmup,
        warmup_stats=warmup_stats,
        diverged=dict(lost),
        interrupted=ended_by == "interruption",
        seconds=seconds,
        num_steps=num_steps,
        gradients=float(settings.num_particles * num_steps * sampler.gradients_per_step),
        groups=estimator.groups if isinstance(estimator, Grouped) else None,
        pooled=isinstance(estimator, Grouped) and estimator.pooled,
        metric=metric,
        end=end if end is None or sampler.draws != slice(None) else cut(end),
        moments=moments.moments(places) if moments is not None and counted else None,
        potential=sampler.potential,
    )
