"""Simulate, sample, cover: every law and prior finds what made its data.

Parameters are drawn from the prior and data given them, for many data sets at once, each of which
is the batch of one chain. A chain that starts at the truth starts at an exact draw of the
posterior, so that its later states are exact draws too and, over data sets, follow the prior again;
and intervals of the chain cover the truth as often as they say. Both fail if the density that is
sampled is not that of the model (Geweke, "Getting it right", 2004; Talts and others, "Validating
Bayesian inference algorithms with simulation-based calibration", 2018).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch
from tests.recovery import F64, chains, check_coverage, check_the_prior_comes_back, simulate

SETS, N = 250, 15


def inputs(size):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SETS, N, size, generator=generator, dtype=F64)


def linear(size, outputs=1, bias=True):
    return nn.Linear(size, outputs, bias=bias).double()


TIGHT = pvi.Normal(0.5)
CASES = {
    "one scale for all": (linear(2), pvi.Gaussian(0.7), TIGHT, 0.15),
    "a head for the scale": (linear(1, 2), pvi.MeanScaleGaussian(), TIGHT, 0.12),
    "a learned scale": (
        linear(2),
        pvi.Gaussian("learned", log_scale_prior=pvi.Normal(0.3, mean=-0.5)),
        TIGHT,
        0.1,
    ),
    "learned degrees of freedom": (
        linear(1),
        pvi.StudentT("learned", "learned", log_scale_prior=pvi.Normal(0.3)),
        TIGHT,
        0.15,
    ),
    "counts": (linear(2), pvi.Poisson(), TIGHT, 0.12),
    "spread counts": (linear(2), pvi.NegativeBinomial(), TIGHT, 0.15),
    "grades": (linear(2, bias=False), pvi.Ordinal(4), TIGHT, 0.2),
    "classes": (linear(2, 3), pvi.Categorical(), TIGHT, 0.25),
    "several labels": (linear(2, 3), pvi.Bernoulli(), TIGHT, 0.25),
    "a prior with a mean": (linear(2), pvi.Gaussian(0.7), pvi.Normal(0.5, mean=2.0), 0.15),
    "a Laplace prior": (linear(2), pvi.Gaussian(0.7), pvi.Laplace(0.5), 0.12),
    "sampled scales": (linear(3), pvi.Gaussian(0.7), pvi.Hierarchical(0.5, 0.4), 0.08),
    "correlated weights": (
        linear(2, bias=False),
        pvi.Gaussian(0.7),
        pvi.Correlated(torch.tensor([[1.0, 0.8], [0.8, 1.0]])),
        0.15,
    ),
}


FAST = ("a head for the scale", "learned degrees of freedom", "spread counts", "grades")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES],
)
def test_the_truth_is_covered_and_the_prior_comes_back(name):
    module, likelihood, prior, step_size = CASES[name]
    potential = pvi.from_module(module, likelihood, prior, num_data=N)
    x = inputs(module.in_features)
    truth, y = simulate(potential, likelihood, x)
    states = chains(potential, (x, y), truth, step_size, 60)
    check_coverage(states[10:], truth)
    check_the_prior_comes_back(states[-1], potential)


@pytest.mark.slow
def test_weights_count_as_often_as_they_say():
    """A Gaussian to the power w is one of variance 1/w of its own."""
    potential = pvi.from_module(linear(2), pvi.Gaussian(0.7), TIGHT, num_data=N)
    x = inputs(2)
    generator = torch.Generator().manual_seed(3)
    weight = 0.1 + 8 * torch.rand(SETS, N, generator=generator, dtype=F64) ** 3
    truth = potential.init(SETS, ParticleStreams(2), "prior")
    noise = torch.randn(SETS, N, 1, generator=generator, dtype=F64)
    outputs = potential.outputs(truth, Batch((x,), per_particle=True))
    y = outputs + 0.7 * noise / weight.sqrt().unsqueeze(-1)
    states = chains(potential, (x, {"target": y, "weight": weight}), truth, 0.1, 60)
    check_coverage(states[10:], truth)
    check_the_prior_comes_back(states[-1], potential)


def masked(y, seen):
    return {"target": torch.where(seen, y, 1e3), "mask": seen}


def ignored(y, seen):
    return torch.where(seen.squeeze(-1), y, -100)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("likelihood", "outputs", "leave_out"),
    [
        pytest.param(pvi.Gaussian(0.7), 1, masked, id="mask"),
        pytest.param(pvi.Categorical(ignore_index=-100), 3, ignored, id="ignore_index"),
    ],
)
def test_what_is_left_out_counts_nothing(likelihood, outputs, leave_out):
    potential = pvi.from_module(linear(2, outputs), likelihood, TIGHT, num_data=N)
    x = inputs(2)
    truth, y = simulate(potential, likelihood, x)
    seen = torch.rand(SETS, N, 1, generator=torch.Generator().manual_seed(3)) > 0.4
    states = chains(potential, (x, leave_out(y, seen)), truth, 0.15, 60)
    check_coverage(states[10:], truth)
    check_the_prior_comes_back(states[-1], potential)


def test_a_flat_prior_recovers_the_law_of_least_squares():
    module = linear(2, bias=False)
    potential = pvi.from_module(module, pvi.Gaussian(0.7), pvi.Flat(), num_data=N)
    x = inputs(2)
    truth = torch.tensor([[[2.0], [-1.0]]], dtype=F64)
    noise = torch.randn(SETS, N, 1, generator=torch.Generator().manual_seed(6), dtype=F64)
    y = x @ truth + 0.7 * noise
    start = torch.linalg.lstsq(x, y).solution.squeeze(-1)
    states = chains(potential, (x, y), start, 0.12, 60)[10:]
    precision = x.transpose(1, 2) @ x / 0.49
    factor = torch.linalg.cholesky(precision).transpose(1, 2)
    white = torch.einsum("sij,tsj->tsi", factor, states - start)
    error = white.mean(0).std() / math.sqrt(SETS)
    assert white.mean((0, 1)).abs().max() < 5 * error
    spread = white.square().mean(0)
    assert (spread.mean(0) - 1).abs().max() < 5 * float(spread.std() / math.sqrt(SETS))


@pytest.mark.slow
def test_a_horseshoe_shrinks_what_is_zero_and_leaves_what_is_not():
    """Ten coefficients of which two are not zero."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(60, 10, generator=generator, dtype=F64)
    truth = torch.zeros(10, dtype=F64)
    truth[:2] = torch.tensor([4.0, -3.0])
    y = x @ truth.unsqueeze(1) + torch.randn(60, 1, generator=generator, dtype=F64)
    module = linear(10, bias=False)

    def posterior(prior):
        potential = pvi.from_module(module, pvi.Gaussian(1.0), prior, num_data=60)
        start = torch.zeros(40, potential.num_params, dtype=F64)
        start[:, :10] = torch.linalg.lstsq(x, y).solution.T
        draws = pvi.sample(
            pvi.hmc(potential, num_leapfrog=10, jitter=0.5), (x, y), step_size=0.04, initial=start,
            num_warmup=100, num_draws=60, progress=False,
        )  # fmt: skip
        return draws.particles[..., :10].reshape(-1, 10)

    sparse, wide = posterior(pvi.Horseshoe(0.1)), posterior(pvi.Normal(10.0))
    zeros = slice(2, None)
    assert (sparse[:, :2].mean(0) - truth[:2]).abs().max() < 0.5
    assert sparse[:, zeros].mean(0).square().sum() < 0.5 * wide[:, zeros].mean(0).square().sum()
    low, high = torch.quantile(sparse, torch.tensor([0.005, 0.995], dtype=F64), dim=0)
    assert ((low < truth) & (truth < high)).all()
