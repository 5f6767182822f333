"""The 1/6 law of the energy error: its fixed point, and steps that are not finite."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.running.world import OneProcess
from particlevi.tuning.energy_error import energy_error, follow, no_steps, step_of
from tests.tuning.world import drive

D, TARGET = 20, 1e-3


def changes(step, constant, num=16, seed=0):
    """Energy changes of an integrator whose error is ``constant h^6`` per dimension."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num, generator=generator, dtype=torch.float64)
    z = z / z.square().mean().sqrt()
    return z * (constant * step**6 * D).sqrt()


@pytest.mark.parametrize("first", [1e-3, 0.3, 50.0])
def test_the_step_size_is_that_of_the_law_wherever_it_begins(first):
    constant = torch.tensor(0.7, dtype=torch.float64)
    law = no_steps(torch.tensor(first))
    for seed in range(600):
        law = follow(law, changes(step_of(law), constant, seed=seed), D, TARGET, OneProcess())
    reached = changes(step_of(law), constant).square().mean() / D
    assert float(reached) == pytest.approx(TARGET, rel=0.35)


@pytest.mark.parametrize("lost", [1, 8, 15])
def test_chains_that_can_make_no_step_shorten_it_by_half_at_most(lost):
    """They are no ratchet: the step has an equilibrium with them, and comes back without them."""
    constant = torch.tensor(0.7, dtype=torch.float64)
    law = no_steps(torch.tensor(0.3))
    for seed in range(300):
        law = follow(law, changes(step_of(law), constant, seed=seed), D, TARGET, OneProcess())
    free = float(step_of(law))
    for seed in range(1000):
        change = changes(step_of(law), constant, seed=seed)
        change[:lost] = math.inf
        law = follow(law, change, D, TARGET, OneProcess())
        # Energies of shorter steps tell the same law.
    with_lost = float(step_of(law))
    assert 0.4 * free < with_lost < 0.95 * free
    for seed in range(600):
        law = follow(law, changes(step_of(law), constant, seed=seed), D, TARGET, OneProcess())
    assert float(step_of(law)) == pytest.approx(free, rel=0.1)


def test_a_step_that_no_chain_can_make_is_halved():
    law = no_steps(torch.tensor(0.3))
    none = torch.full((4,), math.nan)
    assert float(step_of(follow(law, none, D, TARGET, OneProcess()))) == pytest.approx(0.15)
    law = follow(law, changes(step_of(law), torch.tensor(0.7).double()), D, TARGET, OneProcess())
    before = float(step_of(law))
    assert float(step_of(follow(law, none, D, TARGET, OneProcess()))) == pytest.approx(before / 2)


def test_a_step_that_only_evaluated_tells_nothing():
    law = no_steps(torch.tensor(0.3))
    law = follow(law, torch.zeros(4), D, TARGET, OneProcess())
    assert float(step_of(law)) == pytest.approx(0.3)


@pytest.mark.parametrize("metric", ["diagonal", "none"])
def test_the_energy_error_reached_is_the_target_and_the_law_is_nearly_right(metric):
    scale = torch.linspace(0.5, 2, D, dtype=torch.float64)
    target = pvi.from_log_density(
        lambda x: -0.5 * (x / scale).square().sum(-1), D, vectorized=True, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(0)
    start = scale * torch.randn(32, D, generator=generator, dtype=torch.float64)
    tuner = energy_error(1e-4, metric)
    draws, infos, state = drive(pvi.mclmc(target), tuner, start, 600, 600)
    reached = torch.stack([info.energy_error for info in infos]).square().mean() / D
    assert float(reached) == pytest.approx(1e-4, rel=0.5)
    moment = (draws / scale).square().mean()
    assert float(moment) == pytest.approx(0.99, abs=0.015)
    if metric == "diagonal":
        assert float((state.scale / scale).log().abs().max()) < 0.3
    else:
        assert float(state.length) == pytest.approx(2 * float(scale.norm()), rel=0.2)
    report = tuner.report(state)
    assert report["energy_error"] == pytest.approx(1e-4, rel=1.0)
    assert 0.005 < report["implied_bias"] < 0.02


def test_a_wall_does_not_drive_the_step_to_zero():
    def log_density(x):
        return torch.where((x > 0).all(-1), x.log().sum(-1) - x.sum(-1), torch.nan)

    target = pvi.from_log_density(log_density, 3, vectorized=True, dtype=torch.float64)
    start = torch.ones(16, 3, dtype=torch.float64)
    _, _, state = drive(pvi.mclmc(target), energy_error(1e-3, "none"), start, 600, 1)
    assert 0.02 < float(step_of(state.law)) < 2


def test_chains_that_begin_at_the_mode_have_come_to_rest_when_draws_begin():
    scale = torch.ones(400)
    scale[:100] = 0.02
    target = pvi.from_log_density(lambda x: -0.5 * (x / scale).square().sum(), num_params=400)
    largest = []
    for seed in range(4):
        draws = pvi.sample(
            pvi.mclmc(target),
            tuner=energy_error(metric="none", decoherence=4.0),
            initial=torch.full((16, 400), 1e-5),
            num_warmup=600,
            num_draws=40,
            seed=seed,
            progress=False,
        )
        potential = 0.5 * (draws.particles / scale).square().sum(-1).mean(0)
        largest.append(float(((potential - 200) / math.sqrt(200 / 16)).abs().max()))
    # 3.4 where the potential still swings
    assert sum(largest) / 4 < 2.3
