"""The two roads through convolutions of many particles."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.gradients._evaluate import value_and_grad
from particlevi.potentials import module
from particlevi.potentials.convolutions import one_by_one
from particlevi.potentials.vectorize import Vectorized
from particlevi.typing import Batch

CPU = torch.device("cpu")


def potential():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 36, 3)).double()
    return pvi.from_module(net, pvi.Categorical(), pvi.Normal(1.0), num_data=50)


def batch(per_particle):
    shape = (3, 5) if per_particle else (5,)
    return Batch((torch.randn(*shape, 1, 8, 8).double(), torch.randint(3, shape)), per_particle)


@pytest.mark.parametrize("per_particle", [True, False])
def test_both_give_the_same_gradient(monkeypatch, per_particle):
    target = potential()
    theta, data = target.init(3), batch(per_particle)
    found = {}
    for road in (False, True):
        monkeypatch.setattr(module, "one_by_one", lambda *_, road=road: road)
        found[road] = value_and_grad(target, theta, data).gradient
    torch.testing.assert_close(found[True], found[False], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("per_particle", [True, False])
def test_the_rule_is_asked_with_the_bytes_of_the_largest_output(monkeypatch, per_particle):
    asked = []
    monkeypatch.setattr(module, "one_by_one", lambda *args: asked.append(args) or False)
    target = potential()
    target(target.init(3), batch(per_particle))
    assert asked == [(3 * 5 * 2 * 36 * 8, CPU)]


def test_nets_without_convolutions_are_lifted(monkeypatch):
    monkeypatch.setattr(Vectorized, "_looped", None)
    monkeypatch.setattr(module, "one_by_one", lambda *_: True)
    target = pvi.from_module(nn.Linear(3, 3), pvi.Categorical(), pvi.Normal(1.0), num_data=50)
    target(target.init(2), Batch((torch.randn(5, 3), torch.randint(3, (5,)))))


def test_a_loop_is_taken_beyond_the_cache_and_on_a_cpu_only():
    assert not one_by_one(1 << 20, CPU)
    assert one_by_one(1 << 24, CPU)
    assert not one_by_one(1 << 24, torch.device("cuda"))
