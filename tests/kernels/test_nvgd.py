"""Neural variational gradient descent."""

from __future__ import annotations

import copy

import pytest
import torch

import particlevi as pvi
from particlevi.kernels.witness import Witness, stein_loss
from particlevi.streams import ParticleStreams
from tests.kernels.common import F64, gaussian, points


def whitened(num, dim):
    """Particles whose mean is exactly 0 and whose (1/P) covariance is exactly I."""
    x = points(num, dim)
    x = x - x.mean(0)
    factor = torch.linalg.cholesky(x.T @ x / num)
    return torch.linalg.solve_triangular(factor, x.T, upper=False).T


def train(sampler, x, num_steps, rate, streams):
    """The sampler's state after steps of size zero: only the witness learns."""
    state = sampler.init(x, streams)
    for step in range(num_steps):
        controls = {
            "step_size": x.new_zeros(()),
            "network_step_size": x.new_tensor(rate * (1 - step / num_steps)),
        }
        noise = sampler.draw_noise(state, streams)
        state, info = sampler.step(state, None, noise, controls)
    assert torch.equal(state.position, x)
    return state, info


@pytest.mark.parametrize("regularisation", [0.5, 2.0])
def test_a_linear_witness_finds_its_closed_form(regularisation):
    """q with mean 0 and covariance I, p = N(mu, S): A = (I - S^-1)/(2r), b = S^-1 mu/(2r)."""
    mean = torch.tensor([1.0, -0.5], dtype=F64)
    precision = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64)
    sampler = pvi.nvgd(
        gaussian(mean, precision),
        network=torch.nn.Linear(2, 2),
        regularisation=regularisation,
        validation_fraction=0.0,
        num_inner_steps=10,
    )
    streams = ParticleStreams(0)
    state, _ = train(sampler, whitened(4000, 2), 100, 0.02, streams)
    weight, bias = state.memory.network[:4].view(2, 2), state.memory.network[4:]
    expected = (torch.eye(2, dtype=F64) - precision) / (2 * regularisation)
    assert (weight - expected).norm() < 0.01 * expected.norm()
    shift = precision @ mean / (2 * regularisation)
    assert (bias - shift).norm() < 0.01 * shift.norm()


def test_the_divergence_is_unbiased_with_the_stated_variance():
    """f = A x at all 2^D probes: their mean is tr A, their variance 2 (|sym|^2 - diag^2)."""
    a = points(4, 4)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 4)
    zero = torch.zeros(1, 4, dtype=F64)
    found = torch.stack(
        [-stein_loss(lambda x: x @ a.T, zero, zero, e[None], 0.5).detach() for e in signs]
    )
    torch.testing.assert_close(found.mean(), a.trace())
    symmetric = (a + a.T) / 2
    expected = 2 * (symmetric.square().sum() - symmetric.diagonal().square().sum())
    torch.testing.assert_close(found.var(correction=0), expected)


def test_early_stopping_freezes_the_network(monkeypatch):
    """Compiled code masks what eager code skips: one result, by the path for the compiler."""
    target = gaussian(torch.zeros(3), torch.eye(3))
    sampler = pvi.nvgd(target, num_inner_steps=6, patience=0, validation_fraction=0.5)
    state = sampler.init(points(8, 3), ParticleStreams(0))
    controls = {"step_size": torch.tensor(0.1), "network_step_size": torch.tensor(1.0)}
    stopped = []
    for seed in range(4):
        noise = sampler.draw_noise(state, ParticleStreams(seed))
        eager = sampler.step(state, None, noise, controls)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            masked = sampler.step(state, None, noise, controls)
        for got, expected in zip(
            torch.utils._pytree.tree_leaves(masked),
            torch.utils._pytree.tree_leaves(eager),
            strict=True,
        ):
            torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)
        stopped.append(float(eager[1].inner_steps[0]))
    assert min(stopped) < 6


