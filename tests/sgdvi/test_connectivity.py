"""Paths between modes, barriers on them and the temperature at which SGD crosses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.sgdvi import Curve, barrier, connect, crossing, escape_time, straight

F64 = torch.float64
A, B = torch.tensor([-1.0, 0.0], dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)


def ring():
    """A circular valley through both ends; the straight line leads over its middle, 5 nats up."""
    return pvi.from_log_density(
        lambda w: -5 * (w.square().sum() - 1) ** 2 - 0.1 * w[0], num_params=2, dtype=F64
    )


def noisy_well(size=3, num_data=60):
    """``(w_0^2 - 1)^2 / 4 + sum_i w_i^2`` in turned axes; noise of data grows with ``w_0``."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))[0]
    data = torch.randn(num_data, size, generator=generator, dtype=F64)
    data = data - data.mean(0)

    def log_likelihood(theta, each):
        w = theta @ turn
        well = (w[:, 0] ** 2 - 1) ** 2 / 4 + w[:, 1:].square().sum(1)
        kicks = each[..., 0] * (w[:, :1] + w[:, :1] ** 2 / 4) + (
            each[..., 1:] * w[:, None, 1:]
        ).sum(-1)
        return -well[:, None] - kicks

    potential = pvi.from_log_likelihood(
        lambda w: 0 * w[:, 0], log_likelihood, size, num_data, vectorized=True, dtype=F64
    )
    return potential, data, turn[:, 0], float(data[:, 0].var(correction=0))


def test_a_curve_runs_from_start_to_end():
    curve = Curve(A, torch.tensor([0.0, 2.0], dtype=F64), B)
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    assert torch.equal(curve.points(t), torch.tensor([[-1.0, 0], [0, 1], [1, 0]], dtype=F64))


def test_the_velocity_is_the_derivative():
    curve = Curve(A, torch.tensor([0.3, 2.0], dtype=F64), B)
    t = torch.tensor(0.3, dtype=F64)
    change = torch.func.jvp(curve.points, (t,), (torch.ones_like(t),))[1]
    assert torch.allclose(curve.velocity(t), change, atol=1e-12)


def test_the_barrier_of_a_line_is_that_of_the_function():
    found = barrier(straight(A, B), ring())
    assert found.height.value == pytest.approx(5.0, abs=1e-9)
    assert found.from_start.value == pytest.approx(5.1, abs=1e-9)
    assert found.from_end.value == pytest.approx(4.9, abs=1e-9)
    assert found.height.standard_error == 0


def test_the_curve_goes_around():
    """The best parabola stays within .12 of the circle: 0.3 nats instead of 5."""
    start = torch.tensor([-1.0, 0.05], dtype=F64)
    found = connect(ring(), None, start, B, num_steps=400, learning_rate=0.05)
    assert barrier(found, ring()).height.value < 0.6


def test_the_bend_makes_the_mean_potential_least():
    """A quadratic potential: the mean over t is least where its derivative in the bend is 0."""
    bowl = pvi.from_log_density(lambda w: -0.5 * (w[0] ** 2 + 4 * (w[1] - 1) ** 2), 2, dtype=F64)
    found = connect(bowl, None, A, B, num_steps=800, points_per_step=32, learning_rate=0.05)
    # int 2t(1-t) (phi - m) dt = 0 is a / 20 + c / 15 + b / 20 = m / 6.
    m = torch.tensor([0.0, 1.0], dtype=F64)
    assert torch.allclose(found.bend, m + 0.75 * (2 * m - A - B), atol=0.02)


def classification():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 2, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    potential = pvi.from_module(net, pvi.Categorical(), pvi.Normal(1.0), num_data=300)
    return potential, (x, y)


@pytest.fixture(scope="module")
def nets():
    """The potential, its data and two nets trained from different starts."""
    potential, data = classification()
    w = potential.init(2).requires_grad_()
    optimizer = torch.optim.Adam([w], lr=0.05)
    batch = pvi.data.as_data(data, potential).whole()
    for _ in range(300):
        optimizer.zero_grad()
        potential(w, batch).sum().backward()
        optimizer.step()
    return potential, data, straight(*w.detach())


