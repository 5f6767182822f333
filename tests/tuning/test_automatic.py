"""``sample`` with nothing chosen by the caller."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

import particlevi as pvi
from particlevi.data.loaders import LoaderData
from particlevi.tuning import automatic
from particlevi.tuning.bounded_heat import bounded_heat
from particlevi.tuning.chosen import because
from tests.registry import SAMPLERS

SCALE = torch.tensor([1e-3, 0.2, 3.0, 1e3], dtype=torch.float64)
CORRELATED = torch.tensor(
    [[1.0, 0, 0, 0], [0.9, 0.4, 0, 0], [0.3, -0.5, 0.6, 0], [0.1, 0.8, -0.2, 0.5]],
    dtype=torch.float64,
)
ROOT = SCALE.unsqueeze(1) * CORRELATED
MEAN = torch.tensor([0.5, -3.0, 20.0, -4000.0], dtype=torch.float64)


def log_density(x):
    z = torch.linalg.solve_triangular(ROOT, (x - MEAN).mT, upper=False)
    return -0.5 * z.square().sum(0)


TARGET = pvi.from_log_density(log_density, 4, vectorized=True, dtype=torch.float64)


def scores(draws):
    """Differences of means and variances of z from 0 and 1, in standard errors over chains."""
    z = torch.linalg.solve_triangular(ROOT, (draws.particles - MEAN).mT, upper=False).mT
    found = []
    for values, truth in ((z, 0.0), (z.square(), 1.0)):
        mean = values.mean(1)
        found.append((mean.mean(0) - truth) / (mean.std(0) / np.sqrt(len(mean))))
    return torch.cat(found)


def test_a_potential_alone_is_sampled_right_over_six_decades_of_scales():
    draws = pvi.sample(TARGET, num_particles=16, progress=False)
    assert float(scores(draws).abs().max()) < 4
    assert draws.attrs["ended_by"].startswith("converged")
    assert draws.ess().min() >= 400
    assert draws.rhat().max() <= 1.01


def test_the_record_says_what_was_chosen_and_why():
    draws = pvi.sample(TARGET, num_particles=8, num_draws=20, progress=False)
    tuning = draws.attrs["tuning"]
    assert draws.attrs["sampler"] == "randomized_hmc"
    assert "one minimum" in tuning["reasons"][0]
    assert tuning["metric"] == "dense"
    assert tuning["start_gradients"] > 0
    assert draws.particles.shape[1] == 20
    told = draws.summary()
    for part in ("randomized_hmc: 8 chains of 20 draws", "one minimum", "acceptance", "R-hat"):
        assert part in told


def test_a_seed_decides_all_of_it():
    options = {"num_particles": 4, "num_warmup": 60, "num_draws": 10, "progress": False}
    first, same, other = (pvi.sample(TARGET, seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(first.particles, same.particles)
    assert not torch.equal(first.particles, other.particles)


TUNED = {
    "hmc": lambda target: pvi.hmc(target, num_leapfrog=4),
    "mams": pvi.mams,
    "randomized_hmc": pvi.randomized_hmc,
    "obabo": lambda target: pvi.obabo(target, metropolis_every=3),
    "baoab": pvi.baoab,
    "sghmc": pvi.sghmc,
    "sgld": pvi.sgld,
    "leimkuhler_matthews": pvi.leimkuhler_matthews,
}


@pytest.mark.parametrize("name", list(TUNED))
def test_a_sampler_without_a_step_size_is_tuned_and_right(name):
    draws = pvi.sample(TUNED[name](TARGET), num_particles=64, num_draws=60, thin=6, progress=False)
    found = scores(draws)
    assert float(found[:4].abs().max()) < 4
    # Unadjusted overdamped steps at a tenth of the stable range are 5 % too wide.
    assert float(found[4:].abs().max()) < (12 if name == "sgld" else 4)


def test_every_sampler_but_those_of_torch_optimisers_is_tuned():
    refused = set()
    for name, case in SAMPLERS.items():
        target = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 3)
        try:
            draws = pvi.sample(
                case(target), num_particles=4, num_warmup=30, num_draws=4, progress=False
            )
        except ValueError as error:
            assert "give step_size" in str(error)
            refused.add(name)
            continue
        assert torch.isfinite(draws.particles).all()
    assert refused == {"optimizer_adamw", "optimizer_pnm"}


def test_starting_points_of_the_caller_are_kept():
    generator = torch.Generator().manual_seed(0)
    start = MEAN + torch.randn(5, 4, generator=generator, dtype=torch.float64) @ ROOT.T
    draws = pvi.sample(
        pvi.hmc(TARGET), initial=start, num_warmup=1, num_draws=1, thin=1, progress=False
    )
    assert len(draws.particles) == 5


def test_a_step_size_beside_a_potential_is_refused():
    with pytest.raises(ValueError, match="everything is chosen"):
        pvi.sample(TARGET, num_particles=4, step_size=0.1)


def test_logistic_regression_on_raw_columns():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64) * torch.tensor(
        [1.0, 50.0, 0.02]
    )
    truth = torch.tensor([1.0, 0.02, -40.0], dtype=torch.float64)
    y = torch.bernoulli((x @ truth).sigmoid(), generator=generator)

    def log_likelihood(theta, batch):
        inputs, targets = batch
        logits = theta @ inputs.mT
        return targets * logits - torch.nn.functional.softplus(logits)

    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * (theta / 100).square().sum(-1),
        log_likelihood,
        3,
        200,
        vectorized=True,
        dtype=torch.float64,
    )
    draws = pvi.sample(target, (x, y), num_particles=16, progress=False)
    assert draws.rhat().max() <= 1.01
    # By importance sampling from the Gaussian at the mode, 400 000 draws.
    flat = draws.flat()
    mean, variance = reference(target, (x, y))
    error = variance.sqrt() / np.sqrt(draws.ess().min())
    assert float(((flat.mean(0) - mean) / error).abs().max()) < 4
    assert float((flat.var(0) / variance - 1).abs().max()) < 0.15


def reference(target, data):
    from particlevi.tuning.descent import newton
    from particlevi.tuning.metric import factor_of_hessian
    from particlevi.tuning.objective import Objective

    objective = Objective(target, data)
    mode, hessian, _ = newton(
        objective.gradient_at, objective.hessian, torch.zeros(3, dtype=torch.float64)
    )
    generator = torch.Generator().manual_seed(1)
    z = 1.2 * torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    points = mode + z @ factor_of_hessian(hessian).T
    weight = (0.5 * (z / 1.2).square().sum(1) - target(points, objective.data.whole())).softmax(0)
    mean = weight @ points
    return mean, weight @ (points - mean).square()


def stopped_at(step):
    return pvi.running.Every(1, lambda look: look.step == step)


@pytest.mark.parametrize("kill_at", [30, 90, 130])
def test_an_automatic_run_resumes_from_its_checkpoint_with_the_potential_alone(kill_at, tmp_path):
    options = {"num_particles": 8, "num_warmup": 60, "progress": False}
    until = pvi.running.converged(ess=200, rhat=1.05)
    whole = pvi.sample(TARGET, monitor=until, **options)
    with pytest.warns(pvi.errors.NotConvergedWarning):
        pvi.sample(TARGET, monitor=[until, stopped_at(kill_at)], checkpoint=tmp_path, **options)
    resumed = pvi.resume(tmp_path, TARGET, monitor=until, progress=False)
    assert torch.equal(resumed.particles, whole.particles)
    assert resumed.attrs["ended_by"] == whole.attrs["ended_by"]
    expected = {k: v for k, v in whole.attrs["tuning"].items() if k != "start_seconds"}
    assert expected.items() <= resumed.attrs["tuning"].items()


@pytest.mark.parametrize("name", ["hmc", "sgld"])
def test_a_tuned_run_of_a_given_sampler_resumes_with_it_alone(name, tmp_path):
    options = {"num_particles": 4, "num_warmup": 30, "num_draws": 8, "progress": False}
    whole = pvi.sample(TUNED[name](TARGET), **options)
    stop = {"monitor": stopped_at(41), "checkpoint": tmp_path}
    pvi.sample(TUNED[name](TARGET), **options, **stop)
    with pytest.raises(ValueError, match="give it to resume"):
        pvi.resume(tmp_path, TARGET, progress=False)
    resumed = pvi.resume(tmp_path, TUNED[name](TARGET), progress=False)
    assert torch.equal(resumed.particles, whole.particles)


def test_a_run_that_took_minibatches_resumes_with_the_potential_alone(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    y = x.sum(1) + torch.randn(300, generator=generator, dtype=torch.float64)

    def log_likelihood(theta, batch):
        return -0.5 * (batch[1] - (theta.unsqueeze(-2) * batch[0]).sum(-1)).square()

    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(-1), log_likelihood, 2, 300, dtype=torch.float64
    )
    # what the pilot takes where minibatches are worth it, whatever the clock says here
    varied = pvi.control_variate(target, (x, y), torch.ones(2, dtype=torch.float64))
    sampler = pvi.sghmc(varied, gradient_noise="online")
    bounded = bounded_heat(varied, (x, y), 30, start=0.1 * torch.ones(2, dtype=torch.float64))
    tuner = because(bounded, ("a pilot",), 0, 0.0, sampler_chosen=True)
    options = {"num_particles": 4, "num_warmup": 20, "num_draws": 6, "progress": False}
    run = {"sampler": sampler, "data": (x, y), "batch_size": 30, "tuner": tuner, **options}
    whole = pvi.sample(**run)
    pvi.sample(**run, monitor=stopped_at(23), checkpoint=tmp_path)
    resumed = pvi.resume(tmp_path, target, (x, y), progress=False)
    assert torch.equal(resumed.particles, whole.particles)
    assert resumed.attrs["tuning"]["reasons"] == ["a pilot"]


def test_a_finished_run_is_made_longer(tmp_path):
    options = {"num_particles": 4, "num_warmup": 30, "progress": False}
    long = pvi.sample(TARGET, num_draws=40, **options)
    pvi.sample(TARGET, num_draws=15, checkpoint=tmp_path, **options)
    with pytest.raises(ValueError, match="would be fewer"):
        pvi.resume(tmp_path, TARGET, num_draws=10, progress=False)
    pvi.resume(tmp_path, TARGET, num_draws=25, progress=False)
    longer = pvi.resume(tmp_path, TARGET, num_draws=40, progress=False)
    assert torch.equal(longer.particles, long.particles)
    assert longer.attrs["num_draws"] == 40


def test_a_run_that_ends_before_its_target_warns():
    options = {"num_particles": 4, "num_warmup": 30, "progress": False}
    short = pvi.running.Every(1, pvi.running.max_seconds(1e-3))
    with pytest.warns(pvi.errors.NotConvergedWarning, match="before its first draw"):
        draws = pvi.sample(TARGET, monitor=short, **options)
    assert draws.attrs["ended_by"].startswith("max_seconds")


@pytest.mark.parametrize(("one_step", "steps"), [(10.0, 49), (1e-6, 400)])
def test_a_warm_up_takes_half_of_the_budget_at_most(one_step, steps, monkeypatch):
    """Of 1000 seconds, the start takes less than 20."""
    monkeypatch.setattr(automatic, "seconds_of", lambda *rest: one_step)
    draws = pvi.sample(TARGET, num_draws=2, max_seconds=1000, progress=False)
    assert draws.attrs["num_warmup"] == steps
    shortened = "in place of 400" in draws.attrs["tuning"]["reasons"][-1]
    assert shortened == (steps < 400)


def test_a_warm_up_of_a_budget_that_is_gone_is_short_and_one_that_is_given_stays(monkeypatch):
    monkeypatch.setattr(automatic, "seconds_of", lambda *rest: 1e4)
    options = {"num_draws": 2, "max_seconds": 1000, "progress": False}
    assert pvi.sample(TARGET, **options).attrs["num_warmup"] == 20
    assert pvi.sample(TARGET, num_warmup=33, **options).attrs["num_warmup"] == 33


def test_points_far_from_the_posterior_are_not_begun_at():
    far = 1e6 * torch.ones(8, 4, dtype=torch.float64)
    far[0] = torch.nan_to_num(MEAN)
    draws = pvi.sample(TARGET, initial=far, progress=False)
    assert float(scores(draws).abs().max()) < 5
    assert "7 lie far above" in draws.attrs["tuning"]["reasons"][0]


def two_modes(x):
    other = -0.5 * (x - 9).square().sum(-1)
    return torch.logaddexp(-0.5 * x.square().sum(-1), other)


def test_a_mode_that_no_chain_found_is_found_and_told():
    target = pvi.from_log_density(two_modes, 2, vectorized=True, dtype=torch.float64)
    with pytest.warns(pvi.errors.NotConvergedWarning, match="separate modes"):
        draws = pvi.sample(
            target,
            num_particles=8,
            num_warmup=100,
            progress=False,
            monitor=[pvi.running.converged(), stopped_at(300)],
        )
    there = draws.particles[:, -1, 0] > 4.5
    assert 0 < int(there.sum()) < 8
    assert "by a search from far outside" in draws.attrs["tuning"]["reasons"][0]


def small_net(dropout="off"):
    """A net and 48 data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 2, generator=generator)
    y = x.sum(1, keepdim=True).tanh() + 0.3 * torch.randn(48, 1, generator=generator)
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Dropout(0.5), torch.nn.Tanh(), torch.nn.Linear(3, 1)
    )
    return pvi.from_module(net, pvi.Gaussian(0.3), pvi.Normal(1.0), 48, dropout=dropout), (x, y)


