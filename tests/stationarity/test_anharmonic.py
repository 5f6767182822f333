"""Invariant laws on an anharmonic potential, from the step's own transition matrix.

The step is taken from every node of a grid over position and memory, the noise is integrated by
Gauss-Hermite quadrature, and the law that is left invariant is compared with ``exp(-U/T)``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import particlevi as pvi
from particlevi.samplers import baoab, hmc, leimkuhler_matthews, obabo, sghmc
from particlevi.typing import Batch, SamplerState
from tests.stationarity.laws import (
    Outcome,
    controls_of,
    gauss_hermite,
    invariant_weights,
    order,
)

X = np.linspace(-3.2, 3.2, 81)
P = np.linspace(-5.6, 5.6, 71)
NODES = gauss_hermite(11)


def energy(x):
    return 0.5 * x**2 + 0.25 * x**4 - 0.3 * x


def potential():
    return pvi.from_log_density(
        lambda x: -energy(x).sum(-1), 1, vectorized=True, dtype=torch.float64
    )


def exact(function):
    weight = quad(lambda x: math.exp(-energy(x)), -6, 6)[0]
    return quad(lambda x: function(x) * math.exp(-energy(x)), -6, 6)[0] / weight


def second_moment(outcomes, axes):
    """``E theta^2`` under the law that one step leaves invariant."""
    law = invariant_weights(outcomes, axes)
    grid = np.meshgrid(*axes, indexing="ij")[0].ravel()
    return float(law @ grid**2)


def outcomes_of(sampler, h, second, to_memory, randoms):
    """Where a step ends from every node of the grid over the position and the axis ``second``."""
    grid = np.stack([axis.ravel() for axis in np.meshgrid(X, second, indexing="ij")], axis=1)
    position, number = (torch.from_numpy(grid[:, [k]]).clone() for k in range(2))
    state = SamplerState(position, to_memory(position, number), ())
    outcomes = []
    for weight, noise in randoms(position):
        after, info = sampler.step(state, None, (noise, ()), controls_of(sampler, h))
        end = np.stack([after.position[:, 0].numpy(), after.memory[0][:, 0].numpy()], axis=1)
        outcomes.append((weight, end, info))
    return outcomes


def one_noise(position):
    return [(w, torch.full_like(position, z)) for z, w in zip(*NODES, strict=True)]


def two_noises(position):
    few = gauss_hermite(5)
    pairs = [(a, b) for a in zip(*few, strict=True) for b in zip(*few, strict=True)]
    return [
        (w * v, (torch.full_like(position, y), torch.full_like(position, z)))
        for (y, w), (z, v) in pairs
    ]


def gradient_at(position):
    return position + position**3 - 0.3


CASES = {
    "leimkuhler_matthews": (
        pvi.leimkuhler_matthews,
        X * 2,
        lambda x, r: leimkuhler_matthews.Memory(r),
        one_noise,
        [0.08, 0.04],
    ),
    "sghmc": (pvi.sghmc, P, lambda x, p: sghmc.Memory(p), one_noise, [0.4, 0.2]),
    "baoab": (
        pvi.baoab,
        P,
        lambda x, p: baoab.Memory(p, gradient_at(x)),
        one_noise,
        [0.4, 0.2],
    ),
    "obabo": (
        pvi.obabo,
        P,
        lambda x, p: obabo.Memory(p, gradient_at(x)),
        two_noises,
        [0.4, 0.2],
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_bias_is_of_second_order(name):
    factory, second, to_memory, randoms, steps = CASES[name]
    sampler = factory(potential())
    errors = []
    for h in steps:
        found = outcomes_of(sampler, h, second, to_memory, randoms)
        law = [Outcome(weight, end) for weight, end, _ in found]
        errors.append(second_moment(law, [X, second]) - exact(np.square))
    assert order(errors) == pytest.approx([2], abs=0.25)


def test_obabo_is_exact_under_a_metropolis_test_after_every_step():
    """At a step size where it is far off without."""
    h = 0.5

    def to_memory(x, p):
        return obabo.AdjustedMemory(p, gradient_at(x), energy(x)[:, 0], torch.ones(()))

    def randoms(position):
        accept, reject = (torch.full_like(position, u) for u in (0.0, 1.0))
        both = two_noises(position)
        return [(w, (*noise, u)) for w, noise in both for u in (accept, reject)]

    sampler = pvi.obabo(potential(), metropolis_every=1)
    found = outcomes_of(sampler, h, P, to_memory, randoms)
    law = []
    for k, (weight, end, info) in enumerate(found):
        probability = info.acceptance.numpy()
        law.append(Outcome(weight * (probability if k % 2 == 0 else 1 - probability), end))
    assert second_moment(law, [X, P]) == pytest.approx(exact(np.square), abs=5e-4)

    free = outcomes_of(pvi.obabo(potential()), h, P, CASES["obabo"][2], two_noises)
    bias = second_moment([Outcome(w, end) for w, end, _ in free], [X, P]) - exact(np.square)
    assert bias > 0.03


def test_hmc_is_exact():
    axis = np.linspace(-3.2, 3.2, 321)
    position = torch.from_numpy(axis).unsqueeze(1)
    u = energy(position)[:, 0]
    state = SamplerState(position, hmc.Memory(gradient_at(position), u, torch.ones(())), ())
    sampler = pvi.hmc(potential(), num_leapfrog=3, jitter=0.0)
    nodes = np.linspace(-6, 6, 241)
    weights = np.exp(-0.5 * nodes**2) / np.exp(-0.5 * nodes**2).sum()
    law = []
    for z, w in zip(nodes, weights, strict=True):
        xi = torch.full_like(position, z)
        for draw in (0.0, 1.0):
            uniform = torch.stack([torch.full_like(u, draw), torch.full_like(u, 0.5)], dim=1)
            after, info = sampler.step(state, None, ((xi, uniform), ()), controls_of(sampler, 0.5))
            probability = info.acceptance.numpy()
            share = probability if draw == 0 else 1 - probability
            law.append(Outcome(w * share, after.position.numpy()))
    assert second_moment(law, [axis]) == pytest.approx(exact(np.square), abs=2e-4)
    average = sum(float(np.mean(outcome.weight)) for outcome in law)
    assert average == pytest.approx(1.0, abs=1e-10)


def test_sghmc_takes_known_gradient_noise_out_on_a_double_well():
    """``U = x^4 - 2 x^2``, gradient noise of sd 2, friction 3, h = 0.1: the first figure of the
    SGHMC paper (Chen, Fox, Guestrin, "Stochastic gradient Hamiltonian Monte Carlo", 2014)."""

    def well(x):
        return x**4 - 2 * x**2

    noisy = pvi.from_log_likelihood(
        lambda x: -well(x).sum(-1), lambda x, c: -c * x, 1, 2, vectorized=True, dtype=torch.float64
    )
    total = quad(lambda x: math.exp(-well(x)), -4, 4)[0]
    wanted = quad(lambda x: well(x) * math.exp(-well(x)), -4, 4)[0] / total
    x, p = np.linspace(-2.6, 2.6, 105), np.linspace(-5.5, 5.5, 81)
    grid = np.stack([axis.ravel() for axis in np.meshgrid(x, p, indexing="ij")], axis=1)
    position, momentum = (torch.from_numpy(grid[:, [k]]).clone() for k in range(2))
    state = SamplerState(position, sghmc.Memory(momentum), ())

    def bias(gradient_noise):
        sampler = pvi.sghmc(noisy, friction=3.0, gradient_noise=gradient_noise)
        law = []
        for sign in (-1.0, 1.0):
            batch = Batch(torch.full((1,), sign, dtype=torch.float64))
            for weight, noise in one_noise(position):
                after, _ = sampler.step(state, batch, (noise, ()), controls_of(sampler, 0.1))
                end = torch.cat([after.position, after.memory.momentum], dim=1).numpy()
                law.append(Outcome(0.5 * weight, end))
        return float(invariant_weights(law, [x, p]) @ well(grid[:, 0])) - wanted

    assert bias(4.0) == pytest.approx(0.0, abs=0.003)
    assert bias(0.0) > 0.012
