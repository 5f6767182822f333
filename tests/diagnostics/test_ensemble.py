"""Draws as a module: what it predicts, and that torch.export takes it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import particlevi as pvi

F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(11, 3, generator=GENERATOR, dtype=F64)


def draws_of(likelihood, outputs=1, batch_norm=False, extra=0):
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(4)] if batch_norm else []
    net = nn.Sequential(nn.Linear(3, 4), *middle, nn.Tanh(), nn.Linear(4, outputs)).double()
    net(X)
    model = pvi.from_module(net, likelihood, pvi.Normal(1.0), num_data=11)
    particles = torch.randn(2, 6, model.num_params, dtype=F64)
    return pvi.Draws.from_tensor(particles, model), net


def test_numbers_have_the_mean_and_the_spreads_of_predict():
    draws, _ = draws_of(pvi.Gaussian("learned"), batch_norm=True)
    found, expected = draws.to_module()(X), draws.predict(X)
    torch.testing.assert_close(found["mean"], expected.mean)
    torch.testing.assert_close(found["std"], expected.std)
    torch.testing.assert_close(found["epistemic_std"], expected.epistemic_std)


LOADERS = {
    "of data": lambda: DataLoader(TensorDataset(X, X[:, :1]), batch_size=4),
    "of inputs": lambda: DataLoader(X, batch_size=4),
    "batches": lambda: [(X[:5], X[:5, :1]), (X[5:], X[5:, :1])],
}


@pytest.mark.parametrize("name", LOADERS)
def test_predictions_take_a_loader_without_its_targets(name):
    draws, _ = draws_of(pvi.Gaussian("learned"))
    found, expected = (draws.predict(each) for each in (LOADERS[name](), X))
    assert torch.equal(found.mean, expected.mean)


def test_classes_have_entropies_by_their_definition():
    draws, _ = draws_of(pvi.Categorical(), 4)
    found = draws.to_module()(X)
    probs = draws.outputs(X).softmax(-1).flatten(0, 1)
    total = torch.distributions.Categorical(probs.mean(0)).entropy()
    each = torch.distributions.Categorical(probs).entropy().mean(0)
    torch.testing.assert_close(found["mean"], probs.mean(0))
    torch.testing.assert_close(found["entropy"], total)
    torch.testing.assert_close(found["mutual_information"], total - each)


def test_labels_have_entropies_by_their_definition():
    draws, _ = draws_of(pvi.Bernoulli(), 2)
    found = draws.to_module()(X)
    probs = draws.outputs(X).sigmoid().flatten(0, 1)
    total = torch.distributions.Bernoulli(probs.mean(0)).entropy()
    each = torch.distributions.Bernoulli(probs).entropy().mean(0)
    torch.testing.assert_close(found["entropy"], total)
    torch.testing.assert_close(found["mutual_information"], total - each)


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (pvi.Gaussian("learned"), 1),
        (pvi.Categorical(), 4),
        pytest.param(pvi.MeanScaleGaussian(), 2, marks=pytest.mark.slow),
        pytest.param(pvi.Bernoulli(), 1, marks=pytest.mark.slow),
        pytest.param(pvi.Ordinal(3), 1, marks=pytest.mark.slow),
        pytest.param(pvi.Poisson(), 1, marks=pytest.mark.slow),
    ],
)
def test_an_exported_program_agrees_at_another_batch_size(likelihood, outputs):
    draws, _ = draws_of(likelihood, outputs, batch_norm=True)
    ensemble = draws.to_module(num=5).eval()
    size = torch.export.Dim("size", min=2, max=100)
    program = torch.export.export(ensemble, (X,), dynamic_shapes=(({0: size},),))
    found, expected = program.module()(X[:7]), ensemble(X[:7])
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def test_it_is_a_module_of_its_own():
    draws, net = draws_of(pvi.Gaussian(1.0))
    ensemble = draws.to_module(num=4)
    expected = ensemble(X)["mean"]
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(ensemble(X)["mean"], expected)
    assert ensemble.members(X).shape == (4, 11, 1)
    assert not any(p.requires_grad for p in ensemble.parameters())
    assert ensemble.float()(X.float())["mean"].dtype == torch.float32


def test_draws_of_a_density_have_no_module():
    normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 2)
    with pytest.raises(ValueError, match="from_module"):
        pvi.Draws.from_tensor(torch.randn(1, 3, 2), normal).to_module()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_a_copy_predicts_the_same(copied):
    draws, _ = draws_of(pvi.Gaussian("learned"), batch_norm=True)
    draws.outputs(X)  # the potential has been at work
    ensemble = draws.to_module()
    assert torch.equal(copied(ensemble)(X)["mean"], ensemble(X)["mean"])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def test_a_module_that_does_not_lift_is_looped_over():
    model = pvi.from_module(Recurrent(), pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=11)
    draws = pvi.Draws.from_tensor(torch.randn(2, 3, model.num_params), model)
    x = torch.randn(5, 7, 3)
    with pytest.warns(pvi.ParticleviWarning, match="a loop evaluates one"):
        members = draws.to_module(chunk_size=4).members(x)
    with pytest.warns(pvi.ParticleviWarning, match="a loop evaluates one"):
        torch.testing.assert_close(members, draws.outputs(x).flatten(0, 1))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 12), nn.Linear(4, 1)

    def forward(self, x):
        query, key, value = self.inner(x).unsqueeze(1).chunk(3, -1)
        found = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.head(found[:, 0].mean(1))


def test_attention_is_lifted_without_a_warning():
    model = pvi.from_module(Attending(), pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=11)
    draws = pvi.Draws.from_tensor(torch.randn(2, 3, model.num_params), model)
    x = torch.randn(5, 7, 3)
    torch.testing.assert_close(draws.to_module().members(x), draws.outputs(x).flatten(0, 1))