SHORT = {"num_particles": 3, "num_warmup": 40, "num_draws": 8, "progress": False}


def test_where_the_sampler_is_chosen_a_loader_is_read_into_memory():
    target, data = small_net()
    loader = DataLoader(TensorDataset(*data), batch_size=16, shuffle=True)
    read, given = (pvi.sample(target, each, **SHORT) for each in (loader, data))
    assert read.attrs["sampler"] == "mclmc" and not read.minibatch
    assert torch.equal(read.particles, given.particles)


def test_an_automatic_run_on_a_loader_resumes_with_it(tmp_path):
    target, data = small_net()
    loader = DataLoader(TensorDataset(*data), batch_size=16, shuffle=True)
    whole = pvi.sample(target, loader, **SHORT)
    pvi.sample(target, loader, **SHORT, monitor=stopped_at(43), checkpoint=tmp_path)
    resumed = pvi.resume(tmp_path, target, loader, progress=False)
    assert torch.equal(resumed.particles, whole.particles)


def mean_model(num=400, size=5):
    """Of normal data with a flat prior: precision N."""
    x = torch.randn(num, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x - x.mean(0)) / x.std(0, correction=0)

    def log_likelihood(theta, batch):
        return -0.5 * (batch[0] - theta.unsqueeze(1)).square().sum(-1)

    target = pvi.from_log_likelihood(
        lambda theta: 0 * theta.sum(-1), log_likelihood, size, num, vectorized=True,
        dtype=torch.float64,
    )  # fmt: skip
    return target, TensorDataset(x)


