"""Exact draws of many posteriors at once: the prior, data from its draws, chains from there.

Each chain has a data set of its own and starts at the parameters that made it, an exact draw of its
posterior. Its later states are exact draws too and, over data sets, follow the prior again (Geweke,
"Getting it right", 2004).
"""

from __future__ import annotations

import math

import torch
from scipy import stats

import particlevi as pvi
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

F64 = torch.float64


def simulate(potential, likelihood, x):
    """Parameters ``[S, D]`` and targets for each, at inputs ``[S, N, ...]``."""
    truth = potential.init(len(x), ParticleStreams(2), "prior")
    outputs = potential.outputs(truth, Batch((x,), per_particle=True))
    law = likelihood.distribution(outputs, potential.likelihood_parameters(truth))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return truth, law.sample()


def chains(potential, data, start, step_size, num_steps):
    """States ``[num_steps, S, D]`` of chains that each have a data set of their own."""
    sampler = pvi.hmc(potential, num_leapfrog=6, jitter=0.3)
    streams = ParticleStreams(4)
    one = torch.ones((), dtype=F64)
    controls = {"step_size": step_size * one, "temperature": one}
    state = sampler.init(start, streams)
    states, accepted = [], []
    for _ in range(num_steps):
        noise = sampler.draw_noise(state, streams)
        state, info = sampler.step(
            state, Batch(data, per_particle=True, law="all"), noise, controls
        )
        states.append(state.position)
        accepted.append(info.acceptance.nan_to_num().mean())
    assert torch.stack(accepted).mean() > 0.6
    return torch.stack(states)


def check_the_prior_comes_back(states, potential):
    """The last states ``[S, D]`` have the law of the prior, parameter by parameter."""
    again = potential.init(20_000, ParticleStreams(5), "prior")
    for k in range(potential.num_params):
        assert stats.ks_2samp(states[:, k], again[:, k]).pvalue > 1e-5, k


def check_coverage(states, truth):
    """Intervals of 80 % over the first axis of ``[T, S, K]`` hold the truth ``[S, K]`` as often."""
    low, high = torch.quantile(states, torch.tensor([0.1, 0.9], dtype=F64), dim=0)
    covered = ((low < truth) & (truth < high)).double().mean(0)
    assert (covered - 0.8).abs().max() < 5 * math.sqrt(0.8 * 0.2 / len(truth))
