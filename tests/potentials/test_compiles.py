"""Every likelihood, under every prior, is one graph."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.streams import ParticleStreams

LIKELIHOODS = {
    "gaussian": (pvi.Gaussian(scale=0.5), 1, torch.randn(5, 1)),
    "learned": (pvi.Gaussian(scale="learned", num_outputs=2), 2, torch.randn(5, 2)),
    "student": (pvi.StudentT(df=4.0), 1, torch.randn(5, 1)),
    "bernoulli": (pvi.Bernoulli(), 1, torch.tensor([[0.0], [1.0], [1.0], [0.0], [1.0]])),
    "categorical": (pvi.Categorical(), 3, torch.tensor([0, 2, 1, 1, 0])),
    "poisson": (pvi.Poisson(), 1, torch.tensor([[0.0], [3.0], [1.0], [2.0], [7.0]])),
}
PRIORS = {"normal": pvi.Normal(), "laplace": pvi.Laplace(), "student": pvi.StudentT(df=3.0)}


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_step_is_one_graph(likelihood, prior):
    law, width, targets = LIKELIHOODS[likelihood]
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, width))
    potential = pvi.from_module(net, law, PRIORS[prior], num_data=20)
    sampler = pvi.sghmc(potential)
    streams = ParticleStreams(0)
    state = sampler.init(potential.init(4, streams), streams)
    batch = pvi.typing.Batch((torch.linspace(-1, 1, 10).view(5, 2), targets))
    noise = sampler.draw_noise(state, streams)
    controls = {"step_size": torch.tensor(0.01), "temperature": torch.tensor(1.0)}
    with torch.no_grad():
        eager, _ = sampler.step(state, batch, noise, controls)
        compiled = torch.compile(sampler.step, backend="eager", fullgraph=True)
        traced, _ = compiled(state, batch, noise, controls)
    torch.testing.assert_close(traced.position, eager.position)
    torch._dynamo.reset()
