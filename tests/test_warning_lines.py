"""A warning shows the line of the caller's, however deep in the package it arises."""

import warnings

import pytest
import torch

import particlevi as pvi


def _gaussian(center=0.0):
    return pvi.from_log_density(lambda x: -0.5 * (x - center).square().sum(-1), 2)


def _numbers_rounded_in_storage():
    start = torch.full((4, 2), 1e3)
    sampler = pvi.sgld(_gaussian(1e3))
    store = pvi.storage.InMemory(dtype=torch.bfloat16)
    pvi.sample(sampler, step_size=0.5, num_draws=200, initial=start, store=store, progress=False)


def _a_target_missed():
    rules = pvi.running.converged(1e6)
    sampler = pvi.sgld(_gaussian())
    pvi.sample(sampler, step_size=0.1, num_particles=4, num_draws=5, monitor=rules, progress=False)


@pytest.mark.parametrize("call", [_numbers_rounded_in_storage, _a_target_missed])
def test_a_warning_shows_the_line_that_called(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    assert {w.filename for w in found} == {__file__}
