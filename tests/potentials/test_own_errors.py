"""What a user reads when the fault is in the user's own density."""

import traceback

import pytest
import torch

import particlevi as pvi


def undefined(x):
    return -0.5 * (x * precision).sum()  # noqa: F821


def of_another_size(x):
    return -0.5 * (x @ torch.ones(4))


def refused(x):
    raise RuntimeError("temperature must be above 0")


FAULTS = {
    undefined: "NameError: name 'precision' is not defined",
    of_another_size: "inconsistent tensor size",
    refused: "RuntimeError: temperature must be above 0",
    lambda x: (x.sum(), x): "must return one tensor, .* got builtins.tuple",
    lambda x: (x.detach().numpy() ** 2).sum(): "must return one tensor, .* got numpy",
}


@pytest.mark.parametrize(("density", "words"), FAULTS.items())
def test_the_error_tells_the_fault_and_no_other(density, words, recwarn):
    target = pvi.from_log_density(density, num_params=3)
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        target(torch.zeros(2, 3), None)
    text = "".join(traceback.format_exception(caught.value))
    assert "During handling" not in text and not recwarn.list
