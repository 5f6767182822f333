"""Gradient noise that is found on the way: the law of a known one, and a warning beyond it."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import particlevi as pvi
from particlevi.samplers._noise import Average
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch, SamplerState
from tests.stationarity.laws import Affine, controls_of, stationary
from tests.stationarity.test_minibatch import T2, conjugate, data_with_variance

N, B = 100, 10
LAM = N + 1 / T2
X = data_with_variance(N, 1.0)
S2 = N**2 / B  # of the gradient, as the data have variance 1


def run(sampler, h, particles=400, **options):
    options = {"num_warmup": 400, "num_draws": 50, "thin": 10, "batch_size": B} | options
    start = torch.full((particles, 1), float(X.mean()), dtype=torch.float64)
    return pvi.sample(sampler, X, step_size=h, initial=start, progress=False, **options)


def sgld_variance(h, s2):
    return (2 + h * s2) / (LAM * (2 - h * LAM))


def sghmc_variance(h, friction, s2, known):
    """Of B A O A with compensation; see its documentation."""
    c = math.exp(-friction * h)
    share = h**2 * (1 + c) / ((1 - c) * (4 - h**2 * LAM))
    return 1 / LAM + share * ((s2 - known) / LAM + known * h**2 / 4)


CASES = {
    "sgld": (pvi.sgld, {}, 1e-3, lambda h, known: sgld_variance(h, S2 - known)),
    "sghmc": (
        pvi.sghmc,
        {"friction": 40.0},
        0.02,
        lambda h, known: sghmc_variance(h, 40.0, S2, known),
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_stationary_variance_is_that_of_known_noise(name):
    """Off by half without compensation; with it, as if the variance had been given."""
    factory, options, h, law = CASES[name]
    target = conjugate(N)
    found = {}
    for known in (0.0, "online"):
        draws = run(factory(target, gradient_noise=known, **options), h).particles
        found[known] = float((draws - X.sum() / LAM).square().mean())
    error = math.sqrt(2 / 400 / 10)  # ten independent draws a chain at the least
    assert law(h, 0.0) > 1.25 * law(h, S2)
    assert found[0.0] == pytest.approx(law(h, 0.0), rel=3 * error)
    assert found["online"] == pytest.approx(law(h, S2), rel=3 * error)
    assert found["online"] == pytest.approx(1 / LAM, rel=0.12)


@pytest.mark.parametrize("name", list(CASES))
def test_the_estimate_is_the_variance_of_the_noise(name):
    factory, options, h, _ = CASES[name]
    draws = run(factory(conjugate(N), gradient_noise="online", **options), h, particles=100)
    taken = draws.stats["gradient_noise"]
    spread = math.sqrt(2 / 900 * 16 / 7)  # weights 4 / (k + 3) up to k = 900
    assert float(taken[:, -1].mean()) == pytest.approx(S2, rel=5 * spread / 10)
    assert float(taken[:, -1].std() / S2) == pytest.approx(spread, rel=0.3)
    assert not draws.stats["clipped"].any()


@pytest.mark.parametrize("integrator", ["baoa", "symplectic"])
def test_exact_law_with_a_frozen_estimate(integrator):
    """Over all batches of two of five: Lyapunov's equation, no Monte Carlo."""
    size, h, friction = 5, 0.1, 3.0
    lam = size + 1 / T2
    x = data_with_variance(size, 0.7)
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    sampler = pvi.sghmc(conjugate(size), friction, gradient_noise="online", integrator=integrator)
    s2 = size**2 / 2 * 0.7
    rows = len(pairs)

    def after(q, p, xi):
        full = torch.full((rows, 1), 1.0, dtype=torch.float64)
        state = sampler.init(q * full, ParticleStreams(0))
        average = Average(s2 * full, torch.tensor(36.0, dtype=torch.float64))
        state = SamplerState(state.position, type(state.memory)(p * full, average), state.estimator)
        batch = Batch(x[pairs], per_particle=True)
        moved, info = sampler.step(state, batch, (xi * full, ()), controls_of(sampler, h))
        assert torch.allclose(info.gradient_noise, torch.tensor(s2, dtype=torch.float64))
        return torch.cat([moved.position, moved.memory.momentum], 1), moved.memory.noise

    start, average = after(0.0, 0.0, 0.0)
    mean = start.mean(0)
    a = torch.stack([after(*e, 0.0)[0].mean(0) - mean for e in ((1.0, 0.0), (0.0, 1.0))], 1)
    own = after(0.0, 0.0, 1.0)[0].mean(0) - mean
    noise = torch.cov(start.T, correction=0) + torch.outer(own, own)
    root = torch.linalg.cholesky(noise + 1e-15 * torch.eye(2, dtype=torch.float64))
    law = stationary(Affine(a.numpy(), root.numpy(), mean.numpy())).covariance
    c = math.exp(-friction * h)
    if integrator == "baoa":
        share = h**2 * (1 + c) / ((1 - c) * (4 - h**2 * lam))
        expected = 1 / lam + share * s2 * h**2 / 4
    else:
        a1, e = friction * h, h**2
        expected = 2 * a1 * e * (2 - a1) / (a1 * e * lam * (4 - 2 * a1 - e * lam))
    assert law[0, 0] == pytest.approx(expected, rel=1e-8)
    # And what the step learns is the variance of the noise, on average over the batches.
    learned = 9 * (average.variance.mean() - s2) + average.variance.mean()
    assert float(learned) == pytest.approx(s2, rel=1e-10)


