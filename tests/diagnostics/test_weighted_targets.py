"""Targets with weights and a mask: taken as targets, or refused in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import particlevi as pvi

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)
SEEN = torch.arange(12).unsqueeze(1) % 3 > 0
WEIGHTED = (X, {"target": Y, "weight": torch.full((12,), 0.5), "mask": SEEN})
NET = nn.Linear(2, 1)
MODEL = pvi.from_module(NET, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=12)
DRAWS = pvi.Draws.from_tensor(torch.randn(2, 6, 3), MODEL)


def test_arviz_observes_the_targets_that_were_seen():
    observed = DRAWS.to_arviz(WEIGHTED).observed_data["y"].values
    np.testing.assert_array_equal(observed, torch.where(SEEN, Y, torch.nan).numpy())
    weighted = (X, {"target": Y, "weight": torch.ones(12)})
    np.testing.assert_array_equal(DRAWS.to_arviz(weighted).observed_data["y"].values, Y.numpy())


def test_log_likelihoods_have_the_shape_of_the_observations():
    found = DRAWS.to_arviz((X, Y), log_likelihood=True)
    assert found.log_likelihood["y"].shape == (2, 6, *found.observed_data["y"].shape)


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: pvi.compare({"a": DRAWS, "b": DRAWS[:1]}, WEIGHTED),
        lambda folder: DRAWS.report(folder / "page.html", test_data=WEIGHTED),
        lambda folder: pvi.noise.measure(NET, WEIGHTED, nn.functional.mse_loss),
    ],
    ids=["compare", "report", "noise"],
)
def test_what_counts_all_targets_alike_says_so(tmp_path, ask):
    with pytest.raises(ValueError, match="counts all targets alike"):
        ask(tmp_path)
