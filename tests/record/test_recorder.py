"""A recorder leaves a training as it is, and what it writes down is what happened."""

from __future__ import annotations

import copy
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import particlevi as pvi
from particlevi.record import Iterates, Recorder

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
    )


def train(net, optimizer, steps=40):
    """States after each step, buffers included."""
    states = []
    torch.manual_seed(2)
    for _ in range(steps):
        rows = torch.randint(64, (16,))
        optimizer.zero_grad()
        F.mse_loss(net(X[rows]), Y[rows]).backward()
        optimizer.step()
        states.append({name: value.clone() for name, value in net.state_dict().items()})
    return states


def test_a_training_is_bit_for_bit_that_without_a_recorder():
    first = make_net()
    second = copy.deepcopy(first)
    plain = train(first, torch.optim.SGD(first.parameters(), lr=0.05, momentum=0.9))
    optimizer = torch.optim.SGD(second.parameters(), lr=0.05, momentum=0.9)
    with Recorder(
        second, optimizer, every=1, probe_every=7,
        loss=lambda b: F.mse_loss(second(b[0]), b[1]), probe=(X, Y),
    ) as recorder:  # fmt: skip
        recorded = train(second, optimizer)
    assert len(recorder.probes["step"]) == 5
    for one, other in zip(plain, recorded, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_draws_are_the_weights_after_every_third_step():
    net = make_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    with Recorder(net, optimizer, every=3) as recorder:
        states = train(net, optimizer)
    train(net, optimizer, 5)
    model = pvi.from_module(
        net, pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=64, dropout="off", batch_norm="frozen"
    )
    draws = recorder.draws(model)
    expected = pvi.Draws.from_state_dicts(model, states[2::3])
    assert torch.equal(draws.particles, expected.particles)
    assert draws.stats["step"].tolist() == list(range(3, 41, 3))
    assert recorder.draws(num_warmup=30).stats["step"].tolist() == [33, 36, 39]


def test_a_point_predicts_with_the_running_statistics_that_it_had():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Recorder(net, optimizer, every=4) as recorder:
        states = train(net, optimizer, 12)[3::4]
    model = pvi.from_module(net, pvi.Gaussian(1.0), pvi.Normal(1.0), 64, dropout="off")
    found = recorder.draws(model).outputs(X)[0]
    for state, outputs in zip(states, found, strict=True):
        net.load_state_dict(state)
        torch.testing.assert_close(outputs, net.eval()(X).detach())


def test_norms_are_those_of_the_step():
    net = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Recorder(net, optimizer, every=1) as recorder:
        train(net, optimizer, 6)
    trace = recorder.trace()
    torch.testing.assert_close(trace["update_norm"], 0.1 * trace["gradient_norm"])
    assert float(trace["weight_norm"][-1]) == pytest.approx(float(net.weight.detach().norm()))
    assert trace["rate"].tolist() == pytest.approx([0.1] * 6)


def test_coordinates_are_columns_of_all_parameters():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with (
        Recorder(net, optimizer, every=2) as whole,
        Recorder(net, optimizer, every=2, keep=5) as part,
    ):
        train(net, optimizer, 10)
    kept = part.draws()
    assert torch.equal(kept.particles, whole.draws().particles[..., kept.coordinates])
    model = pvi.from_module(net, pvi.Gaussian(1.0), pvi.Normal(1.0), 64, dropout="off")
    with pytest.raises(ValueError, match="Only some coordinates"):
        part.draws(model)


def test_a_full_memory_keeps_evenly_spaced_points():
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Recorder(net, optimizer, every=1, max_bytes=16 * 6) as recorder:
        train(net, optimizer, 23)
    assert recorder.draws().stats["step"].tolist() == [4, 8, 12, 16, 20]


def test_the_temperature_of_sgd_on_a_quadratic_is_its_closed_form():
    """Cov(theta, g) = eta s^2 / (2 - eta l) for g = l (theta - m) + s xi, wherever m lies."""
    rate, curvature, scale, size, steps = 0.3, 2.0, 1.5, 256, 2000
    weight = nn.ParameterList([nn.Parameter(torch.full((size,), 1000.0, dtype=torch.float64))])
    optimizer = torch.optim.SGD(weight, lr=rate)
    generator = torch.Generator().manual_seed(3)
    with Recorder(weight, optimizer, every=1) as recorder:
        for _ in range(steps):
            noise = torch.randn(size, generator=generator, dtype=torch.float64)
            weight[0].grad = curvature * (weight[0].detach() - 1000) + scale * noise
            optimizer.step()
    found = recorder.temperature(num_data=10)
    expected = 10 * rate * scale**2 / (2 - rate * curvature)
    assert abs(found.mean - expected) < 4 * found.mcse
    assert found.mcse < 0.03 * expected


def test_status_says_what_was_measured():
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    recorder = Recorder(
        net, optimizer, every=1, loss=lambda b: F.mse_loss(net(b[0]), b[1]), probe=(X, Y)
    )
    train(net, optimizer, 3)
    noise, curvature = recorder.measure()
    status = recorder.status()
    assert status.noise.trace == noise.trace
    assert status.curvature == curvature
    assert status.edge == pytest.approx(20.0)
    assert "edge of stability 20" in str(recorder)
    recorder.close()
    train(net, optimizer, 3)
    assert recorder.num_steps == 3


def test_a_sampled_scale_is_not_in_a_training():
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Recorder(net, optimizer, every=1) as recorder:
        train(net, optimizer, 3)
    model = pvi.from_module(net, pvi.Gaussian("learned"), pvi.Normal(1.0), 64)
    with pytest.raises(ValueError, match="likelihood"):
        recorder.draws(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every"),
        ({"budget": 2.0}, "budget"),
        ({"loss": lambda b: b}, "no probe"),
        ({"keep": -1}, "keep"),
    ],
)
def test_bad_arguments_are_named(options, words):
    net = nn.Linear(3, 1)
    with pytest.raises(ValueError, match=words):
        Recorder(net, torch.optim.SGD(net.parameters(), lr=0.1), **options)


