from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import particlevi as pvi
from particlevi.streams import ParticleStreams
from tests.stationarity.laws import controls_of, quadratic
from tests.stationarity.test_minibatch import T2, conjugate, data_with_variance


def step_of(sampler, position, u, h=0.0, steps=0):
    state = sampler.init(position, ParticleStreams(0))
    memory = state.memory._replace(steps=torch.tensor(float(steps)))
    noise = (torch.zeros_like(position), u)
    return sampler.step(state._replace(memory=memory), None, (noise, ()), controls_of(sampler, h))


@pytest.mark.parametrize("energy_noise", [0.0, 0.7])
def test_exchange_rule(energy_noise):
    """Without motion a step is a permutation, with the acceptance written in the docstring."""
    T = [1.0, 2.5, 6.0, 9.0]
    sampler = pvi.parallel_tempering(quadratic([[1.0]]), T, energy_noise=energy_noise)
    position = torch.randn(12, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    energy = 0.5 * position[:, 0] ** 2
    for steps, pairs in [(0, [(1, 2)]), (1, [(0, 1), (2, 3)])]:
        expected = torch.ones(12, dtype=torch.float64)
        swapped = torch.arange(12)
        for low, high in pairs:
            gap = 1 / T[low] - 1 / T[high]
            for j in range(3):
                a, b = 4 * j + low, 4 * j + high
                exponent = gap * float(energy[a] - energy[b]) - gap**2 * energy_noise
                expected[a] = expected[b] = min(1.0, math.exp(exponent))
                swapped[a], swapped[b] = b, a
        never, always = torch.ones(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
        after, info = step_of(sampler, position, always, steps=steps)
        torch.testing.assert_close(info.swap_acceptance, expected, rtol=1e-12, atol=0)
        assert torch.equal(after.position, position[swapped])
        assert torch.equal(info.potential, energy[swapped])
        assert torch.equal(after.memory.gradient, after.position)
        stay, _ = step_of(sampler, position, never, steps=steps)
        certain = expected == 1
        assert torch.equal(stay.position[~certain], position[~certain])


def test_exchanges_only_when_due():
    sampler = pvi.parallel_tempering(quadratic([[1.0]]), [1.0, 2.0], swap_every=3)
    position = torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    moved = []
    for steps in range(12):
        after, _ = step_of(sampler, position, torch.zeros(2, dtype=torch.float64), steps=steps)
        moved.append(not torch.equal(after.position, position))
    assert [k + 1 for k, yes in enumerate(moved) if yes] == [6, 12]


def test_every_temperature_has_its_law():
    temperatures, lam, chains = [0.25, 1.0, 4.0], 2.0, 400
    sampler = pvi.parallel_tempering(quadratic([[lam]]), temperatures)
    draws = pvi.sample(
        dataclasses.replace(sampler, draws=slice(None)),
        step_size=0.5,
        num_particles=3 * chains,
        num_warmup=60,
        num_draws=100,
        thin=8,
        progress=False,
    )
    for k, T in enumerate(temperatures):
        rung = draws.select(slice(k, None, 3))
        assert len(rung.particles) == chains
        assert float(rung.stats["replica_temperature"].unique()) == T
        error = T / lam * math.sqrt(2 * 2 / rung.particles.numel())
        assert abs(float(rung.particles.square().mean()) - T / lam) < 5 * error
    swaps = float(draws.stats["swap_acceptance"].mean())
    assert 0.3 < swaps < 0.9


def test_crosses_a_barrier_that_one_chain_does_not():
    def log_density(x):
        log_weights = torch.tensor([0.3, 0.7], dtype=x.dtype).log()
        modes = torch.tensor([-4.0, 4.0], dtype=x.dtype)
        return torch.logsumexp(log_weights - 0.5 * (x - modes) ** 2 / 0.25, -1)

    target = pvi.from_log_density(log_density, 1, vectorized=True, dtype=torch.float64)
    start = torch.full((5 * 100, 1), 4.0, dtype=torch.float64)
    options = dict(step_size=0.3, num_warmup=500, num_draws=40, thin=25, progress=False)
    tempered = pvi.parallel_tempering(target, [1.0, 2.5, 6.0, 15.0, 40.0])
    cold = pvi.sample(tempered, initial=start, **options)
    assert cold.chains == list(range(0, 500, 5))
    share = float((cold.particles < 0).double().mean())
    alone = pvi.sample(pvi.baoab(target), initial=start[:100], **options)
    assert float((alone.particles < 0).double().mean()) == 0
    error = float((cold.particles < 0).double().mean((1, 2)).std()) / math.sqrt(100)
    assert abs(share - 0.3) < 5 * error < 0.15


def test_bad_input():
    target = quadratic([[1.0]])
    with pytest.raises(ValueError, match="at least two and increase"):
        pvi.parallel_tempering(target, [1.0])
    with pytest.raises(ValueError, match="at least two and increase"):
        pvi.parallel_tempering(target, [2.0, 1.0])


def test_a_ladder_may_lack_its_hot_end():
    """Five particles at three temperatures: the last ladder has two rungs."""
    sampler = pvi.parallel_tempering(quadratic([[1.0]]), [1.0, 2.0, 3.0])
    position = torch.arange(5.0, dtype=torch.float64).unsqueeze(1)
    always = torch.zeros(5, dtype=torch.float64)
    even, info = step_of(sampler, position, always, steps=1)
    assert info.replica_temperature.tolist() == [1, 2, 3, 1, 2]
    assert even.position[:, 0].tolist() == [1, 0, 2, 4, 3]
    odd, _ = step_of(sampler, position, always, steps=0)
    assert odd.position[:, 0].tolist() == [0, 2, 1, 3, 4]


def test_draws_are_those_of_the_target_temperature():
    sampler = pvi.parallel_tempering(quadratic([[1.0]]), [1.0, 2.0, 3.0])
    position = torch.arange(7.0, dtype=torch.float64).unsqueeze(1)
    assert position[sampler.draws, 0].tolist() == [0, 3, 6]


class TestMinibatches:
    """Replicas of the conjugate mean model with minibatches of their own."""

    N, B = 100, 10
    X = data_with_variance(N, 1.0)

    def variance(self, sampler, ladders=600):
        lam = self.N + 1 / T2
        mean = float(self.X.sum()) / lam
        start = torch.full((2 * ladders, 1), mean, dtype=torch.float64)
        draws = pvi.sample(
            sampler,
            self.X,
            batch_size=self.B,
            step_size=0.02,
            initial=start,
            num_warmup=500,
            num_draws=20,
            thin=10,
            progress=False,
        )
        means = lam * (draws.particles - mean).square().mean((1, 2))
        return float(means.mean()), float(means.std()) / math.sqrt(len(means))

    def test_noise_of_the_energy_is_found_and_does_not_widen_the_law(self):
        target, options = conjugate(self.N), {"friction": 100.0}
        wrong, _ = self.variance(
            pvi.parallel_tempering(target, (1.0, 4.0), energy_noise=1e-9, **options)
        )
        found, error = self.variance(pvi.parallel_tempering(target, (1.0, 4.0), **options))
        alone, other = self.variance(pvi.baoab(target, **options))
        assert wrong > 2 * alone
        assert abs(found - alone) < 4 * math.hypot(error, other)
