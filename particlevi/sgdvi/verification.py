"""Whether draws have the law that a plan predicts, and by how much they do not.

In coordinates ``y`` in which the prediction is ``Normal(0, I)``, along the target's axes, the mean
of ``y_i`` should be 0 and that of ``y_i^2`` 1. Errors are those of means over blocks of the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._shown import Shown
from particlevi.draws import Draws
from particlevi.sgdvi.designs import Design
from particlevi.sgdvi.inverse import covariance_kl
from particlevi.sgdvi.series import as_series, block_error, block_labels

__all__ = ["Verification", "verify_draws"]

_BLOCKS = 40


@dataclass(frozen=True, eq=False, repr=False)
class Verification(Shown):
    """A prediction against what happened.

    Attributes:
        variance_ratio: observed over predicted variance along each axis of the prediction, ``[D]``.
        variance_error: standard errors, ``[D]``.
        mean_shift: of the draws from the minimum, in predicted standard deviations, ``[D]``.
        mean_error: standard errors, ``[D]``.
        spread_ratio: the mean of ``variance_ratio``.
        spread_error: its standard error.
        correlation: between successive draws, averaged over the axes.
        correlation_error: its standard error.
        correlation_predicted: by the plan; NaN for averages.
        kl: ``KL(Normal of the draws || target)`` in nats, corrected for the number of draws.
        kl_error: its standard error; near a KL of 0, where the estimate is skewed, about a third
            too large.
        kl_predicted: by the plan.
        largest_score: the largest of all differences in standard errors.
        score_bound: what that should stay below, with 0.1 % of false alarms.
    """

    variance_ratio: Tensor
    variance_error: Tensor
    mean_shift: Tensor
    mean_error: Tensor
    spread_ratio: float
    spread_error: float
    correlation: float
    correlation_error: float
    correlation_predicted: float
    kl: float
    kl_error: float
    kl_predicted: float
    largest_score: float
    score_bound: float

    @property
    def holds(self) -> bool:
        """Whether nothing differs from the prediction by more than chance explains."""
        return self.largest_score <= self.score_bound

    def __str__(self) -> str:
        """A table of what was predicted and what happened."""
        low, high = float(self.variance_ratio.min()), float(self.variance_ratio.max())
        verdict = "holds" if self.holds else "FAILS"
        return "\n".join(
            [
                f"{'':34}{'predicted':>12}{'observed':>12}{'error':>10}",
                f"{'variance / predicted, all axes':34}{1:12.4f}{self.spread_ratio:12.4f}"
                f"{self.spread_error:10.4f}",
                f"{'  of the least and the most axis':34}{1:12.4f}{low:12.4f} ... {high:.4f}",
                f"{'mean shift, rms over axes (sd)':34}{0:12.4f}"
                f"{float(self.mean_shift.square().mean().sqrt()):12.4f}"
                f"{float(self.mean_error.square().mean().sqrt()):10.4f}",
                f"{'correlation of successive draws':34}{self.correlation_predicted:12.4f}"
                f"{self.correlation:12.4f}{self.correlation_error:10.4f}",
                f"{'KL to the target (nats)':34}{self.kl_predicted:12.4f}{self.kl:12.4f}"
                f"{self.kl_error:10.4f}",
                f"The prediction {verdict}: the largest difference is {self.largest_score:.1f} "
                f"standard errors (limit {self.score_bound:.1f}).",
            ]
        )


def verify_draws(draws: Draws | Tensor, center: Tensor, found: Design) -> Verification:
    """A design's prediction against draws.

    Args:
        draws: of the run, ``[P, T, D]``; at least 40 in all.
        center: the minimum ``[D]``.
        found: the design.

    Raises:
        ValueError: too few draws, or of another size.
    """
    from scipy.special import stdtrit

    series = as_series(draws)
    size = len(center)
    if series.shape[-1] != size or series.shape[0] * series.shape[1] < max(_BLOCKS, 3 * size):
        raise ValueError(
            f"verify takes at least {max(_BLOCKS, 3 * size)} draws of {size} parameters, got "
            f"{list(series.shape)}."
        )
    values, vectors = torch.linalg.eigh(found.covariance)
    y = (series - center.double().cpu()) @ vectors / values.sqrt()
    shift, shift_error = y.mean((0, 1)), block_error(y, _BLOCKS)
    ratio, ratio_error = y.square().mean((0, 1)), block_error(y.square(), _BLOCKS)
    spread = y.square().mean(-1, keepdim=True)
    spread_error = float(block_error(spread, _BLOCKS))
    products = (y[:, 1:] * y[:, :-1]).mean(-1, keepdim=True)
    lagged, lagged_error = math.nan, math.nan
    if products.numel() >= _BLOCKS:
        lagged, lagged_error = float(products.mean()), float(block_error(products, _BLOCKS))
    predicted = _predicted_correlation(found, vectors / values.sqrt())
    scores = [
        shift.abs() / shift_error,
        (ratio - 1).abs() / ratio_error,
        torch.tensor([abs(float(spread.mean()) - 1) / spread_error], dtype=torch.float64),
    ]
    if math.isfinite(predicted) and math.isfinite(lagged):
        scores.append(torch.tensor([abs(lagged - predicted) / lagged_error], dtype=torch.float64))
    every = torch.cat(scores)
    blocks = int(block_labels(series, _BLOCKS).max()) + 1
    bound = float(stdtrit(blocks - 1, 1 - 1e-3 / (2 * len(every))))
    kl, kl_error = _divergence(series - center.double().cpu(), found.target)
    return Verification(
        variance_ratio=ratio,
        variance_error=ratio_error,
        mean_shift=shift,
        mean_error=shift_error,
        spread_ratio=float(spread.mean()),
        spread_error=spread_error,
        correlation=lagged / float(spread.mean()),
        correlation_error=lagged_error / float(spread.mean()),
        correlation_predicted=predicted,
        kl=kl,
        kl_error=kl_error,
        kl_predicted=found.kl,
        largest_score=float(every.max()),
        score_bound=bound,
    )


def _predicted_correlation(found: Design, axes: Tensor) -> float:
    """Of successive draws, averaged over the axes of the prediction, in units of its variance."""
    if found.averaging > 1:
        return math.nan
    steps = found.thin
    if found.batching == "epoch":
        steps = max(1, round(found.thin / found.steps_per_epoch))
    lagged = found.chain.autocovariance(steps)
    return float(torch.einsum("ik,ij,jk->k", axes, lagged, axes).mean())


def _divergence(centered: Tensor, target: Tensor) -> tuple[float, float]:
    """The plug-in KL to the target less its bias, and its error, by the jackknife over blocks."""
    labels = block_labels(centered, _BLOCKS).flatten()
    flat = centered.flatten(0, 1)
    count = int(labels.max()) + 1

    def plug_in(rows: Tensor) -> float:
        mean = rows.mean(0)
        away = rows - mean
        covariance = away.T @ away / len(rows)
        off = 0.5 * float(mean @ torch.linalg.solve(target, mean))
        return off + float(covariance_kl(covariance, target))

    whole = plug_in(flat)
    left = torch.tensor([plug_in(flat[labels != k]) for k in range(count)], dtype=torch.float64)
    bias = (count - 1) * (float(left.mean()) - whole)
    error = math.sqrt((count - 1) * float(left.var(correction=0)))
    return whole - bias, error