@pytest.mark.parametrize("patience", [0, 1, 2])
def test_so_many_steps_without_improvement_are_tolerated(patience):
    """Uphill each step makes it worse: the first, those tolerated, and the one too many.

    For f = w x on a line the loss is ``r w^2 m + w m - w`` with ``m = mean x^2``, on any particles:
    from w = 1 with r = 10 it rises with w wherever m > 1/21.
    """
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    sampler = pvi.nvgd(
        gaussian(torch.zeros(1), torch.eye(1)),
        network,
        num_inner_steps=9,
        regularisation=10.0,
        patience=patience,
    )
    state = sampler.init(points(20, 1), ParticleStreams(0))
    controls = {"step_size": torch.tensor(0.1), "network_step_size": torch.tensor(-0.1)}
    noise = sampler.draw_noise(state, ParticleStreams(0))
    _, info = sampler.step(state, None, noise, controls)
    assert float(info.inner_steps[0]) == 2 + patience


def test_particles_reach_the_target():
    generator = torch.Generator().manual_seed(0)
    target = gaussian([2.0, -1.0], [[1.0, 0.0], [0.0, 4.0]])
    draws = pvi.sample(
        pvi.nvgd(target),
        step_size=0.1,
        initial=torch.randn(100, 2, generator=generator, dtype=F64),
        num_warmup=199,
        num_draws=1,
        progress=False,
    )
    ends = draws.particles[:, 0]
    torch.testing.assert_close(ends.mean(0), ends.new_tensor([2.0, -1.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(ends.var(0), ends.new_tensor([1.0, 0.25]), atol=0, rtol=0.3)


def test_the_network_is_copied_and_lives_in_the_state():
    network = torch.nn.Linear(2, 2)
    before = copy.deepcopy(network.state_dict())
    sampler = pvi.nvgd(gaussian([0.0, 0.0], torch.eye(2)), network)
    state, _ = train(sampler, points(10, 2), 3, 0.1, ParticleStreams(0))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(state.memory.network[:4].view(2, 2), before["weight"].double())


def test_bad_networks_are_refused():
    target = gaussian([0.0, 0.0], torch.eye(2))
    with pytest.raises(ValueError, match="must map"):
        pvi.nvgd(target, torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match="no parameters"):
        pvi.nvgd(target, torch.nn.Identity())
    with pytest.raises(ValueError, match="num_inner_steps"):
        pvi.nvgd(target, num_inner_steps=0)


def test_the_default_network_is_drawn_by_the_generator():
    witness = Witness(None, 3)
    like = torch.zeros(2, 3)
    draws = [witness.init(like, ParticleStreams(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.slow
def test_the_learned_discrepancy_nears_its_maximum():
    """p = N(0, diag(logspace(-5, 0))) in 50 dimensions, q = N(0, I): 2.66696e10, 95 % learned.

    (E[f.s + div f])^2 / E|f|^2 on fresh draws is at most the optimum for any f.
    """
    dim = 50
    precision = 1 / torch.logspace(-5, 0, dim, dtype=F64)
    optimum = float((precision - 1).square().sum())
    assert optimum == pytest.approx(2.66696e10, rel=1e-4)
    sampler = pvi.nvgd(
        gaussian(torch.zeros(dim), torch.diag(precision)),
        num_inner_steps=1,
        validation_fraction=0.0,
    )
    generator = torch.Generator().manual_seed(0)
    streams = ParticleStreams(0)

    def fresh(num):
        return torch.randn(num, dim, generator=generator, dtype=F64)

    state = sampler.init(fresh(1000), streams)
    controls = {"step_size": torch.zeros((), dtype=F64)}
    for step in range(900):
        rate = 1e-2 if step < 700 else 2e-3
        controls["network_step_size"] = torch.tensor(rate, dtype=F64)
        state = state._replace(position=fresh(1000))
        state, _ = sampler.step(state, None, sampler.draw_noise(state, streams), controls)
    witness, x = Witness(None, dim), fresh(20_000)
    probes = 2.0 * torch.randint(0, 2, x.shape, generator=generator, dtype=F64) - 1
    values, turned = torch.func.jvp(lambda y: witness(state.memory.network, y), (x,), (probes,))
    gain = (values * -(x * precision) + turned * probes).sum(1).mean()
    learned = float(gain.square() / values.square().sum(1).mean())
    assert 0.95 * optimum < learned < 1.02 * optimum
