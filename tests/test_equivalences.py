"""Where one method is another, it is so to the last digits."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch, Progress
from tests import registry, targets

F64 = torch.float64
QUIET = {"progress": False}


def full_gradient(potential: Any, particles: torch.Tensor, batch: Any = None) -> torch.Tensor:
    """The gradient of the potential by plain autograd."""
    points = particles.clone().requires_grad_()
    return torch.autograd.grad(potential(points, batch).sum(), points)[0]


def descend(problem: registry.Problem, start: torch.Tensor, h: float, steps: int) -> torch.Tensor:
    """Gradient descent on the full data, the path ``[P, T, D]``."""
    batch = None if problem.data is None else Batch(problem.data)
    path, theta = [], start
    for _ in range(steps):
        theta = theta - h * full_gradient(problem.potential, theta, batch)
        path.append(theta)
    return torch.stack(path, dim=1)


@pytest.mark.parametrize("name", registry.PROBLEMS)
@pytest.mark.parametrize(
    ("sampler", "particles"),
    [
        (lambda p: pvi.sgld(p, temperature=0.0), 3),
        (pvi.sgd, 3),
        (pvi.svgd, 1),
        (lambda p: pvi.svgd(p, kernel=pvi.kernels.rbf(0.3)), 1),
    ],
    ids=["sgld_T0", "sgd_full_batch", "svgd_P1", "svgd_P1_fixed"],
)
def test_gradient_descent(name, sampler, particles):
    problem = registry.PROBLEMS[name](F64)
    start = problem.potential.init(particles)
    draws = pvi.sample(
        sampler(problem.potential),
        problem.data,
        initial=start,
        num_draws=20,
        step_size=3e-3,
        **QUIET,
    )
    torch.testing.assert_close(
        draws.particles, descend(problem, start, 3e-3, 20), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torch_sgd(momentum):
    """On the same minibatches, weight decay and loss written by hand; h is lr / N."""
    x, y = registry.module(F64).data
    scale, prior, learning_rate = 0.5, 1.0, 0.01
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    potential = pvi.from_module(net, pvi.Gaussian(scale), pvi.Normal(prior), num_data=20)
    batches = [(x[i : i + 4], y[i : i + 4]) for i in (0, 8, 4, 16, 12)]
    draws = pvi.sample(
        pvi.sgd(potential, momentum=momentum),
        batches,
        initial=potential.init(1, method="current"),
        num_draws=30,
        step_size=learning_rate / 20,
        **QUIET,
    )
    optimizer = torch.optim.SGD(
        net.parameters(), lr=learning_rate, momentum=momentum, weight_decay=1 / (prior**2 * 20)
    )
    for step, (inputs, wanted) in enumerate(itertools.islice(itertools.cycle(batches), 30)):
        optimizer.zero_grad()
        loss = (net(inputs) - wanted).square().mean() / (2 * scale**2)
        loss.backward()
        optimizer.step()
        weights = torch.cat([p.detach().flatten() for p in net.parameters()])
        torch.testing.assert_close(draws.particles[0, step], weights, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("integrator", ["baoa", "symplectic"])
@pytest.mark.parametrize("beta", [0.5, 0.9])
def test_sghmc_at_temperature_zero_is_sgd_with_momentum(integrator, beta):
    """With the learning rate ``h^2 (1 + beta)/2`` under B A O A, ``h^2`` under symplectic Euler."""
    problem, h = registry.module(F64), 0.02
    friction = -math.log(beta) / h if integrator == "baoa" else (1 - beta) / h
    rate = h**2 * (1 + beta) / 2 if integrator == "baoa" else h**2
    run = {"initial": problem.potential.init(3), "num_draws": 20, "batch_size": 4, **QUIET}
    sampler = pvi.sghmc(problem.potential, friction, temperature=0.0, integrator=integrator)
    ours = pvi.sample(sampler, problem.data, step_size=h, **run)
    heavy = pvi.sgd(problem.potential, momentum=beta)
    theirs = pvi.sample(heavy, problem.data, step_size=rate, **run)
    torch.testing.assert_close(ours.particles, theirs.particles, rtol=1e-10, atol=1e-11)


def test_a_full_minibatch_gives_the_gradient_of_the_potential():
    for name in ("function", "module"):
        problem = registry.PROBLEMS[name](F64)
        theta, batch = problem.potential.init(3), Batch(problem.data)
        estimate = pvi.gradients.minibatch(problem.potential)(None, theta, batch, ())
        expected = full_gradient(problem.potential, theta, batch)
        torch.testing.assert_close(estimate.gradient, expected, rtol=1e-13, atol=0)
        torch.testing.assert_close(estimate.potential, problem.potential(theta, batch))


@pytest.mark.parametrize("make", [pvi.gradients.minibatch, "control_variate"])
@pytest.mark.parametrize("name", ["function", "module"])
def test_estimators_are_unbiased_by_enumeration(name, make):
    """The mean over all minibatches of size 1 is the full gradient; so it is for the potential."""
    problem = registry.PROBLEMS[name](F64)
    estimator = (
        pvi.control_variate(problem.potential, problem.data, problem.center)
        if make == "control_variate"
        else make(problem.potential)
    )
    theta = problem.potential.init(2)
    state = estimator.init(theta, ParticleStreams(0))
    parts = [
        estimator(state, theta, Batch(tuple(leaf[n : n + 1] for leaf in problem.data)), ())
        for n in range(20)
    ]
    gradient = torch.stack([part.gradient for part in parts]).mean(0)
    energy = torch.stack([part.potential for part in parts]).mean(0)
    batch = Batch(problem.data)
    expected = full_gradient(problem.potential, theta, batch)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(energy, problem.potential(theta, batch), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["function", "module"])
def test_a_control_variate_is_exact_at_its_centre(name):
    problem = registry.PROBLEMS[name](F64)
    estimator = pvi.control_variate(problem.potential, problem.data, problem.center, chunk_size=7)
    theta = problem.center.repeat(3, 1)
    state = estimator.init(theta, ParticleStreams(0))
    expected = full_gradient(problem.potential, theta, Batch(problem.data))
    plain = pvi.gradients.minibatch(problem.potential)
    for seed in range(5):
        batch = registry.batch_of(problem, 3, size=2, seed=seed)
        torch.testing.assert_close(
            estimator(state, theta, batch, ()).gradient, expected, rtol=1e-11, atol=1e-11
        )
        assert not torch.allclose(plain((), theta, batch, ()).gradient, expected, rtol=0.01)


def test_a_control_variate_has_no_variance_on_a_quadratic_with_one_hessian():
    target = targets.conjugate_mean(num_data=20, dim=2, noise=0.7)
    center = torch.tensor([0.4, -3.0], dtype=F64)
    estimator = pvi.control_variate(target.potential, target.data, center)
    theta = 5 * torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    state = estimator.init(theta, ParticleStreams(0))
    expected = full_gradient(target.potential, theta, Batch(target.data))
    for seed in range(5):
        index = torch.randint(20, (3, 4), generator=torch.Generator().manual_seed(seed))
        found = estimator(state, theta, Batch(target.data[index], True), ()).gradient
        assert ((found - expected).abs() / expected.abs()).max() < 1e-10


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_psgld_frozen_is_sgld_in_rescaled_coordinates(temperature):
    """With ``theta = sqrt(G) phi``, psgld's step on theta is sgld's on phi."""
    problem = registry.density(F64)
    frozen = pvi.psgld(problem.potential, temperature=temperature, decay=0.9)
    streams = ParticleStreams(0)
    theta = problem.potential.init(4, streams)
    h = torch.tensor(0.05, dtype=F64)
    controls = {"step_size": h, "temperature": torch.tensor(temperature, dtype=F64)}
    state = frozen.init(theta, streams)
    for k in range(5):
        noise = frozen.draw_noise(state, streams)
        state, _ = frozen.step(state, None, noise, controls)
        state = frozen.record(state, Progress(k + 1, 5, 10))
    scale = (1 / (1e-3 + state.memory.second_moment.sqrt())).sqrt()

    phi = state.position / scale
    for _ in range(5):
        noise = frozen.draw_noise(state, streams)
        gradient = scale * full_gradient(problem.potential, scale * phi)
        phi = phi - h * gradient + (2 * h * temperature).sqrt() * noise[0]
        state, _ = frozen.step(state, None, noise, controls)
        state = frozen.record(state, Progress(6, 5, 10))
        torch.testing.assert_close(state.position, scale * phi, rtol=1e-10, atol=1e-12)


def test_sghmc_without_gradient_is_an_exact_ornstein_uhlenbeck_process():
    """On a flat potential, momenta keep their law exactly: ``p' = c p + sqrt(T (1 - c^2)) xi``."""
    flat = pvi.from_log_density(lambda theta: 0.0 * theta.sum(), 2, dtype=F64)
    sampler = pvi.sghmc(flat, friction=2.0, temperature=1.5)
    streams = ParticleStreams(0)
    state = sampler.init(torch.zeros(3, 2, dtype=F64), streams)
    noise = sampler.draw_noise(state, streams)
    controls = {
        name: torch.tensor(v, dtype=F64) for name, v in (("step_size", 0.1), ("temperature", 1.5))
    }
    after, _ = sampler.step(state, None, noise, controls)
    c = math.exp(-0.2)
    p = c * state.memory.momentum + math.sqrt(1.5 * (1 - c**2)) * noise[0]
    torch.testing.assert_close(after.memory.momentum, p, rtol=1e-12, atol=1e-12)
    moved = 0.05 * (state.memory.momentum + p)
    torch.testing.assert_close(after.position, moved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", registry.ESTIMATORS)
def test_chunks_change_nothing(name, shared):
    whole = registry.module(F64)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    potential = pvi.from_module(
        net, pvi.Gaussian(scale=0.5), pvi.Normal(1.0), num_data=20, chunk_size=2
    )
    chunked = replace(whole, potential=potential)
    found = []
    for problem in (whole, chunked):
        estimator = registry.ESTIMATORS[name].make(problem)
        streams = ParticleStreams(0)
        theta = problem.potential.init(5, streams)
        state = estimator.init(theta, streams)
        noise = estimator.draw_noise(state, streams)
        batch = registry.batch_of(problem, None if shared else 5)
        found.append(estimator(state, theta, batch, noise))
    assert found[0].gradient.shape == (5, 26)
    torch.testing.assert_close(found[1].gradient, found[0].gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[1].potential, found[0].potential, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_a_loop_gives_what_vmap_gives(shared):
    def log_prior(theta):
        return -0.5 * theta.square().sum()

    def log_likelihood(theta, batch):
        x, y = batch
        return -(y[..., 0] - x @ theta[:3]).square() + theta[3]

    def stubborn(theta, batch):
        assert float(theta[0].detach()) < 1e9
        return log_likelihood(theta, batch)

    fast = pvi.from_log_likelihood(log_prior, log_likelihood, 4, 20, dtype=F64)
    slow = pvi.from_log_likelihood(log_prior, stubborn, 4, 20, dtype=F64)
    problem = registry.function(F64)
    batch = registry.batch_of(problem, None if shared else 3)
    theta = fast.init(3)
    with pytest.warns(UserWarning, match="log_likelihood cannot be vectorised.*loop.*reason"):
        first = pvi.gradients.minibatch(slow)((), theta, batch, ())
    again = pvi.gradients.minibatch(slow)((), theta, batch, ())
    expected = pvi.gradients.minibatch(fast)((), theta, batch, ())
    for found in (first, again):
        torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_a_loop_takes_more_particles_than_data(shared):
    def log_likelihood(theta, x):
        assert float(theta[0].detach()) < 1e9
        return -(x - theta).square()

    potential = pvi.from_log_likelihood(lambda theta: theta.sum(), log_likelihood, 1, 3, dtype=F64)
    theta, x = torch.arange(5, dtype=F64)[:, None], torch.tensor([1.0, 2.0, 4.0], dtype=F64)
    batch = Batch(x if shared else x.expand(5, 3), per_particle=not shared)
    with pytest.warns(UserWarning, match="cannot be vectorised"):
        found = potential(theta, batch)
    torch.testing.assert_close(found, (x - theta).square().sum(1) - theta.sum(1))


def test_a_vectorized_function_gives_what_a_plain_one_gives():
    regression = targets.conjugate_regression(num_data=20)

    def log_prior(theta):
        return targets._log_normal(theta, 1.0).sum()

    def log_likelihood(theta, batch):
        return targets._log_normal(batch[1] - batch[0] @ theta, 0.5)

    plain = pvi.from_log_likelihood(log_prior, log_likelihood, 3, 20, dtype=F64)
    theta = plain.init(4)
    index = torch.randint(20, (4, 5), generator=torch.Generator().manual_seed(0))
    x, y = regression.data
    for batch in (Batch((x[:5], y[:5])), Batch((x[index], y[index]), True)):
        torch.testing.assert_close(plain(theta, batch), regression.potential(theta, batch))


def test_the_same_data_come_as_tensors_arrays_loaders_and_lists():
    problem = registry.module(F64)
    x, y = problem.data
    dataset = torch.utils.data.TensorDataset(x, y)
    forms = [
        (x, y),
        [x, y],
        (x.numpy(), y.numpy()),
        [(x, y)],
        torch.utils.data.DataLoader(dataset, batch_size=20),
    ]
    options = {"num_particles": 2, "num_draws": 3, "step_size": 1e-3, **QUIET}
    found = [pvi.sample(pvi.sgld(problem.potential), form, **options).particles for form in forms]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-12)
