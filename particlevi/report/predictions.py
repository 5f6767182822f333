"""What a page says of predictions on held-out data: scores with errors, and calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from particlevi.diagnostics.outputs import log_predictive_density
from particlevi.diagnostics.predictive import Prediction
from particlevi.drawset import DrawSet
from particlevi.report.charts import Chart, Line

__all__ = ["of_predictions"]

_BINS = 10
_MOST_POINTS = 300

Row = tuple[str, str, str]


def of_predictions(
    draws: DrawSet,
    test_data: Any,
    prediction: Prediction,
    targets: Tensor,
    levels: Sequence[float],
    thin: int,
) -> tuple[list[Row], list[Chart]]:
    """Scores and charts.

    Args:
        draws: with all parameters kept.
        test_data: held-out data, as given to ``sample``.
        prediction: at their inputs, with quantiles at ``levels`` for numbers.
        targets: of them.
        levels: of the quantiles, symmetric about one half.
        thin: every ``thin``-th draw is used.
    """
    density = log_predictive_density(draws, test_data, thin=thin).double().cpu()
    rows = [_row("negative log predictive density, nats per datum", -density)]
    if prediction.probs is not None:
        right, confidence = _choices(prediction.probs.double().cpu(), targets)
        rows.append(_row("share of right labels", right))
        return rows, [_reliability(right, confidence)]
    mean = prediction.mean.double().cpu().reshape(len(targets), -1)
    truth = targets.double().reshape(len(targets), -1)
    if mean.shape != truth.shape or prediction.quantiles is None:
        return rows, []
    squares = (mean - truth).square().mean(1)
    root = math.sqrt(float(squares.mean()))
    error = float(squares.std()) / math.sqrt(len(squares)) / (2 * max(root, 1e-30))
    rows.append(("root mean squared error", f"{root:.4g}", f"{error:.2g}"))
    quantiles = prediction.quantiles.double().cpu().reshape(len(levels), *truth.shape)
    shares, nominal = [], []
    for k in range(len(levels) // 2):
        inside = (truth >= quantiles[k]) & (truth <= quantiles[-1 - k])
        shares.append(float(inside.double().mean()))
        nominal.append(float(levels[-1 - k] - levels[k]))
    coverage = Chart(
        "Coverage of central intervals",
        "level",
        "share of targets inside",
        [Line("intervals", nominal, shares, points=True)],
        diagonal=True,
    )
    step = max(1, truth.numel() // _MOST_POINTS)
    pairs = [each.flatten()[::step].tolist() for each in (mean, truth)]
    observed = Chart(
        "Predicted and observed",
        "predictive mean",
        "target",
        [Line("data", pairs[0], pairs[1], points=True)],
        diagonal=True,
    )
    return rows, [coverage, observed]


def _row(name: str, values: Tensor) -> Row:
    error = float(values.std()) / math.sqrt(values.numel())
    return name, f"{float(values.mean()):.4g}", f"{error:.2g}"


def _choices(probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the most probable label is right, and how probable it was held to be."""
    if probs.ndim == 2 and probs.shape[-1] > 1 and targets.ndim == 1:
        confidence, label = probs.max(-1)
        return (label == targets).double(), confidence
    probs, truth = probs.flatten(), targets.double().flatten()
    label = (probs > 0.5).double()
    return (label == truth).double(), torch.maximum(probs, 1 - probs)


def _reliability(right: Tensor, confidence: Tensor) -> Chart:
    """Bins of equal numbers of data."""
    order = confidence.argsort()
    bins = [part for part in order.tensor_split(_BINS) if len(part)]
    return Chart(
        "Reliability, in bins of equal numbers of data",
        "probability of the chosen label",
        "share right",
        [
            Line(
                "bins",
                [float(confidence[part].mean()) for part in bins],
                [float(right[part].mean()) for part in bins],
                points=True,
            )
        ],
        diagonal=True,
    )
