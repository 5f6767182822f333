"""Which models are nets."""

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.tuning.objective import Objective

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
DATA = X, X.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("module", "net"),
    [
        (nn.Linear(3, 1), False),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 1)), False),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), True),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), True),
    ],
)
def test_a_net_is_not_linear_in_its_parameters(module, net):
    target = pvi.from_module(module, pvi.Gaussian("learned"), pvi.Normal(1.0), num_data=20)
    assert Objective(target, DATA).is_net == net


def test_a_density_is_no_net():
    assert not Objective(pvi.from_log_density(lambda x: -x.square().sum(), 2)).is_net


def test_a_small_net_is_not_sampled_with_a_metric_of_all_its_modes():
    module = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    target = pvi.from_module(module, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=20)
    draws = pvi.sample(target, DATA, num_particles=4, num_warmup=20, num_draws=5, progress=False)
    assert draws.attrs["sampler"].startswith("mclmc")
