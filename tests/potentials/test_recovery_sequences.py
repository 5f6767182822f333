"""Nets over sequences: simulate, sample, cover; and all of the analysis on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.typing import Batch
from tests.recovery import F64, chains, check_coverage, check_the_prior_comes_back, simulate


class Recurrent(nn.Module):
    """The last state of a recurrent layer, read out."""

    def __init__(self, kind):
        super().__init__()
        self.body = kind(2, 3, batch_first=True)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


class Attentive(nn.Module):
    """The mean over places of a layer with attention, read out."""

    def __init__(self):
        super().__init__()
        self.lift = nn.Linear(2, 4)
        self.body = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.body(self.lift(x)).mean(1))


NETS = {
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "attention": Attentive,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::particlevi.ParticleviWarning")  # recurrent layers in a loop
@pytest.mark.parametrize("name", NETS)
def test_outputs_are_covered_and_the_prior_comes_back(name):
    likelihood = pvi.Gaussian(0.5)
    potential = pvi.from_module(NETS[name]().double(), likelihood, pvi.Normal(0.5), num_data=10)
    x = torch.randn(120, 10, 4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    truth, y = simulate(potential, likelihood, x)
    states = chains(potential, (x, y), truth, 0.07, 60)
    probe = Batch((torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(8), dtype=F64),))
    found = torch.stack([potential.outputs(each, probe) for each in states[10:]])
    check_coverage(found.squeeze(-1), potential.outputs(truth, probe).squeeze(-1))
    check_the_prior_comes_back(states[-1], potential)


def data_of_sequences():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 4, 2, generator=generator)
    return x, x.sum((1, 2)).unsqueeze(1).tanh()


@pytest.fixture(scope="module", params=["gru", "attention"])
def sampled(request):
    torch.manual_seed(0)
    net, data = NETS[request.param](), data_of_sequences()
    potential = pvi.from_module(net, pvi.Gaussian(0.3), pvi.Normal(1.0), num_data=40)
    return net, potential, pvi.sample(pvi.sghmc(potential), data, **RUN), data


RUN = {
    "step_size": 0.01,
    "num_particles": 8,
    "num_warmup": 20,
    "num_draws": 10,
    "progress": False,
}
LOSS = nn.functional.mse_loss

ANALYSIS = {
    "predictions": lambda net, potential, draws, data: draws.predict(data[0], quantiles=(0.1,)),
    "verdict": lambda net, potential, draws, data: draws.diagnose(data, verbose=False),
    "temperatures": lambda net, potential, draws, data: draws.temperatures(data),
    "alarm": lambda net, potential, draws, data: draws.check_invariance(data),
    "comparison": lambda net, potential, draws, data: pvi.compare(
        {"a": draws, "b": draws[:, 5:]}, data, train_data=data
    ),
    "ensemble": lambda net, potential, draws, data: torch.export.export(
        draws.to_module(num=5), data[:1]
    ),
    "noise": lambda net, potential, draws, data: pvi.noise.measure(net, data, LOSS).spectrum(top=3),
    "curvature": lambda net, potential, draws, data: pvi.curvature.curvature_operator(
        net, data, LOSS
    ).top_eigenpairs(2),
    "structured": lambda net, potential, draws, data: pvi.sample(
        pvi.sghmc(pvi.structured(potential, "layer")), data, **RUN
    ).recombine(5),
    "particles": lambda net, potential, draws, data: pvi.sample(
        pvi.svgd(potential), data, **{**RUN, "step_size": 1e-4}
    ),
    "automatic": lambda net, potential, draws, data: pvi.sample(
        potential, data, num_warmup=60, num_draws=20, progress=False
    ),
    "plan": lambda net, potential, draws, data: pvi.sgdvi.plan(net, data, LOSS, weight_decay=0.5),
    "learning coefficient": lambda net, potential, draws, data: (
        pvi.sgdvi.local_learning_coefficient(net, data, LOSS, num_draws=20, num_chains=2)
    ),
    "arviz": lambda net, potential, draws, data: draws.to_arviz(
        data, log_likelihood=True, posterior_predictive=True
    ),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # runs far too short; recurrent layers in a loop
@pytest.mark.parametrize("step", ANALYSIS)
def test_all_of_the_analysis_takes_it(sampled, step):
    assert ANALYSIS[step](*sampled) is not None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_has_a_report(sampled, tmp_path):
    _, _, draws, data = sampled
    page = draws.report(tmp_path / "page.html", data, test_data=data)
    assert "Predictions" in page.read_text()