@pytest.mark.parametrize("make", [pvi.sghmc, pvi.sgld, pvi.obabo, pvi.sgnht])
def test_a_tuner_knows_the_noise_of_a_loaders_batches(make):
    """Tuned as on all the data, sghmc had 31 times the variance."""
    target, data = mean_model()
    loader = DataLoader(data, 10, sampler=RandomSampler(data, replacement=True))
    draws = pvi.sample(make(target), loader, num_particles=16, num_draws=60, progress=False)
    assert draws.minibatch
    assert 0.6 < 400 * float(draws.particles.square().mean()) < 1.4


def test_a_loader_of_one_batch_is_tuned_as_all_the_data():
    target, data = mean_model()
    run = {"num_particles": 4, "num_warmup": 60, "num_draws": 10, "progress": False}
    loader = DataLoader(data, 400, shuffle=True)
    whole, read = (pvi.sample(pvi.hmc(target), each, **run) for each in (data.tensors, loader))
    assert read.attrs["tuning"]["metric"] == whole.attrs["tuning"]["metric"]
    assert not read.minibatch


def test_a_loader_beyond_memory_has_no_tuned_step(monkeypatch):
    target, data = mean_model()
    monkeypatch.setattr(LoaderData, "held", lambda self: self)
    with pytest.raises(ValueError, match=r"more than 1 GiB.*give step_size"):
        pvi.sample(pvi.sghmc(target), DataLoader(data, 10), num_particles=2, progress=False)


