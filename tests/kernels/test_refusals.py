"""Bad input to the Stein family: an error at the call that says what to give instead."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from tests.kernels.common import gaussian, points

TARGET = gaussian(torch.zeros(3), torch.eye(3))
X = points(10, 3)
LONG = torch.tensor([0, 1, 1])

CASES = {
    "kernel by name": (lambda: pvi.svgd(TARGET, "rbf"), TypeError, "such as pvi.kernels.rbf"),
    "kernel not made": (lambda: pvi.svgd(TARGET, pvi.kernels.rbf), TypeError, "got the class rbf"),
    "annealing by name": (lambda: pvi.svgd(TARGET, annealing="tanh"), ValueError, "annealing must"),
    "seed": (lambda: pvi.kernels.random_features(8, seed=-1), ValueError, "seed must be"),
    "bandwidth by name": (lambda: pvi.kernels.rbf("median"), ValueError, "bandwidth must be"),
    "groups float": (lambda: pvi.kernels.additive(LONG.float()), ValueError, r"LongTensor \[D\]"),
    "groups gap": (lambda: pvi.kernels.additive(2 * LONG), ValueError, "without gaps"),
    "groups from 1": (lambda: pvi.kernels.graphical(LONG + 1), ValueError, "without gaps"),
    "no groups": (lambda: pvi.kernels.product(LONG[:0]), ValueError, "without gaps"),
    "neighbours list": (
        lambda: pvi.message_passing_svgd(TARGET, LONG, [[True]]),
        TypeError,
        "BoolTensor",
    ),
    "kernel of groups": (
        lambda: pvi.message_passing_svgd(TARGET, LONG, kernel=pvi.kernels.linear()),
        TypeError,
        "have a bandwidth",
    ),
    "network": (lambda: pvi.nvgd(TARGET, 3), TypeError, "must be a torch.nn.Module"),
    "network step": (lambda: pvi.nvgd(TARGET, network_step_size=0), ValueError, "above 0"),
    "scores": (lambda: pvi.diagnostics.ksd(X, None), ValueError, "scores must be grad log p"),
    "integers": (lambda: pvi.diagnostics.ksd(X.long(), X.long()), ValueError, "use x.float()"),
    "ksd kernel": (
        lambda: pvi.diagnostics.ksd(X, -X, pvi.kernels.linear()),
        TypeError,
        "have a bandwidth",
    ),
    "mmd kernel": (lambda: pvi.diagnostics.mmd(X, X, "rbf"), TypeError, "have a bandwidth"),
    "mmd test kernel": (
        lambda: pvi.diagnostics.mmd_test(X, X, pvi.kernels.linear()),
        TypeError,
        "have a bandwidth",
    ),
    "directions seed": (
        lambda: pvi.diagnostics.sliced_wasserstein(X, X, seed=-3),
        ValueError,
        "seed must be in 0",
    ),
    "collapse of a tensor": (lambda: pvi.check_collapse(X), TypeError, "takes the draws"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(name):
    call, error, message = CASES[name]
    with pytest.raises(error, match=message):
        call()
