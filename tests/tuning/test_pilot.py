"""All data or minibatches: the rule, and what is recorded of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import particlevi as pvi
from particlevi.data import as_data
from particlevi.tuning import pilot
from particlevi.tuning.bounded_heat import bounded_for
from particlevi.tuning.pilot import Option, choose, options, settled, taken, told
from particlevi.tuning.start import Start
from tests.tuning.noisy import conjugate, data_with_covariance

N, D = 400, 3
EYE = torch.eye(D, dtype=torch.float64)
DATA = data_with_covariance(N, EYE)
TARGET = conjugate(N, EYE)
SAMPLER = pvi.sghmc(TARGET)
POINTS = torch.randn(8, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / N**0.5


def option(batch_size, seconds, factor):
    return Option(batch_size, SAMPLER, seconds, factor)


@pytest.mark.parametrize(
    ("asked", "all_data", "small", "large", "kept"),
    [
        (False, 1.0, 1.9, 1.9, None),
        (False, 1.0, 2.1, 1.9, 64),
        (False, 1.0, 0.1, 2.1, 128),
        (True, 1.4, 1.0, 1.4, 64),
        (True, 1.6, 1.0, 1.4, None),
        (True, 0.1, 1.0, 1.6, 128),
    ],
)
def test_the_rule(asked, all_data, small, large, kept):
    """What is asked for is kept up to a factor of 1.5, all data up to one of 2."""
    found = [option(None, 2.0, 2 * all_data), option(64, 1.0, small), option(128, 1.0, large)]
    chosen = choose(found, asked)
    assert chosen.batch_size == kept
    text = told(found, chosen, asked)
    assert text.startswith("All data" if kept is None else f"Minibatches of {kept}")


def tuner_of(batch_size):
    tuner = bounded_for(SAMPLER, None, as_data(DATA, TARGET), batch_size)
    assert tuner is not None
    return tuner


def test_what_batches_may_use_goes_with_their_size_and_ends_at_what_all_data_use(monkeypatch):
    monkeypatch.setattr(pilot, "seconds_of", lambda sampler, data, points, size: (size or N) / N)
    found = options(SAMPLER, tuner_of(10), as_data(DATA, TARGET), POINTS, None)
    sizes = [each.batch_size for each in found]
    assert sizes == [None, 10, 20, 40, 80, 160]
    calm, first = found[0].factor, found[1].factor
    for each in found[1:]:
        assert each.factor == pytest.approx(min(calm, first * each.batch_size / 10))
        assert each.seconds == pytest.approx(each.batch_size / N)


def test_chance_in_short_times_does_not_make_large_batches_cheap(monkeypatch):
    """Where small batches all cost the same, the slope is that to all data."""
    monkeypatch.setattr(pilot, "seconds_of", lambda sampler, data, points, size: 0.1 if size else 1)
    found = options(SAMPLER, tuner_of(10), as_data(DATA, TARGET), POINTS, None)
    assert found[-1].batch_size == 160
    assert found[-1].seconds == pytest.approx(0.1 + 0.9 * 150 / (N - 10))


def test_control_variates_are_worth_it_where_they_have_no_noise(monkeypatch):
    """On a Gaussian with its mean as the centre."""
    monkeypatch.setattr(pilot, "seconds_of", lambda sampler, data, points, size: (size or N) / N)
    data = as_data(DATA, TARGET)
    start = Start(POINTS, EYE / N**0.5, 0.0, "", torch.zeros(D, dtype=torch.float64))
    found = taken(SAMPLER, start, data, 10)
    assert found is not None
    assert found.batch_size == 10
    assert found.what.estimator.name == "control_variate"
    assert found.what.name == "sghmc"
    assert "with control variates" in found.reason


def test_a_potential_takes_minibatches_with_compensation_where_they_pay(monkeypatch):
    monkeypatch.setattr(pilot, "seconds_of", lambda sampler, data, points, size: (size or N) / N)
    monkeypatch.setattr(pilot, "FEWEST_DATA", 100)
    start = Start(POINTS, EYE / N**0.5, 0.0, "", torch.zeros(D, dtype=torch.float64))
    found = taken(TARGET, start, as_data(DATA, TARGET), None)
    assert found is not None
    assert found.batch_size == 64
    monkeypatch.setattr(pilot, "seconds_of", lambda sampler, data, points, size: 1.0)
    found = taken(TARGET, start, as_data(DATA, TARGET), None)
    assert found is not None
    assert found.batch_size is None
    assert found.what is TARGET


def test_where_there_is_nothing_to_choose():
    data = as_data(DATA, TARGET)
    start = Start(POINTS, None, 0.0, "", POINTS[0])
    assert taken(TARGET, start, data, None) is None
    assert taken(SAMPLER, start, data, None) is None
    assert taken(pvi.obabo(TARGET), start, data, 10) is None
    bowl = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), 2)
    assert taken(bowl, start, as_data(None, bowl), None) is None


def test_chains_settle_to_where_draws_lie():
    """From the mode, 100 steps on all data lead to about D / 2 nats above it."""
    points = torch.zeros(128, D, dtype=torch.float64)
    tuner = dataclasses.replace(tuner_of(10), decoherence=2.0)
    height = 0.5 * N * settled(tuner, points).square().sum(1)
    assert float(height.mean()) == pytest.approx(D / 2, abs=5 * (D / 2 / 128) ** 0.5)


def test_the_choice_is_in_the_record_and_the_draws_are_right():
    draws = pvi.sample(
        pvi.sghmc(TARGET, gradient_noise="online"),
        DATA,
        batch_size=20,
        num_particles=32,
        num_warmup=60,
        num_draws=20,
        progress=False,
    )
    tuning = draws.attrs["tuning"]
    assert any("by a pilot" in reason for reason in tuning["reasons"])
    assert tuning["tuner"] == "bounded_heat"
    assert "friction" in tuning
    assert "by a pilot" in draws.summary()
    z = draws.particles * N**0.5
    assert float(z.mean().abs()) < 0.2
    assert float(z.square().mean()) == pytest.approx(1, abs=0.2)
