"""Draws in a narrower type: what is lost is told when it is lost."""

from __future__ import annotations

import warnings

import pytest
import torch

import particlevi as pvi
from particlevi.storage.rounding import Rounding
from particlevi.storage.store import InMemory


def sample(mean, sd, dtype, num_draws=200):
    """Draws of a Gaussian, stored in a type."""
    law = pvi.from_log_density(lambda theta: -0.5 * ((theta - mean) / sd).square().sum(), 2)
    return pvi.sample(
        pvi.sgld(law),
        step_size=0.5 * sd**2,
        initial=torch.full((4, 2), float(mean)),
        num_draws=num_draws,
        store=InMemory(dtype=dtype),
        progress=False,
    )


def test_an_overflow_is_told_when_it_is_stored():
    with pytest.warns(UserWarning, match=r"holds 1e\+05, and torch.float16 storage ends at 6.55"):
        sample(1e5, 1.0, torch.float16, num_draws=1)


def test_draws_that_overflowed_are_refused_when_they_are_saved(tmp_path):
    with pytest.warns(UserWarning, match="stored as infinite"):
        draws = sample(1e5, 1.0, torch.float16, num_draws=1)
    with pytest.raises(ValueError, match="not saved"):
        draws.save(tmp_path / "draws")


def test_a_narrow_law_is_told():
    with pytest.warns(UserWarning, match="rounds 2 of 2 kept numbers so much"):
        sample(1.0, 0.01, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_wide_law_is_not(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(1.0, 0.5, dtype)


def test_the_share_is_that_of_a_uniform_error():
    """Between 1 and 2 the spacing is 1/128 and the error uniform: ``(1/128)^2 / (12 sd^2)``."""
    num = 20_000
    grid = torch.special.ndtri((torch.arange(num, dtype=torch.float64) + 0.5) / num)
    kept = (1.5 + 0.05 * grid)[:, None]
    rounding = Rounding(torch.bfloat16)
    for part in kept.split(100):
        rounding.note(part, part.bfloat16())
    expected = 2**-14 / (12 * 0.05**2)
    assert float(rounding.share()) == pytest.approx(expected, rel=1e-3)


def test_each_loss_is_told_once():
    rounding = Rounding(torch.float16)
    large = torch.full((2, 3), 1e6)
    with pytest.warns(UserWarning, match="stored as infinite") as told:
        for _ in range(3):
            rounding.note(large, large.half())
    assert len(told) == 1


@pytest.mark.parametrize(("share", "told"), [(0.007, False), (0.015, True)])
def test_more_than_one_percent_is_told(share, told):
    grid = torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    kept = (1.5 + (2**-14 / (12 * share)) ** 0.5 * grid)[:, None]
    rounding = Rounding(torch.bfloat16)
    rounding.note(kept, kept.bfloat16())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        rounding.tell()
    assert bool(found) is told


def test_the_number_that_is_named_is_that_of_the_parameter():
    """Of nine, of which every fourth is looked at, the last is the worst: number 8 of three."""
    kept = torch.ones(2000, 9, dtype=torch.float64)
    grid = torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    for column, width in ((0, 0.5), (4, 0.02), (8, 0.01)):
        kept[:, column] = 1.5 + width * grid
    rounding = Rounding(torch.bfloat16, every=4)
    rounding.note(kept, kept.bfloat16())
    with pytest.warns(UserWarning) as told:
        rounding.tell()
    message = str(told[0].message)
    assert "rounds 2 of 3 looked at numbers" in message
    assert "for number 8)" in message


def test_the_share_that_is_told_is_that_of_the_worst():
    grid = torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    kept = (1.5 + 0.02 * grid)[:, None]
    rounding = Rounding(torch.bfloat16)
    rounding.note(kept, kept.bfloat16())
    with pytest.warns(UserWarning, match=rf"by {float(rounding.share()):.1%} for number 0\)"):
        rounding.tell()