def test_a_loader_beyond_memory_is_refused_where_the_sampler_is_chosen(monkeypatch):
    target, data = small_net()
    monkeypatch.setattr(LoaderData, "held", lambda self: self)
    with pytest.raises(ValueError, match=r"more than 1 GiB.*pvi\.sghmc\(potential\)"):
        pvi.sample(target, DataLoader(TensorDataset(*data), batch_size=16), **SHORT)


def test_nothing_is_chosen_for_an_energy_that_is_drawn_anew():
    target, data = small_net("sample")
    with pytest.raises(ValueError, match=r"drawn anew at every evaluation.*pvi\.sghmc"):
        pvi.sample(target, data, **SHORT)


def test_a_potential_alone_gets_eight_chains():
    draws = pvi.sample(TARGET, num_warmup=20, num_draws=5, progress=False)
    assert len(draws) == 8


def test_a_potential_gets_eight_chains_from_one_state_dict():
    normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 2)
    draws = pvi.sample(normal, initial={"theta": torch.zeros(2)}, progress=False)
    assert draws.particles.shape[0] == 8


def test_one_chain_that_would_end_by_rhat_is_refused_before_it_starts():
    normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 2)
    with pytest.raises(ValueError, match="takes two chains or more, got 1: raise num_particles"):
        pvi.sample(normal, num_particles=1, progress=False)
    draws = pvi.sample(normal, num_particles=1, num_draws=5, progress=False)
    assert draws.particles.shape[:2] == (1, 5)


