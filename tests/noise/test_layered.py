"""Noise of a module's potential from its layers, against its per-sample gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.noise import GradientNoise

pytestmark = pytest.mark.filterwarnings("ignore:The module Recurrent cannot be vectorised")

F64 = torch.float64
N = 12


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def convolutional():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


def dense(outputs: int = 3):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs))


MODELS = {
    "dense": (dense, (3,), pvi.Categorical(), pvi.Normal(0.3)),
    "convolution": (convolutional, (1, 4, 4), pvi.Categorical(), pvi.Normal(0.3)),
    "recurrent": (Recurrent, (5, 3), pvi.Categorical(), pvi.Normal(0.3)),
    "learned scale": (lambda: dense(1), (3,), pvi.Gaussian("learned"), pvi.StudentT(3.0)),
    "prior with sites": (dense, (3,), pvi.Categorical(), pvi.Horseshoe()),
}


def noise_of(name: str) -> GradientNoise:
    make, shape, likelihood, prior = MODELS[name]
    torch.manual_seed(0)
    potential = pvi.from_module(make().double(), likelihood, prior, num_data=N)
    x = torch.randn(N, *shape, dtype=F64)
    y = torch.arange(N) % 3 if isinstance(likelihood, pvi.Categorical) else x[:, :1]
    theta = 0.5 * torch.randn(potential.num_params, dtype=F64)
    return pvi.noise.measure(potential, (x, y), position=theta, chunk_size=5)


def by_rows(noise: GradientNoise) -> GradientNoise:
    """The same noise by per-sample gradients."""
    return replace(noise, samples=replace(noise.samples, squares=None, factors=None, shift=None))


@pytest.fixture(params=MODELS)
def noise(request):
    found = noise_of(request.param)
    assert found.samples.factors is not None
    return found


@pytest.mark.parametrize("centered", [True, False])
def test_diagonals(noise, centered):
    wanted = by_rows(noise).diagonal(centered)
    assert torch.allclose(noise.diagonal(centered), wanted, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("centered", [True, False])
def test_traces_and_their_errors(noise, centered):
    wanted = by_rows(noise).trace(centered=centered)
    assert noise.trace(centered=centered) == pytest.approx(wanted, rel=1e-10, nan_ok=True)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("top", [None, 3])
def test_spectra(noise, centered, top):
    found, wanted = (each.spectrum(top, centered) for each in (noise, by_rows(noise)))
    assert np.allclose(found.eigenvalues, wanted.eigenvalues, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("centered", [True, False])
def test_some_parameters(noise, centered):
    name = [n for n in noise.samples.layout.shapes if "weight" in n][-1]
    found = noise.restrict(name)
    wanted = by_rows(noise).restrict(name)
    assert torch.allclose(found.diagonal(centered), wanted.diagonal(centered), rtol=1e-10)
    assert found.trace(centered=centered).value == pytest.approx(
        wanted.trace(centered=centered).value
    )


def test_dropout_masks_take_per_sample_gradients():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    settings = {"num_data": N, "dropout": "sample"}
    potential = pvi.from_module(net, pvi.Categorical(), pvi.Normal(), **settings)
    data = torch.randn(N, 3, dtype=F64), torch.arange(N) % 3
    found = pvi.noise.measure(potential, data, position=torch.ones(31, dtype=F64))
    assert found.samples.factors is None


def test_padding_rows_take_per_sample_gradients():
    net = nn.Sequential(nn.Embedding(4, 2, padding_idx=0), nn.Flatten(), nn.Linear(6, 3)).double()
    potential = pvi.from_module(net, pvi.Categorical(), pvi.Normal(), num_data=N)
    data = torch.arange(3 * N).view(N, 3) % 4, torch.arange(N) % 3
    found = pvi.noise.measure(potential, data, position=torch.ones(29, dtype=F64))
    assert found.samples.factors is None
    assert torch.allclose(found.diagonal()[:2], torch.zeros(2, dtype=F64), atol=1e-14)
