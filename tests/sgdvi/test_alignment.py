"""Alignment of curvature and noise, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.curvature import curvature_operator
from particlevi.sgdvi import alignment


def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    data = torch.randn(30, 3).double(), torch.arange(30) % 3
    return net, data, pvi.noise.measure(net, data, nn.functional.cross_entropy)


def test_alignment_is_that_of_the_matrices():
    net, data, noise = problem()
    f = curvature_operator(net, data, nn.functional.cross_entropy).dense()
    c = noise.dense()
    found = alignment(noise, top=5, num_probes=40)
    values, vectors = torch.linalg.eigh(f)
    top = vectors[:, -5:].flip(1)
    assert torch.allclose(found.curvature, values[-5:].flip(0), atol=1e-9)
    along = torch.einsum("ik,ij,jk->k", top, c, top)
    assert torch.allclose(found.noise, along, atol=1e-9)
    assert found.share == pytest.approx(float(along.sum() / c.trace()), rel=1e-8)
    cosine = float((f * c).sum() / (f.norm() * c.norm()))
    assert abs(found.cosine - cosine) < 4 * found.cosine_error < 0.4


def test_more_directions_than_there_are_are_refused():
    with pytest.raises(ValueError, match="top must be"):
        alignment(problem()[2], top=99)
