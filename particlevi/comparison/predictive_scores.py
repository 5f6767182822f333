"""Scores of predictions: they do not depend on which hidden unit is which."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from particlevi.comparison.estimates import Estimate, bootstrap, mean_of, root_of
from particlevi.comparison.score import Score
from particlevi.comparison.subject import Predictive, Subject
from particlevi.diagnostics.calibration import Binning, calibration_error

__all__ = ["SCORES"]


def _nll(subject: Subject, reference: Subject) -> Estimate:
    return mean_of(-subject.log_density)


def _hits(subject: Subject) -> Tensor:
    """Right or wrong per datum, or squared errors."""
    predictive, targets = subject.predictive, subject.setting.targets
    if predictive.probs is not None:
        return (predictive.probs.argmax(-1) == targets.reshape(len(predictive.probs))).double()
    difference = predictive.mean - targets.double().view_as(predictive.mean)
    return difference.square().flatten(1).mean(1)


def _accuracy(subject: Subject, reference: Subject) -> Estimate | None:
    return None if subject.predictive.probs is None else mean_of(_hits(subject))


def _rmse(subject: Subject, reference: Subject) -> Estimate | None:
    return root_of(mean_of(_hits(subject))) if subject.predictive.probs is None else None


def _of_classes(predictive: Predictive, targets: Tensor, binning: Binning) -> float:
    assert predictive.probs is not None
    labels = targets.long().reshape(len(predictive.probs))
    return calibration_error(predictive.probs, labels, binning=binning)


def _of_intervals(predictive: Predictive, targets: Tensor) -> float:
    levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    center, std = predictive.mean, predictive.std
    place = torch.special.ndtr((targets.double().view_as(center) - center) / std)
    covered = [((place - 0.5).abs() < level / 2).double().mean() for level in levels]
    return float((torch.stack(covered) - levels).abs().mean())


def _calibration(subject: Subject, reference: Subject, *, binning: Binning) -> Estimate | None:
    predictive, targets = subject.predictive, subject.setting.targets
    if predictive.probs is None:
        return None

    def of(pick: Tensor) -> float:
        return _of_classes(predictive.at(pick), targets[pick], binning)

    every = torch.arange(len(targets))
    return Estimate(of(every), bootstrap(of, len(targets), subject.setting.seed))


def _interval_error(subject: Subject, reference: Subject) -> Estimate | None:
    predictive, targets = subject.predictive, subject.setting.targets
    if predictive.probs is not None:
        return None

    def of(pick: Tensor) -> float:
        return _of_intervals(predictive.at(pick), targets[pick])

    every = torch.arange(len(targets))
    return Estimate(of(every), bootstrap(of, len(targets), subject.setting.seed))


def _epistemic(subject: Subject, reference: Subject) -> Estimate:
    return root_of(Estimate(*subject.epistemic_variance))


def _pair(subject: Subject, reference: Subject) -> tuple[Tensor, Tensor] | None:
    a, b = subject.predictive.probs, reference.predictive.probs
    return None if subject is reference or a is None or b is None else (a, b)


def _agreement(subject: Subject, reference: Subject) -> Estimate | None:
    pair = _pair(subject, reference)
    return None if pair is None else mean_of((pair[0].argmax(-1) == pair[1].argmax(-1)).double())


def _variation(subject: Subject, reference: Subject) -> Estimate | None:
    pair = _pair(subject, reference)
    return None if pair is None else mean_of(0.5 * (pair[0] - pair[1]).abs().sum(-1))


def _distance(subject: Subject, reference: Subject) -> Estimate | None:
    if subject is reference:
        return None
    square = mean_of((subject.predictive.mean - reference.predictive.mean).square())
    return Estimate(math.sqrt(square.value), root_of(square).error)


SCORES = [
    Score("nll", "mean negative log predictive density per datum, in nats", _nll, best="lowest"),
    Score("accuracy", "share of right classes", _accuracy, best="highest"),
    Score("rmse", "root mean squared error of the predictive mean", _rmse, best="lowest"),
    Score(
        "ece_width",
        "expected calibration error: gap of confidence to share right, 15 bins of equal width",
        partial(_calibration, binning="width"),
        best="lowest",
    ),
    Score(
        "ece_mass",
        "the same with 15 bins of equal numbers of data",
        partial(_calibration, binning="mass"),
        best="lowest",
    ),
    Score(
        "coverage_error",
        "mean gap of the levels of central intervals, .05 to .95, to the share of targets inside",
        _interval_error,
        best="lowest",
    ),
    Score(
        "epistemic_std",
        "standard deviation of the model's mean between draws, root mean square over inputs",
        _epistemic,
    ),
    Score(
        "agreement",
        "share of inputs with the reference's most likely class",
        _agreement,
        best="highest",
    ),
    Score(
        "total_variation",
        "between predictive distributions and the reference's, mean over inputs",
        _variation,
        best="lowest",
    ),
    Score(
        "function_distance",
        "RMS difference of the mean output to the reference's",
        _distance,
        best="lowest",
    ),
]
