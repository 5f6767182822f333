"""What breaks the law of a method is refused where method, estimator and batches meet."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

import particlevi as pvi
from particlevi.data import Minibatches
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch
from tests.samplers.test_online_noise import B, N, X, conjugate
from tests.stationarity.laws import quadratic

TARGET = quadratic([[2.0, 0.5], [0.5, 1.0]])
ENERGY = {
    "hmc": pvi.hmc,
    "obabo": lambda target: pvi.obabo(target, metropolis_every=2),
    "parallel_tempering": pvi.parallel_tempering,
    "mams": pvi.mams,
    "mclmc": pvi.mclmc,
    "randomized_hmc": pvi.randomized_hmc,
}
TESTED = [name for name in ENERGY if name not in ("mclmc", "parallel_tempering")]
ESTIMATORS = {
    "structured": lambda: pvi.structured(TARGET, "parameter"),
    "structured_dropout": lambda: pvi.structured_dropout(TARGET, "parameter", keep=0.5),
}
PLAIN = {
    "one group": lambda: pvi.structured(TARGET, torch.zeros(2, dtype=torch.long)),
    "keep 1": lambda: pvi.structured_dropout(TARGET, "parameter", keep=1.0),
}


@pytest.mark.parametrize("name", list(ENERGY))
@pytest.mark.parametrize("kind", list(ESTIMATORS))
def test_an_energy_that_is_not_the_gradients_is_refused(name, kind):
    with pytest.raises(ValueError, match=f"{name} accepts .* the gradient of {kind} is not that"):
        ENERGY[name](ESTIMATORS[kind]())


@pytest.mark.parametrize("name", list(ENERGY))
def test_an_energy_that_is_drawn_anew_is_refused(name):
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 1))
    masked = pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(1.0), N, dropout="sample")
    with pytest.raises(ValueError, match=f"{name} accepts .* drawn anew at every evaluation"):
        ENERGY[name](masked)
    assert pvi.sghmc(masked).potential is masked


@pytest.mark.parametrize("name", list(ENERGY))
@pytest.mark.parametrize("kind", list(PLAIN))
def test_estimators_that_replace_nothing_are_taken(name, kind):
    assert ENERGY[name](PLAIN[kind]()).estimator.conservative


@pytest.mark.parametrize("factory", [pvi.sghmc, pvi.baoab, pvi.obabo, pvi.sgld, pvi.svgd])
@pytest.mark.parametrize("kind", list(ESTIMATORS))
def test_methods_without_energies_take_any_estimator(factory, kind):
    assert factory(ESTIMATORS[kind]()).estimator.name == kind


def test_pooled_histories_let_chains_see_each_other():
    entries = torch.zeros(3, 2, dtype=torch.float64)
    for options, expected in [
        ({}, False),
        ({"pooled": True}, True),
        ({"pooled": True, "initial": entries, "frozen": True}, False),
    ]:
        estimator = pvi.structured(TARGET, "parameter", history=pvi.gradients.history(**options))
        assert estimator.interacting == expected


def test_a_pooled_history_that_is_never_read_leaves_chains_alone():
    one = torch.zeros(2, dtype=torch.long)
    assert not pvi.structured(TARGET, one, history=pvi.gradients.history(pooled=True)).interacting


@pytest.mark.parametrize("name", TESTED)
def test_a_test_of_each_chain_needs_estimates_of_its_own(name):
    estimator = pvi.gradients.minibatch(TARGET)
    object.__setattr__(estimator, "interacting", True)
    with pytest.raises(ValueError, match=f"{name} needs particles that do not see each other"):
        ENERGY[name](estimator)


class Rows(Dataset):
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


def run(sampler, data=X, step_size=1e-3, **options):
    options = {"num_particles": 2, "num_draws": 2, "progress": False} | options
    return pvi.sample(sampler, data, step_size=step_size, **options)


@pytest.mark.parametrize("name", ["hmc", "obabo", "randomized_hmc"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_bootstrap_of_all_data_is_no_exact_energy(name, shared):
    sampler = ENERGY[name](conjugate(N))
    with pytest.raises(ValueError, match=f"all {N} data, got a batch of {N} drawn with replace"):
        run(sampler, batch_size=N, batching=Minibatches(shared=shared))
    run(sampler, batch_size=N, batching="subset")


def test_changes_of_the_energy_between_minibatches_are_those_of_no_step():
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(), lambda theta, x: -0.5 * (x - theta[0]) ** 2, 2, N
    )
    with pytest.raises(ValueError, match=f"mclmc .* energy of all {N} data, got a batch of {B}"):
        run(pvi.mclmc(target), batch_size=B)


def test_noise_of_a_shared_bootstrap_is_seen():
    draws = run(
        pvi.sgld(conjugate(N), gradient_noise="online"),
        batch_size=N,
        batching=Minibatches(shared=True),
        num_draws=900,
    )
    found = float(draws.stats["gradient_noise"][0, -1])
    assert found == pytest.approx(N, rel=5 * (2 / 900 * 16 / 7) ** 0.5)


@pytest.mark.parametrize("noise", [1.0, "online"])
@pytest.mark.parametrize("factory", [pvi.sgld, pvi.sghmc])
def test_compensation_needs_independent_batches(factory, noise):
    sampler = factory(conjugate(N), gradient_noise=noise)
    with pytest.raises(ValueError, match="batches of an epoch balance each other"):
        run(sampler, batch_size=B, batching="epoch")
    data = Rows(X)
    with pytest.raises(ValueError, match="batches of an epoch balance each other"):
        run(sampler, DataLoader(data, B, shuffle=True))
    replaced = DataLoader(data, B, sampler=RandomSampler(data, replacement=True))
    run(sampler, replaced, num_draws=1)


def test_a_thermostat_needs_independent_batches():
    sampler = pvi.sgnht(conjugate(N))
    for data, options in (
        (X, {"batch_size": B, "batching": "epoch"}),
        (DataLoader(Rows(X), B), {}),
    ):
        with pytest.raises(ValueError, match="batches of an epoch balance each other"):
            run(sampler, data, **options)
    run(sampler, batch_size=B, batching="subset")


def test_exchanges_need_minibatches_of_their_own():
    sampler = pvi.parallel_tempering(conjugate(N))
    with pytest.raises(ValueError, match="they share a minibatch"):
        run(sampler, batch_size=B, batching=Minibatches(shared=True))
    with pytest.raises(ValueError, match="they share a minibatch"):
        run(sampler, DataLoader(Rows(X), B, shuffle=True))
    run(sampler, batch_size=B)
    run(sampler, batching=Minibatches(shared=True))


def test_energies_that_are_said_to_be_exact_need_all_the_data():
    sampler = pvi.parallel_tempering(conjugate(N), energy_noise=0)
    with pytest.raises(ValueError, match=f"parallel_tempering .* energy of all {N} data"):
        run(sampler, batch_size=B)
    run(sampler)


def test_a_loader_that_replaces_is_never_complete():
    data = Rows(X)
    loader = DataLoader(data, N, sampler=RandomSampler(data, replacement=True))
    with pytest.raises(ValueError, match="drawn with replacement"):
        run(pvi.hmc(conjugate(N)), loader)
    run(pvi.hmc(conjugate(N)), DataLoader(data, N, shuffle=True))


def test_epochs_need_no_permission_where_nothing_is_taken_out():
    run(pvi.sgld(conjugate(N)), batch_size=B, batching="epoch")


def test_subsets_have_less_noise():
    """By ``1 - B/N``, known exactly."""
    big = N // 2
    draws = run(
        pvi.sgld(conjugate(N), gradient_noise="online"),
        batch_size=big,
        batching="subset",
        num_particles=20,
        num_draws=900,
    )
    exact = N**2 / big * (N - big) / (N - 1)
    found = float(draws.stats["gradient_noise"][:, -1].mean())
    assert found == pytest.approx(exact, rel=5 * (2 / 900 * 16 / 7 / 20) ** 0.5)


def test_a_batch_that_breaks_the_law_is_refused_before_a_step_is_made():
    def never(*arguments):
        raise AssertionError("a step was made")

    with pytest.raises(ValueError, match=f"energy of all {N} data, got a batch of {B}"):
        run(replace(pvi.hmc(conjugate(N)), step=never), batch_size=B)


def test_a_batch_that_breaks_the_law_is_refused_in_the_step_itself():
    sampler = pvi.hmc(conjugate(N))
    streams = ParticleStreams(0)
    state = sampler.init(torch.zeros(2, 1, dtype=torch.float64), streams)
    noise = sampler.draw_noise(state, streams)
    controls = {name: torch.tensor(each(0)) for name, each in sampler.schedules.items()}
    controls["step_size"] = torch.tensor(1e-3)
    with pytest.raises(ValueError, match=f"energy of all {N} data, got a batch of {B}"):
        sampler.step(state, Batch(X[:B]), noise, controls)
