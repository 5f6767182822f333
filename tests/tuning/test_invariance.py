"""The bias alarm: its level on exact draws, and that it sounds on wrong ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.tuning import check_invariance
from particlevi.tuning.invariance import Invariance, _split, sign_flip_test

PRECISION = torch.tensor([1.0, 25.0, 0.04], dtype=torch.float64)
GAUSSIAN = pvi.from_log_density(
    lambda x: -0.5 * (PRECISION * x.square()).sum(-1), 3, vectorized=True, dtype=torch.float64
)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def exact(chains=8, draws=20, seed=0):
    return normal(chains, draws, 3, seed=seed) / PRECISION.sqrt()


def test_all_flips_are_made():
    """With columns that agree, the p-value is the least that the chains can give."""
    ones = torch.ones(6, 2) + 0.01 * normal(6, 2)
    assert sign_flip_test(ones, torch.Generator()) == 2**-5


def test_a_symmetric_change_is_rejected_at_the_level():
    rejected = [
        sign_flip_test(
            normal(8, 5, seed=seed).exp() - normal(8, 5, seed=seed + 5000).exp(), torch.Generator()
        )
        <= 0.05
        for seed in range(600)
    ]
    # At 8 chains the p-values are multiples of 1/128, of which 6/128 is the last below 0.05.
    share = sum(rejected) / 600
    assert abs(share - 6 / 128) < 3.5 * math.sqrt(0.047 * 0.953 / 600)


def test_many_chains_are_flipped_at_random():
    changes = normal(40, 3) + 0.8
    assert sign_flip_test(changes, torch.Generator().manual_seed(0)) == 1 / 4096


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: 1.3 * x,
        lambda x: 0.5 * x,
        lambda x: x + torch.tensor([0.8, 0.0, 0.0]),
        torch.zeros_like,
    ],
    ids=["hot", "cold", "shifted", "collapsed"],
)
def test_it_sounds(wrong):
    """Over 60 seeds: 59 of 60 for hot, 60 for the others; 37 to 60 with 8 chains."""
    found = check_invariance(pvi.Draws.from_tensor(wrong(exact(chains=16)), GAUSSIAN), num_starts=8)
    assert found.moved and not found.ok
    assert "not draws of the posterior" in str(found)


def test_it_is_silent_on_exact_draws_and_says_what_it_took():
    found = check_invariance(pvi.Draws.from_tensor(exact(), GAUSSIAN))
    assert not found.moved and found.ok
    assert 0.8 < found.acceptance < 0.99
    # 80 steps from 8 points to tune, 151 from 32 starts.
    assert found.num_gradients == 80 * 8 + 151 * 32
    assert set(found.shifts) == {"potential", "parameter 0", "parameter 1", "parameter 2"}


def test_the_shift_has_the_size_of_the_bias():
    """The kernel is long here, so that the draws arrive: a mean off by 0.8 standard deviations."""
    wrong = exact(chains=16, draws=40) + torch.tensor([0.8, 0.0, 0.0])
    found = check_invariance(pvi.Draws.from_tensor(wrong, GAUSSIAN), num_starts=20, num_steps=400)
    shift, error = found.shifts["parameter 0"]
    assert abs(shift + 0.8) < 4 * error
    assert error < 0.1


def test_a_method_of_the_draws_on_a_net_by_its_outputs(capsys):
    x = normal(40, 2).float()
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    target = pvi.from_module(net, pvi.Gaussian(scale=0.5), pvi.Normal(1.0), num_data=40)
    data = (x, x[:, :1])
    draws = pvi.sample(
        pvi.sgd(target),
        data,
        step_size=1e-3,
        num_particles=8,
        num_warmup=300,
        num_draws=4,
        progress=False,
    )
    found = draws.check_invariance(data)
    assert found.moved and not found.ok
    assert {"log_prior", "log_likelihood", "potential", "output 0"} <= set(found.shifts)
    assert "posterior standard deviations" in capsys.readouterr().out


@pytest.mark.parametrize(("num_draws", "num_starts"), [(2, 4), (3, 1), (8, 4), (50, 4)])
def test_the_kernel_is_tuned_on_draws_that_are_no_starts(num_draws, num_starts):
    starts, others = _split(torch.arange(num_draws)[None, :, None], num_starts)
    assert 0 < starts.shape[1] <= num_starts and others.shape[1] > 0
    assert not set(starts.flatten().tolist()) & set(others.flatten().tolist())


@pytest.mark.parametrize(
    ("shift", "words"), [(-5.2, "may move these draws"), (0.2, "does not move these draws")]
)
def test_a_large_shift_of_few_chains_is_not_called_none(shift, words):
    found = Invariance(0.062, {"potential": (shift, 0.7)}, 0.1, 0.05, 0.9, 1, 1.0)
    assert words in str(found)


def test_few_chains_are_refused():
    with pytest.raises(ValueError, match="at least 5 chains, got 4"):
        check_invariance(pvi.Draws.from_tensor(exact(chains=4), GAUSSIAN))


def logistic():
    x = normal(60, 2, seed=5)
    y = (x[:, :1] + 0.5 * normal(60, 1, seed=6) > 0).double()
    net = nn.Linear(2, 1).double()
    return pvi.from_module(net, pvi.Bernoulli(), pvi.Normal(1.0), num_data=60), (x, y)


def small_net():
    x = normal(30, 1, seed=5)
    net = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    target = pvi.from_module(net, pvi.Gaussian(scale=0.3), pvi.Normal(1.0), num_data=30)
    return target, (x, x.sin())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gaussian", "logistic", "small_net"])
@pytest.mark.parametrize("num_starts", [1, 4])
def test_false_alarms_are_five_in_a_hundred(model, num_starts):
    """200 runs of 8 chains, each from draws of its own."""
    runs, chains, per_chain = 200, 8, 8
    if model == "gaussian":
        target, data = GAUSSIAN, None
        pool = exact(runs * chains, per_chain)
    else:
        target, data = logistic() if model == "logistic" else small_net()
        start = target.init(runs * chains)
        draws = pvi.sample(
            pvi.randomized_hmc(target),
            data,
            initial=start,
            num_draws=per_chain,
            thin=40,
            num_warmup=1500,
            progress=False,
        )
        pool = draws.particles
    alarms = 0
    for run in range(runs):
        part = pool[run * chains : (run + 1) * chains]
        found = check_invariance(
            pvi.Draws.from_tensor(part, target), data, num_starts=num_starts, num_steps=60, seed=run
        )
        alarms += found.moved
    print(f"{model} {num_starts}: {alarms} of {runs}")
    assert 4 <= alarms <= 16
