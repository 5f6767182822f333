from __future__ import annotations

import numpy as np
import pytest

from particlevi.diagnostics.nested import nested_rhat


@pytest.mark.parametrize("size, draws", [(5, 7), (5, 1), (1, 7)])
def test_definition(size, draws):
    """Against loops over superchains and chains."""
    values = np.random.default_rng(0).normal(size=(3 * size, draws))
    superchains = values.reshape(3, size, draws)
    means, within = [], []
    for chains in superchains:
        means.append(chains.mean())
        spread = np.var([chain.mean() for chain in chains], ddof=1) if size > 1 else 0.0
        inner = np.mean([np.var(chain, ddof=1) for chain in chains]) if draws > 1 else 0.0
        within.append(spread + inner)
    expected = np.sqrt(1 + np.var(means, ddof=1) / np.mean(within))
    assert nested_rhat(values, 3) == pytest.approx(expected, rel=1e-12)


def test_independent_draws_and_stuck_superchains():
    """One draw from each of many chains is enough; superchains apart are seen."""
    rng = np.random.default_rng(0)
    good = rng.normal(size=(4 * 250, 1, 20))
    values = nested_rhat(good, 4)
    assert values.mean() == pytest.approx(np.sqrt(1 + 1 / 250), abs=2e-3)
    apart = good + np.repeat(np.arange(4.0), 250)[:, None, None]
    assert nested_rhat(apart, 4).min() > 1.4


def test_bad_input():
    values = np.zeros((6, 1))
    with pytest.raises(ValueError, match="must divide the 6 chains"):
        nested_rhat(values, 4)
    with pytest.raises(ValueError, match="more than one draw"):
        nested_rhat(values, 6)
    with pytest.raises(ValueError, match="at least 2"):
        nested_rhat(values, 1)
