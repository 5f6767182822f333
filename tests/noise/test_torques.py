"""Sums over groups of parameters from factors, against those of per-sample gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.noise.torques import torques

F64 = torch.float64


def dense():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(7, 3, dtype=F64)
    return pvi.noise.measure(net, (x, x[:, :2]), nn.functional.mse_loss)


def places(noise, name):
    where, shape = noise.samples.layout.slices()[name], noise.samples.layout.shapes[name]
    return torch.arange(where.start, where.stop).view(shape)


GROUPS = {
    "into units": lambda n: torch.cat([places(n, "0.weight"), places(n, "0.bias")[:, None]], 1),
    "out of units": lambda n: places(n, "2.weight").T,
    "a layer": lambda n: places(n, "0.weight").reshape(1, -1),
    "some inputs of some units": lambda n: places(n, "0.weight")[1:3, ::2],
    "any weights": lambda n: torch.tensor([[0, 4, 8, 20], [1, 2, 15, 25]]),
}


@pytest.mark.parametrize("which", GROUPS)
def test_sums_are_those_of_per_sample_gradients(which):
    noise = dense()
    groups = GROUPS[which](noise)
    terms = torch.cat(list(noise.per_sample()))[:, groups] * noise.position[groups]
    (factors,) = noise._factors()
    found = torques(factors, noise.samples.layout, noise.position, groups)
    assert torch.allclose(found[0], terms.sum(-1), atol=1e-14)
    assert torch.allclose(found[1], terms.abs().sum(-1), atol=1e-14)


def test_sums_over_the_weights_of_a_convolution():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)).double()
    noise = pvi.noise.measure(
        net, (torch.randn(5, 1, 4, 4, dtype=F64), torch.ones(5, 1).double()), nn.functional.mse_loss
    )
    groups = torch.cat([places(noise, "0.weight").flatten(1), places(noise, "0.bias")[:, None]], 1)
    terms = torch.cat(list(noise.per_sample()))[:, groups] * noise.position[groups]
    (factors,) = noise._factors()
    found = torques(factors, noise.samples.layout, noise.position, groups)[0]
    assert torch.allclose(found, terms.sum(-1), atol=1e-14)
