"""A module and a loss take their data in every form."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import particlevi as pvi
from particlevi.data import Place, as_pairs

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).sin()
WHERE = Place(torch.device("cpu"), torch.float32)

FORMS = {
    "list": [X, Y],
    "arrays": (X.double().numpy(), Y.numpy()),
    "frames": (pd.DataFrame(X.numpy()), pd.DataFrame(Y.numpy())),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=5),
    "batches": [(X[:8], Y[:8]), (X[8:], Y[8:])],
}


def square(outputs, targets):
    return (outputs - targets).square().sum(-1)


def net():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    x, y = as_pairs(FORMS[form], WHERE)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


@pytest.mark.parametrize("form", FORMS)
def test_noise(form):
    found = pvi.noise.measure(net(), FORMS[form], square)
    expected = pvi.noise.measure(net(), (X, Y), square)
    assert torch.equal(found.diagonal(), expected.diagonal())


@pytest.mark.parametrize("form", FORMS)
def test_curvature(form):
    found = pvi.curvature.curvature_operator(net(), FORMS[form], square)
    expected = pvi.curvature.curvature_operator(net(), (X, Y), square)
    assert torch.equal(found.dense(), expected.dense())


def test_plan():
    loader = FORMS["loader"]
    found = pvi.sgdvi.plan(net(), loader, square, weight_decay=0.1)
    expected = pvi.sgdvi.plan(net(), (X, Y), square, weight_decay=0.1)
    assert found.learning_rate == pytest.approx(expected.learning_rate, rel=1e-12)


@pytest.mark.parametrize("data", [X, (X,), [(X,)]])
def test_data_without_targets(data):
    with pytest.raises(ValueError, match=r"take data \(inputs, ..., targets\)"):
        as_pairs(data, WHERE)


def test_data_that_are_not_finite():
    with pytest.raises(ValueError, match=r"data\[0\] must be finite"):
        pvi.curvature.curvature_operator(net(), (X / 0, Y), square)