def test_nothing_recorded_is_said():
    net = nn.Linear(3, 1)
    recorder = Recorder(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert math.isnan(recorder.cost)
    with pytest.raises(ValueError, match="Nothing was recorded"):
        recorder.draws()
    with pytest.raises(ValueError, match="8 records"):
        recorder.temperature()


def test_rows_stay_evenly_spaced_when_coarsened():
    kept = Iterates(1, 10**6)
    for step in range(1, 10):
        kept.add(step, torch.tensor([float(step)]))
    kept.coarsen(4)
    assert kept.stacked().flatten().tolist() == [4.0, 8.0]


class Wrapped(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("outer", [True, False], ids=["potential", "recorded"])
def test_the_potential_may_be_of_a_part_or_of_a_wrapper(outer):
    net = make_net()
    recorded, modelled = (net, Wrapped(net)) if outer else (Wrapped(net), net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with Recorder(recorded, optimizer, every=4) as recorder:
        train(net, optimizer, 12)
    model = pvi.from_module(modelled, pvi.Gaussian(1.0), pvi.Normal(1.0), 64, dropout="off")
    found = recorder.draws(model).outputs(X)[0, -1]
    torch.testing.assert_close(found, net.eval()(X).detach())


def test_a_probe_that_waits_is_told():
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"loss": lambda b: F.mse_loss(net(b[0]), b[1]), "probe": (X, Y)}
    with Recorder(net, optimizer, **options) as recorder:
        assert "no probe yet" in str(recorder)
        train(net, optimizer, 1)
        recorder.measure()
    assert "no probe yet" not in str(recorder)


def test_a_probe_loads_nothing_in_the_middle_of_a_training():
    code = """
import sys, torch, particlevi as pvi
net, x = torch.nn.Linear(4, 1), torch.randn(32, 4)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
recorder = pvi.record.Recorder(net, optimizer, loss=lambda b: net(b).square().mean(), probe=x)
before = set(sys.modules)
recorder.measure()
print(*set(sys.modules) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_an_optimiser_of_another_module_is_refused():
    other = torch.optim.SGD(nn.Linear(3, 1).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="none of the trainable parameters of Linear"):
        Recorder(nn.Linear(3, 1), other)


def test_what_is_no_optimiser_is_named():
    net = nn.Linear(3, 1)
    with pytest.raises(TypeError, match="optimizer must be an optimiser"):
        Recorder(net, net.parameters())


def test_before_the_first_step_no_number_is_told():
    net = nn.Linear(3, 1)
    recorder = Recorder(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert str(recorder) == "0 steps, 0 records; rate 0.1"
