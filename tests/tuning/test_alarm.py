"""The alarm as a part of a verdict."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import particlevi as pvi
from particlevi.tuning.alarm import affordable

F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, 3, generator=GENERATOR, dtype=F64)
Y = X @ torch.tensor([1.0, -1.0, 0.5], dtype=F64) + torch.randn(40, generator=GENERATOR, dtype=F64)
PRECISION = X.T @ X + torch.eye(3, dtype=F64)
MEAN = torch.linalg.solve(PRECISION, X.T @ Y)
ROOT = torch.linalg.inv(torch.linalg.cholesky(PRECISION)).T

POTENTIAL = pvi.from_log_likelihood(
    lambda theta: -0.5 * theta.square().sum(-1),
    lambda theta, batch: -0.5 * (batch[1] - theta @ batch[0].mT).square(),
    3,
    40,
    vectorized=True,
    dtype=F64,
)


def draws_of(chains=8, width=1.0, gradients=1e6):
    z = torch.randn(chains, 60, 3, generator=torch.Generator().manual_seed(2), dtype=F64)
    found = pvi.Draws.from_tensor(MEAN + width * z @ ROOT.T, POTENTIAL)
    return dataclasses.replace(found, gradients=gradients)


def kinds(draws, **options):
    found = draws.diagnose((X, Y), verbose=False, **options)
    return {finding.kind for finding in found.findings}, found.facts


def test_exact_draws_pass_and_the_cost_is_told():
    found, facts = kinds(draws_of())
    assert "not invariant" not in found
    assert facts["gradients of that test"] == 8 * (4 * 151 + 80)
    assert 0 < facts["p-value of invariance"] <= 1


def test_hot_draws_are_found_out():
    draws = draws_of(width=2.0)
    found, _ = kinds(draws)
    assert "not invariant" in found
    (finding,) = [
        f for f in draws.diagnose((X, Y), verbose=False).findings if f.kind == "not invariant"
    ]
    assert finding.severity == "wrong"
    assert finding.numbers["p_value"] <= 0.01


@pytest.mark.parametrize(
    ("draws", "options", "made"),
    [
        (draws_of(chains=7), {}, False),
        (draws_of(chains=7), {"alarm": True}, True),
        (draws_of(gradients=1000.0), {}, False),
        (draws_of(gradients=1000.0), {"alarm": True}, True),
        (draws_of(), {"alarm": False}, False),
    ],
)
def test_when_it_is_made(draws, options, made):
    assert ("p-value of invariance" in kinds(draws, **options)[1]) is made


def test_without_data_nothing_is_spent():
    assert "p-value of invariance" not in draws_of().diagnose(verbose=False).facts


def test_a_minibatch_counts_for_what_it_is():
    draws = draws_of(gradients=8 * (4 * 151 + 80) * 4.0)
    assert affordable(draws, pvi.data.as_data((X, Y), POTENTIAL))
    small = dataclasses.replace(draws, attrs={"batch_size": 8})
    assert not affordable(small, pvi.data.as_data((X, Y), POTENTIAL))