def test_weights_of_the_average():
    sampler = pvi.sgld(conjugate(N), gradient_noise="online")
    one = torch.zeros(1, 1, dtype=torch.float64)

    def learn(before, steps):
        state = sampler.init(one, ParticleStreams(0))
        average = Average(before * torch.ones_like(one), one.new_tensor(float(steps)))
        batch = Batch(torch.tensor([[1.0, 3.0]], dtype=torch.float64), per_particle=True)
        state = SamplerState(state.position, average, state.estimator)
        return sampler.step(state, batch, (one, ()), controls_of(sampler, 0.0))[0].memory

    sample = (N * 2.0) ** 2 / 4
    assert float(learn(7.0, 0).variance) == pytest.approx(sample)
    assert float(learn(7.0, 3).variance) == pytest.approx(7 + (sample - 7) * 4 / 7)
    assert float(learn(7.0, 10_000).variance) == pytest.approx(7 + (sample - 7) / 1000)
    assert float(learn(7.0, 3).steps) == 4


@pytest.mark.parametrize("noise", [S2, "online"])
@pytest.mark.parametrize("name", list(CASES))
def test_one_warning_with_the_numbers_where_it_cannot_be_taken_out(name, noise):
    factory, options, h, _ = CASES[name]
    h = 4 * h if name == "sgld" else 5 * h
    options = options | ({"friction": 4.0} if name == "sghmc" else {})
    sampler = factory(conjugate(N), gradient_noise=noise, temperature=0.5, **options)
    with pytest.warns(UserWarning, match="gradient noise has a variance above") as caught:
        draws = run(
            sampler,
            h,
            particles=20,
            num_warmup=100,
            num_draws=200,
            thin=1,
            monitor=pvi.running.Monitor(every=10),
        )
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    limit = float(message.split("variance above ")[1].split(",", maxsplit=1)[0])
    c = math.exp(-4 * h)
    exact = 0.5 * (2 / h if name == "sgld" else 4 * (1 - c) / ((1 + c) * h**2))
    assert limit == pytest.approx(exact, rel=0.01)
    assert limit < float(draws.stats["gradient_noise"][:, -1].mean())
    assert "For 100% of" in message and "larger batches" in message
    assert float(draws.stats["clipped"].mean()) > 0.9


