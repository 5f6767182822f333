"""Scores of how many draws there are, what they are worth, and what they took."""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from particlevi.comparison.estimates import Estimate
from particlevi.comparison.score import Score
from particlevi.comparison.subject import Subject
from particlevi.diagnostics import arviz
from particlevi.diagnostics.convergence import ESS_ERROR, ess

__all__ = ["costs", "count"]


def _count(subject: Subject, reference: Subject) -> Estimate:
    return Estimate(float(len(subject.parameters)), 0.0)


count: Score = Score("draws", "number of draws used", _count)


def costs(num_probes: int = 20) -> list[Score]:
    """Effective sample size, the same per second, and seconds.

    Args:
        num_probes: of the held-out inputs, at which effective sample sizes are taken.
    """

    def size(subject: Subject, reference: Subject) -> Estimate | None:
        draws = subject.draws
        if draws.facts.kind != "chains" or draws.particles.shape[1] < arviz.MIN_DRAWS:
            return None
        probe = pytree.tree_map(lambda leaf: leaf[:num_probes], subject.setting.inputs)
        sizes = ess(draws, "predictions", inputs=probe)
        value = float(torch.from_numpy(sizes).nanmedian())
        return Estimate(value, ESS_ERROR * value)

    def per_second(subject: Subject, reference: Subject) -> Estimate | None:
        estimate = size(subject, reference)
        seconds = subject.draws.seconds
        return (
            None
            if estimate is None
            else Estimate(estimate.value / seconds, estimate.error / seconds)
        )

    def seconds(subject: Subject, reference: Subject) -> Estimate:
        return Estimate(subject.draws.seconds, 0.0)

    return [
        Score("ess", "median effective sample size of the outputs", size, best="highest"),
        Score("ess_per_second", "the same over the seconds of the run", per_second, best="highest"),
        Score("seconds", "that the run took", seconds),
    ]
