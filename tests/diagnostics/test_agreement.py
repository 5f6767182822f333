"""Whether chains have one law: the level of the test, and what it sees."""

from __future__ import annotations

import numpy as np
import pytest

from particlevi.diagnostics._agreement import agreement


def autoregressive(a, chains, length, size, rng):
    """AR(1) chains of the standard normal, ``[chains, length, size]``."""
    noise = rng.normal(size=(chains, length, size))
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0]
    for t in range(1, length):
        values[:, t] = a * values[:, t - 1] + np.sqrt(1 - a**2) * noise[:, t]
    return values


@pytest.mark.slow
@pytest.mark.parametrize("chains", [2, 4, 12])
@pytest.mark.parametrize("a, length", [(0.0, 100), (0.75, 500), (0.95, 3000)])
@pytest.mark.parametrize("size", [1, 30])
def test_level(chains, a, length, size):
    """At 1 % it rejects at most 3 % of right sets of at least 40 independent draws per chain."""
    rng = np.random.default_rng(0)
    runs = 150
    rejected = sum(
        agreement(autoregressive(a, chains, length, size, rng)) < 0.01 for _ in range(runs)
    )
    assert rejected / runs <= 0.04


def test_chains_apart_are_seen():
    values = autoregressive(0.75, 4, 400, 5, np.random.default_rng(0))
    assert agreement(values) > 0.01
    values[0, :, 2] += 1.0
    assert agreement(values) < 1e-4


def test_one_chain_of_many_is_seen_among_many_coordinates():
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(20):
        values = autoregressive(0.0, 10, 42, 150, rng)
        values[3, :, 7] += 1.0
        seen += agreement(values) < 0.01
    assert seen >= 12  # from the spread of all halves alone: 4


def test_chains_of_another_width_are_seen():
    values = autoregressive(0.75, 4, 400, 5, np.random.default_rng(0))
    values[0, :, 2] *= 2.0
    assert agreement(values) < 1e-4


def test_drift_that_all_chains_share_is_seen():
    values = autoregressive(0.75, 4, 400, 5, np.random.default_rng(0))
    values[:, :, 2] += np.linspace(0, 2, 400)
    assert agreement(values) < 0.01


def test_chains_that_stand_still():
    still = np.arange(4.0).reshape(4, 1, 1).repeat(20, 1)
    assert agreement(still) == 0
    assert agreement(np.zeros((4, 20, 2))) == 1
