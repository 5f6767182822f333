"""The picture of a recorded training shows what was recorded."""

import matplotlib as mpl
import pytest
import torch

import particlevi as pvi

mpl.use("Agg")


def test_a_training_shows_its_series():
    x, net = torch.randn(16, 2), torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pvi.record.Recorder(
        net, optimizer, every=1, loss=lambda b: net(b).square().mean(), probe=x, probe_every=2
    ) as recorder:
        for _ in range(6):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    trace = recorder.trace()
    first, second, third = pvi.plots.training(trace)
    assert list(first.lines[1].get_ydata()) == trace["gradient_norm"].tolist()
    assert list(second.lines[0].get_ydata()) == trace["probe.trace"].tolist()
    assert list(third.lines[1].get_ydata()) == pytest.approx([20.0] * 3)
