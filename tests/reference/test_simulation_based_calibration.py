"""Ranks of the truth among posterior draws are uniform if the sampler is right.

Each chain has data of its own, made from a draw of the prior: one run of P chains is P replicates.
Chains start at the truth, which is a draw of their posterior. Draws are thinned until they are
nearly independent, and ranks are tested by a chi-square test.

Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with
simulation-based calibration", 2018.
"""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

import particlevi as pvi

REPLICATES, RANKS = 1000, 19


def p_values(draws, truth):
    """Of uniform ranks, one per quantity: draws ``[P, T, K]``, truth ``[P, K]``."""
    ranks = (draws < truth.unsqueeze(1)).sum(1)
    return [chisquare(torch.bincount(column, minlength=RANKS + 1)).pvalue for column in ranks.T]


def run(factory, log_density, size, start, step_size, thin):
    target = pvi.from_log_density(log_density, size, vectorized=True, dtype=torch.float64)
    return pvi.sample(
        factory(target),
        step_size=step_size,
        initial=start,
        num_warmup=thin * 2,
        num_draws=RANKS,
        thin=thin,
        progress=False,
    ).particles


def hierarchical(generator):
    """``y_jk ~ N(m + t z_j, 1)``, 6 groups of 4: sampled are ``(m, log t, z)``."""
    truth = torch.randn(REPLICATES, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(REPLICATES, 6, 4, generator=generator, dtype=torch.float64)

    def center(u):
        return u[:, :1] + (0.5 * u[:, 1:2]).exp() * u[:, 2:]

    y = center(truth).unsqueeze(-1) + noise

    def log_density(u):
        fit = -0.5 * (y[: len(u)] - center(u).unsqueeze(-1)).square().sum((1, 2))
        return fit - 0.5 * u.square().sum(1)

    return truth, log_density, truth.clone()


def bayesian_net(generator):
    """A net 1-3-1 with weights N(0, 1), ten data with noise 0.3: judged by its outputs."""
    truth = torch.randn(REPLICATES, 10, generator=generator, dtype=torch.float64)
    x = torch.linspace(-2, 2, 10, dtype=torch.float64)

    def outputs(u, at):
        w, b, v, c = u[..., :3], u[..., 3:6], u[..., 6:9], u[..., 9:]
        hidden = torch.tanh(at.unsqueeze(-1) * w.unsqueeze(-2) + b.unsqueeze(-2))
        return (hidden * v.unsqueeze(-2)).sum(-1) + c

    noise = torch.randn(REPLICATES, 10, generator=generator, dtype=torch.float64)
    y = outputs(truth, x) + 0.3 * noise

    def log_density(u):
        fit = -0.5 * ((y[: len(u)] - outputs(u, x)) / 0.3).square().sum(1)
        return fit - 0.5 * u.square().sum(1)

    probe = torch.tensor([-1.5, 0.0, 3.0], dtype=torch.float64)
    return truth, log_density, lambda u: outputs(u, probe)


SAMPLERS = {
    "hmc": (lambda target: pvi.hmc(target, num_leapfrog=10), 0.2, 10),
    "sghmc": (pvi.sghmc, 0.1, 150),
}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_hierarchical_model(sampler):
    factory, step_size, thin = SAMPLERS[sampler]
    truth, log_density, start = hierarchical(torch.Generator().manual_seed(0))
    found = p_values(run(factory, log_density, 8, start, step_size, thin), truth)
    print(sampler, [f"{p:.3f}" for p in found])
    assert min(found) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_bayesian_net(sampler):
    factory, step_size, thin = SAMPLERS[sampler]
    truth, log_density, outputs = bayesian_net(torch.Generator().manual_seed(0))
    draws = run(factory, log_density, 10, truth.clone(), 0.25 * step_size, 2 * thin)
    found = p_values(outputs(draws), outputs(truth))
    print(sampler, [f"{p:.3f}" for p in found])
    assert min(found) > 1e-4


@pytest.mark.slow
def test_a_sampler_at_half_the_temperature_is_noticed():
    truth, log_density, start = hierarchical(torch.Generator().manual_seed(0))
    cold = run(lambda target: pvi.hmc(target, temperature=0.5), log_density, 8, start, 0.2, 10)
    assert max(p_values(cold, truth)) < 1e-4
