"""Which chains are given up, when, and why."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import particlevi as pvi
from particlevi.running.divergence import EARLY, PATIENCE, DivergenceWatch

F64 = torch.float64


def watched(potentials, every=1, params=1):
    """What a watch says of potentials ``[T, P]`` that is asked every so many steps."""
    watch = DivergenceWatch(torch.zeros(potentials.shape[1], params, dtype=F64))
    position = torch.zeros(potentials.shape[1], params, dtype=F64)
    for step, row in enumerate(potentials, 1):
        watch.observe(row[None])
        if step % every == 0 or step == len(potentials):
            watch.check(position)
    return watch


def quiet(steps=400, chains=2):
    """Potentials of a sound run."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(steps, chains, generator=generator, dtype=F64)


@pytest.mark.parametrize("every", [1, 7, 50, 400])
def test_when_a_chain_ran_away_does_not_depend_on_when_one_looks(every):
    potentials = quiet()
    potentials[200:, 1] = 1e6
    watch = watched(potentials, every)
    assert watch.lost == {1: 200}
    assert watch.causes == {1: "ran away"}


def test_a_visit_is_not_a_flight():
    potentials = quiet()
    potentials[200 : 200 + PATIENCE - 1, 1] = 1e6
    assert watched(potentials).lost == {}
    potentials[200 : 200 + PATIENCE, 1] = 1e6
    assert watched(potentials).lost == {1: 200}


def test_a_chain_that_comes_back_slowly_has_not_run_away():
    potentials = quiet(1000)
    potentials[200:800, 1] = 1e9 * 0.98 ** torch.arange(600, dtype=F64)
    assert watched(potentials).lost == {}


def test_what_is_usual_from_the_start_is_no_flight():
    potentials = quiet()
    potentials[EARLY // 4 :, 0] = 1e9
    assert watched(potentials).lost == {}


@pytest.mark.parametrize("first", [False, True])
def test_the_place_of_an_outlier_in_the_data_does_not_matter(first):
    """One datum in a hundred, a thousand units away, in batches of ten."""
    x = torch.zeros(100, dtype=F64)
    x[0 if first else -1] = 1e3
    potential = pvi.from_log_likelihood(
        lambda t: -0.5 * t.square().sum(),
        lambda t, xs: -0.5 * (t - xs[0]).square(),
        1,
        100,
        dtype=F64,
    )
    draws = pvi.sample(
        pvi.sgld(potential),
        (x,),
        batch_size=10,
        step_size=1e-3,
        num_particles=4,
        num_draws=500,
        progress=False,
    )
    assert draws.diverged == {}


def test_a_density_of_zero_is_named():
    """A walk of steps of one reaches an edge beyond which the likelihood is zero."""

    def log_density(theta):
        value = theta.sum()
        return value + torch.where(value < 5, 0.0, -torch.inf)

    potential = pvi.from_log_density(log_density, 1, dtype=F64)
    with pytest.raises(pvi.DivergenceError, match="log-likelihood or log-prior of -inf") as got:
        pvi.sample(
            pvi.sgd(potential),
            initial=torch.zeros(1, 1, dtype=F64),
            step_size=1.0,
            num_draws=20,
            progress=False,
        )
    assert "step size" not in str(got.value)


def test_a_start_of_density_zero_is_named():
    potential = pvi.from_log_density(lambda t: t.sum().log(), 1, dtype=F64)
    with pytest.raises(ValueError, match="density of zero"):
        pvi.sample(
            pvi.sgd(potential), initial=torch.zeros(1, 1, dtype=F64), step_size=1.0, progress=False
        )


def test_an_overflow_after_a_flight_is_blamed_on_the_step_size():
    potentials = quiet()
    potentials[100, 0], potentials[101, 0] = 1e9, torch.inf
    assert watched(potentials).causes == {0: "not finite"}
    potentials[100, 0] = 1.0
    assert watched(potentials).causes == {0: "zero density"}


def test_a_density_of_zero_in_the_very_first_step_is_named():
    assert watched(torch.full((1, 1), torch.inf, dtype=F64)).causes == {0: "zero density"}


def test_divergent_transitions_are_taken_once():
    watch = DivergenceWatch(torch.zeros(3, 1))
    watch.observe_energy(torch.tensor([[0.0, 1001.0, torch.nan]]))
    watch.observe_energy(torch.tensor([[1.0, 0.0, 0.0]]))
    assert watch.take_divergent().tolist() == [False, True, True]
    assert watch.take_divergent().tolist() == [False, False, False]


@pytest.mark.parametrize(
    "make",
    [
        lambda target: pvi.hmc(target, num_leapfrog=3, jitter=0.0),
        lambda target: pvi.obabo(target, metropolis_every=3),
        pvi.randomized_hmc,
    ],
)
def test_transitions_that_diverge_are_flagged_and_the_chain_goes_on(make):
    """Half of the chains move in a direction so stiff that the integrator is unstable there."""
    scale = torch.tensor([1.0, 1e-4], dtype=F64)
    potential = pvi.from_log_density(lambda t: -0.5 * (t / scale).square().sum(), 2, dtype=F64)
    sound = pvi.from_log_density(lambda t: -0.5 * t.square().sum(), 2, dtype=F64)
    run = {"step_size": 0.5, "num_particles": 3, "num_draws": 20, "progress": False}
    wild = pvi.sample(make(potential), **run)
    calm = pvi.sample(make(sound), **run)
    assert wild.diverged == calm.diverged == {}
    assert wild.stats["diverging"].dtype == torch.bool
    assert wild.stats["diverging"][:, 1:].double().mean() > 0.5
    assert not calm.stats["diverging"].any()


def test_divergences_between_draws_are_not_lost():
    """Steps 2, in the warm-up, and 13 report an error of a million nats; every fourth is kept."""
    sampler = pvi.sgld(pvi.from_log_density(lambda t: -0.5 * t.square().sum(), 1, dtype=F64))
    count = 0

    def error(info):
        nonlocal count
        count += 1
        return torch.full_like(info.potential, 1e6 if count in (2, 13) else 0.0)

    draws = pvi.sample(
        dataclasses.replace(sampler, energy_error=error),
        step_size=0.1,
        num_particles=2,
        num_warmup=4,
        num_draws=4,
        thin=4,
        progress=False,
    )
    assert draws.stats["diverging"].tolist() == [[False, False, True, False]] * 2


def test_the_bound_is_a_thousand_times_the_usual_potential():
    watch = DivergenceWatch(torch.zeros(1, 4))
    watch.observe(torch.tensor([[3.0]]))
    watch.check(torch.zeros(1, 4))
    assert watch.bound().tolist() == [3 + 1000 * (3 + 4 + 1)]


@pytest.mark.parametrize(("error", "diverging"), [(1000.0, False), (1000.5, True)])
def test_a_transition_diverges_beyond_a_thousand_nats(error, diverging):
    watch = DivergenceWatch(torch.zeros(1, 1))
    watch.observe_energy(torch.tensor([[error]]))
    assert watch.take_divergent().tolist() == [diverging]