def test_no_warning_while_the_chain_warms_up():
    """Far out the noise is large; what counts is whether it can be taken out where draws are."""
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(-1),
        lambda theta, x: -0.5 * (x * theta).square(),
        num_params=1,
        num_data=N,
        dtype=torch.float64,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draws = pvi.sample(
            pvi.sgld(target, gradient_noise="online"),
            X,
            step_size=2e-3,
            batch_size=20,
            initial=torch.full((4, 1), 50.0, dtype=torch.float64),
            num_warmup=1000,
            num_draws=100,
            store=pvi.storage.InMemory(warmup=True),
            progress=False,
        )
    assert draws.warmup_stats["clipped"][:, 10].all()


def test_no_warning_at_temperature_zero():
    sampler = pvi.sgld(conjugate(N), temperature=0.0, gradient_noise="online")
    assert run(sampler, 1e-3, particles=2, num_draws=5).stats["clipped"].all()


def test_control_variates_leave_nothing_to_take_out():
    target = conjugate(N)
    estimator = pvi.control_variate(target, X, X.mean().view(1))
    draws = run(pvi.sghmc(estimator, gradient_noise="online"), 0.02, particles=3, num_draws=5)
    assert draws.stats["gradient_noise"].max() < 1e-15


def test_bad_input():
    with pytest.raises(ValueError, match="'online', got 'on'"):
        pvi.sgld(conjugate(N), gradient_noise="on")
    with pytest.raises(ValueError, match="batch of one datum"):
        run(pvi.sghmc(conjugate(N), gradient_noise="online"), 0.01, batch_size=1)


def test_the_noise_is_found_in_the_coordinates_of_a_dense_metric():
    """In one step the memory is the square of the halves' difference by z."""
    precision = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(-1),
        lambda theta, x: -0.5 * (((x - theta.unsqueeze(1)) @ precision) * x).sum(-1),
        2,
        8,
        vectorized=True,
        dtype=torch.float64,
    )
    factor = torch.tensor([[1.0, 0.0], [0.7, 0.3]], dtype=torch.float64)
    sampler, streams = pvi.sghmc(target, gradient_noise="online"), ParticleStreams(0)
    state = sampler.init(torch.zeros(1, 2, dtype=torch.float64), streams)
    batch = Batch(x[:4], law="independent")
    controls = {**controls_of(sampler, 0.1), "factor": factor}
    after, _ = sampler.step(state, batch, sampler.draw_noise(state, streams), controls)
    plain = pvi.gradients.minibatch(target)
    first, second = (plain((), state.position, Batch(x[k : k + 2]), ()) for k in (0, 2))
    difference = (first.gradient - second.gradient) @ factor
    torch.testing.assert_close(after.memory.noise.variance, 0.25 * difference.square())


@pytest.mark.parametrize("make", [pvi.sghmc, pvi.baoab])
def test_friction_is_a_control_that_a_tuner_may_choose(make):
    target = conjugate(20)
    x, streams = data_with_variance(20, 1.0), ParticleStreams(0)
    given, other = make(target, friction=3.0), make(target, friction=7.0)
    assert given.tunable == {"friction": 3.0}
    state = given.init(torch.zeros(2, 1, dtype=torch.float64), streams)
    noise, batch = given.draw_noise(state, streams), Batch(x, law="all")
    expected, _ = other.step(state, batch, noise, controls_of(other, 0.1))
    chosen = {**controls_of(given, 0.1), "friction": torch.tensor(7.0, dtype=torch.float64)}
    found, _ = given.step(state, batch, noise, chosen)
    assert torch.equal(found.position, expected.position)


def test_the_same_method_on_another_estimate():
    target, x = conjugate(20), data_with_variance(20, 1.0)
    sampler = pvi.sghmc(target, friction=3.0, gradient_noise="online")
    varied = pvi.control_variate(target, x, torch.zeros(1, dtype=torch.float64))
    other = sampler.on(varied)
    assert other.estimator is varied
    assert (other.name, other.settings) == (sampler.name, sampler.settings)
    assert other.gradients_per_step == 2
