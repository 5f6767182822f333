"""Ranks of the truth among posterior draws are uniform if the sampler is right.

Each chain has data of its own, made from a draw of the prior: one run of P chains is P replicates.
Chains start at the truth, which is a draw of their posterior. Draws are thinned until they are
nearly independent, and ranks are tested by a chi-square test. The log posterior density is a
quantity too: it depends on the data, and tells the temperature better than any parameter.

Talts, Betancourt, Simpson, Vehtari and Gelman, "Validating Bayesian inference algorithms with
simulation-based calibration", 2018.
"""

from __future__ import annotations

import functools

import pytest
import torch
from scipy.stats import chisquare

import particlevi as pvi

REPLICATES, RANKS = 1000, 19


def p_values(model, sampler, **options):
    """Of uniform ranks of the model's quantities and of the log density."""
    truth, log_density, quantities = model(torch.Generator().manual_seed(0))
    factory, step_size, thin = SAMPLERS[sampler]
    slower = SLOWER[model]
    target = pvi.from_log_density(log_density, truth.shape[1], vectorized=True, dtype=torch.float64)
    draws = pvi.sample(
        factory(target, **options),
        step_size=step_size / slower**2,
        initial=truth,
        num_warmup=thin * slower * 2,
        num_draws=RANKS,
        thin=thin * slower,
        progress=False,
    ).particles

    def judged(u):
        return torch.cat([quantities(u), log_density(u).unsqueeze(-1)], dim=-1)

    values = torch.stack([judged(u) for u in draws.unbind(1)], dim=1)
    ranks = (values < judged(truth).unsqueeze(1)).sum(1)
    counts = [torch.bincount(column, minlength=RANKS + 1) for column in ranks.T]
    found = [chisquare(count).pvalue for count in counts]
    print(model.__name__, sampler, [f"{p:.2g}" for p in found])
    return found


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

    return truth, log_density, lambda u: u


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


MODELS = [hierarchical, bayesian_net]
SLOWER = {hierarchical: 1, bayesian_net: 2}
"""Half the step, squared, and twice the steps between draws."""
SAMPLERS = {
    "hmc": (functools.partial(pvi.hmc, num_leapfrog=10), 0.2, 10),
    "sghmc": (pvi.sghmc, 0.1, 150),
}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("model", MODELS)
def test_ranks_are_uniform(model, sampler):
    assert min(p_values(model, sampler)) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("model", MODELS)
def test_noise_that_is_a_fifth_too_large_is_noticed(model, sampler):
    assert min(p_values(model, sampler, temperature=1.2**2)) < 1e-4
