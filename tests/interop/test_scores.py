"""Scores of torchmetrics and of particlevi are the same numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.comparison import default_scores

CLASSES, N = 3, 400

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def metrics():
    return pytest.importorskip(
        "torchmetrics.functional.classification", reason="torchmetrics is not installed"
    )


@pytest.fixture(scope="module")
def case():
    """Draws of two widths that are right more often than not, inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, CLASSES, generator=generator)
    y = (x + torch.randn(N, CLASSES, generator=generator)).argmax(1)
    potential = pvi.from_module(
        nn.Linear(CLASSES, CLASSES), pvi.Categorical(), pvi.Normal(1.0), num_data=N
    )
    center = potential.ravel({"weight": 2 * torch.eye(CLASSES), "bias": torch.zeros(CLASSES)})
    noise = torch.randn(2, 50, len(center), generator=generator)
    draws = {
        name: pvi.Draws.from_tensor(center + width * noise, potential)
        for name, width in (("narrow", 0.1), ("wide", 1.0))
    }
    return draws, x, y


@pytest.mark.parametrize("name", ["narrow", "wide"])
def test_calibration_errors_of_predictions_agree(metrics, case, name):
    draws, x, y = case
    probs = draws[name].predict(x).probs
    theirs = metrics.multiclass_calibration_error(probs, y, CLASSES, n_bins=15, norm="l1")
    assert float(theirs) > 0.02
    assert pvi.diagnostics.calibration_error(probs, y, 15) == pytest.approx(float(theirs), abs=1e-6)


def test_the_columns_of_a_comparison_are_these_scores(metrics, case):
    draws, x, y = case
    wanted = [each for each in default_scores() if each.name in ("accuracy", "ece_width")]
    table = pvi.compare(draws, (x, y), scores=wanted)
    for name, each in draws.items():
        probs = each.predict(x).probs
        accuracy = metrics.multiclass_accuracy(probs, y, CLASSES, average="micro")
        error = metrics.multiclass_calibration_error(probs, y, CLASSES, n_bins=15)
        assert table.rows[name]["accuracy"] == pytest.approx(float(accuracy), abs=1e-6)
        assert table.rows[name]["ece_width"] == pytest.approx(float(error), abs=1e-6)


def test_a_confidence_of_one_has_a_bin_of_its_own_only_in_torchmetrics(metrics):
    probs, y = torch.tensor([[1.0, 0.0], [0.98, 0.02]]), torch.tensor([1, 0])
    theirs = metrics.multiclass_calibration_error(probs, y, 2, n_bins=15)
    assert float(theirs) == pytest.approx((1 + 0.02) / 2, abs=1e-6)
    assert pvi.diagnostics.calibration_error(probs, y, 15) == pytest.approx((1 - 0.02) / 2)
