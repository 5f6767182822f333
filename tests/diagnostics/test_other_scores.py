"""Scores of torchmetrics of an ensemble are ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore")
def test_torchmetrics_score_an_ensemble_as_we_do():
    metrics = pytest.importorskip(
        "torchmetrics.functional.classification", reason="torchmetrics is not installed"
    )
    labels = (X[:, 0] > 0).long()
    model = pvi.from_module(nn.Linear(3, 3), pvi.Categorical(), pvi.Normal(1.0), num_data=40)
    draws = pvi.Draws.from_tensor(torch.randn(2, 10, 12), model)
    probs = draws.to_module()(X)["mean"]
    theirs = metrics.multiclass_calibration_error(probs, labels, num_classes=3, n_bins=15)
    assert float(theirs) == pytest.approx(
        pvi.diagnostics.calibration_error(probs, labels), abs=1e-5
    )
    right = metrics.multiclass_accuracy(probs, labels, num_classes=3, average="micro")
    assert float(right) == pytest.approx(float((probs.argmax(1) == labels).float().mean()))