def test_between_two_nets_the_curve_is_lower_than_the_line(nets):
    potential, data, line = nets
    options = {"num_steps": 200, "batch_size": 100, "learning_rate": 0.03}
    curve = connect(potential, data, line.start, line.end, **options)
    bent = barrier(curve, potential, data).height.value
    assert bent < 0.5 * barrier(line, potential, data).height.value


def test_errors_of_minibatches_cover(nets):
    """Differences to the whole data in standard errors, 60 seeds: mean 0, deviation 1."""
    potential, data, line = nets
    exact = barrier(line, potential, data, num_points=5).height.value
    scores = []
    for seed in range(60):
        found = barrier(
            line, potential, data, num_points=5, batch_size=30, num_batches=16, seed=seed
        ).height
        scores.append((found.value - exact) / found.standard_error)
    z = torch.tensor(scores)
    assert abs(float(z.mean())) < 0.45
    assert 0.7 < float(z.std()) < 1.35


def test_in_a_straight_valley_sgd_climbs_what_the_law_says():
    potential, data, along, c = noisy_well()
    noise = pvi.noise.measure(potential, data, position=torch.zeros(3, dtype=F64))
    found = crossing(straight(-along, along), noise, temperature=0.05)
    exact = escape_time(
        lambda w: w**3 - w,
        lambda w: c * (1 + w / 2) ** 2,
        temperature=0.05,
        minimum=-1.0,
        saddle=0.0,
        end=1.0,
        wall=-1.5,
    )
    assert found.barrier == pytest.approx(exact.barrier, rel=2e-3)


def test_the_temperature_is_that_of_a_posterior_with_this_barrier():
    potential, data, along, _ = noisy_well()
    noise = pvi.noise.measure(potential, data, position=torch.zeros(3, dtype=F64))
    path = straight(-along, along)
    found = crossing(path, noise, temperature=0.05)
    tempered = barrier(path, potential, data).from_start.value / found.temperature
    assert tempered == pytest.approx(found.barrier, rel=1e-3)


def test_more_noise_on_the_way_makes_crossing_hotter():
    potential, data, along, _ = noisy_well()
    noise = pvi.noise.measure(potential, data, position=torch.zeros(3, dtype=F64))
    found = crossing(straight(-along, along), noise, temperature=0.05)
    assert found.temperature_back > 2 * found.temperature


def test_a_path_up_the_side_of_a_valley_is_told():
    potential, data, along, _ = noisy_well()
    noise = pvi.noise.measure(potential, data, position=torch.zeros(3, dtype=F64))
    side = torch.linalg.qr(torch.stack([along, torch.ones(3, dtype=F64)], 1))[0][:, 1]
    floor = crossing(straight(-along, along), noise, temperature=0.05, num_points=9)
    wall = crossing(straight(-along + side, along + side), noise, temperature=0.05, num_points=9)
    middle = 2  # where the loss rises
    assert float(floor.across[middle]) < 1e-9
    assert float(wall.across[middle]) > 0.5


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda p, d: straight(A, A), "one point"),
        (lambda p, d: straight(A, torch.zeros(3, dtype=F64)), "end must be"),
        (lambda p, d: barrier(straight(A, B), p, d), "start and end"),
        (
            lambda p, d: connect(p, d, -torch.ones(3), torch.ones(3), batch_size=99),
            "at most the 60",
        ),
        (lambda p, d: barrier(straight(A, B), ring(), None, batch_size=2), "at most the 0"),
        (
            lambda p, d: crossing(
                straight(A, B), pvi.noise.measure(p, d, position=torch.zeros(3)), temperature=0.1
            ),
            "start must be",
        ),
    ],
)
def test_what_does_not_fit_is_refused(act, words):
    potential, data, _, _ = noisy_well()
    with pytest.raises(ValueError, match=words):
        act(potential, data)


def test_only_a_curve_is_a_path():
    with pytest.raises(TypeError, match="connect or straight"):
        barrier(torch.zeros(2, 2), ring())