def test_a_structured_estimator_needs_a_step_size():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    model = pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=10)
    data = torch.randn(10, 2), torch.randn(10, 1)
    sampler = pvi.sghmc(pvi.structured(model, groups="layer"))
    with pytest.raises(ValueError, match="The history of structured begins with the draws"):
        pvi.sample(sampler, data, num_particles=2, progress=False)


def funnel(x):
    v, rest = x[:, 0], x[:, 1:]
    return -v.square() / 18 - 0.5 * rest.square().sum(-1) * (-v).exp() - 0.5 * 9 * v


@pytest.mark.parametrize(
    ("density", "size", "chains", "steps"),
    [
        (log_density, 4, 16, 400),
        (log_density, 4, 8, 400),
        (log_density, 4, 4, 800),
        (log_density, 4, 1, 3200),
        (funnel, 10, 8, 1600),
    ],
)
def test_the_warm_up_is_long_for_few_chains_and_away_from_the_mode(density, size, chains, steps):
    target = pvi.from_log_density(density, size, vectorized=True, dtype=torch.float64)
    draws = pvi.sample(target, num_particles=chains, num_draws=4, progress=False)
    assert draws.attrs["num_warmup"] == steps


def test_four_chains_are_enough_to_learn_a_metric_and_a_step_size():
    """Windows of Stan's lengths count trajectories; a step here is a seventh of one or less."""
    draws = pvi.sample(
        TARGET, num_particles=4, num_draws=500, monitor=pvi.running.max_seconds(600), progress=False
    )
    assert draws.attrs["num_warmup"] == 800
    assert 0.65 < float(draws.stats["acceptance"].mean()) < 0.92
