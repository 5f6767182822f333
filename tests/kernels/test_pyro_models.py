"""SVGD on Pyro models on which Pyro's own fails: its particle plate broadcasts, ours is vmapped."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVGD, RBFSteinKernel
from pyro.nn import PyroModule, PyroSample
from torch import nn

import particlevi as pvi

generator = torch.Generator().manual_seed(0)
X = torch.randn(50, 3, generator=generator)
Y = X @ torch.tensor([1.0, -2.0, 0.5]) + 0.5 * torch.randn(50, generator=generator)


def regression(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


class Net(PyroModule):
    def __init__(self):
        super().__init__()
        self.hidden = PyroModule[nn.Linear](3, 4)
        self.out = PyroModule[nn.Linear](4, 1)
        for layer in (self.hidden, self.out):
            for name, value in list(layer.named_parameters()):
                prior = dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.ndim)
                setattr(layer, name, PyroSample(prior))

    def forward(self, x, y):
        mean = self.out(self.hidden(x).tanh()).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


@pytest.mark.parametrize("model", [regression, Net()], ids=["matmul", "module"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pyros_own_fails(model):
    pyro.clear_param_store()
    svgd = SVGD(
        model, RBFSteinKernel(), pyro.optim.Adam({"lr": 0.1}), num_particles=7, max_plate_nesting=1
    )
    with pytest.raises((RuntimeError, ValueError)):
        svgd.step(X, Y)
    pyro.clear_param_store()


def test_the_same_regression_here():
    """Five lines; the mean and the spread are those of the conjugate posterior."""
    potential = pvi.from_pyro(regression, num_data=50, example_batch=(X, Y))
    sampler = pvi.svgd(potential, optimizer="adam")
    draws = pvi.sample(
        sampler,
        data=(X, Y),
        step_size=pvi.schedules.cosine(0.1, num_steps=300),
        num_particles=50,
        num_warmup=299,
        num_draws=1,
        progress=False,
    )
    w = draws.constrained()["w"][:, -1]
    precision = X.T @ X / 0.25 + torch.eye(3)
    mean = torch.linalg.solve(precision, X.T @ Y / 0.25)
    torch.testing.assert_close(w.mean(0), mean, atol=5e-3, rtol=0)
    ratio = w.var(0) / precision.inverse().diagonal()
    assert ((ratio > 0.6) & (ratio < 1.1)).all()


def test_a_net_of_pyro_modules():
    potential = pvi.from_pyro(Net(), num_data=50, example_batch=(X, Y))
    sampler = pvi.svgd(potential, optimizer="adam")
    draws = pvi.sample(
        sampler,
        data=(X, Y),
        step_size=0.05,
        num_particles=10,
        num_warmup=150,
        num_draws=1,
        progress=False,
    )
    assert draws.constrained()["hidden.weight"].shape == (10, 1, 4, 3)
    potentials = draws.stats["potential"][:, -1]
    start = potential(potential.init(10), pvi.typing.Batch((X, Y)))
    assert potentials.max() < 0.5 * start.min()
