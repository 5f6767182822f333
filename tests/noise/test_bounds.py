"""The bound on the generalisation gap, where the gap and every part are known."""

import pytest
import torch

import particlevi as pvi

F64 = torch.float64
N, RATE = 30, 0.4
SCALES = torch.tensor([0.05, 0.1, 0.2, 0.5, 1.0, 2.0], dtype=F64)
START = torch.tensor([1.0, 1.0], dtype=F64)


def bump(theta, z):
    """Less the loss ``1 - exp(-|w - z|^2/2)``, which is between 0 and 1; one value per datum."""
    return torch.expm1(-0.5 * (z - theta).square().sum(-1))


def measured(z):
    model = pvi.from_log_likelihood(
        lambda theta: 0.0 * theta.sum(), bump, num_params=2, num_data=len(z), dtype=F64
    )
    return pvi.noise.measure(model, z, position=START)


def one_pass(z):
    """Positions ``[N + 1, D]`` of SGD that sees every datum once."""
    points = [START]
    for row in z:
        w = points[-1]
        points.append(w - RATE * (w - row) * torch.exp(-0.5 * (w - row).square().sum()))
    return torch.stack(points)


def gaussian(count, seed):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def bound(num_runs, num_held_out, **options):
    sets = [gaussian(N, seed) for seed in range(num_runs)]
    runs = [pvi.noise.SGDRun.from_positions(one_pass(z), RATE) for z in sets]
    settings = {"scales": SCALES, "subgaussian": 0.5, "num_draws": 2, "final_draws": 8} | options
    held_out = measured(gaussian(num_held_out, 10**6))
    return pvi.noise.generalization_bound(runs, [measured(z) for z in sets], held_out, **settings)


def test_bound_is_above_the_gap_at_every_scale():
    found = bound(10, 1000)
    assert bool((found.bound > found.gap[0] + 3 * found.gap[1]).all())
    assert bool((found.published > found.bound).all())
    assert found.best == len(SCALES) - 1
    assert "bound" in str(found)


def smoothed(w, z, variance):
    """The mean loss at ``w + N(0, variance I)`` of each datum, in two dimensions."""
    away = (w - z).square().sum(-1)
    return 1 - torch.exp(-0.5 * away / (1 + variance)) / (1 + variance)


def sensitivity(w, variance):
    """``E|gbar(w) - gbar(w + xi)|^2`` for ``gbar(w) = w exp(-|w|^2/4) / 4``, that of N(0, I)."""
    square = w.square().sum(-1)
    slope = 0.25 * torch.exp(-square / 4)
    mean = torch.exp(-0.5 * square / (2 + variance)) / (2 + variance) ** 2
    tilted = square / (1 + variance) ** 2 + 2 * variance / (1 + variance)
    second = tilted * torch.exp(-0.5 * square / (1 + variance)) / (16 * (1 + variance))
    return slope.square() * square - 2 * slope * mean * square + second


@pytest.mark.parametrize("scale", [0.1, 0.5, 2.0])
def test_every_part_is_that_of_the_closed_form(scale):
    """On the same runs and held-out data: only the virtual noise and 1000 data are random."""
    count, fresh = 10, gaussian(1000, 10**6)
    found = bound(count, 1000, scales=torch.tensor([scale], dtype=F64), final_draws=100)
    times, gaps, shifts, total = torch.arange(N), [], [], 0.0
    for seed in range(count):
        z = gaussian(N, seed)
        path = one_pass(z)
        used = (path[:-1] - path[1:]) / RATE
        population = path[:-1] * torch.exp(-path[:-1].square().sum(1, keepdim=True) / 4) / 4
        noise = (used - population).square().sum(1) + sensitivity(path[:-1], scale**2 * times)
        total += float(noise.sum()) * RATE**2 / scale**2 / count
        ends = [smoothed(path[-1], x, v).mean() for v in (0, N * scale**2) for x in (fresh, z)]
        gaps.append(ends[0] - ends[1])
        shifts.append(ends[0] - ends[1] - (ends[2] - ends[3]))
    gap, shift = (float(torch.stack(each).mean()) for each in (gaps, shifts))
    trajectory = (2 * 0.25 / N * total) ** 0.5
    assert found.gap[0] == pytest.approx(gap, rel=1e-10)
    assert float(found.sensitivity[0]) == pytest.approx(abs(shift), abs=0.003)
    assert float(found.trajectory[0]) == pytest.approx(trajectory, rel=0.02)
    assert float(found.bound[0]) == pytest.approx(trajectory + abs(shift), rel=0.03)
    assert float(found.published[0]) == pytest.approx(
        2**0.5 * float(found.trajectory[0]) + float(found.sensitivity[0]), rel=1e-12
    )


def test_population_gradient_of_many_points_is_that_of_one():
    from particlevi.noise.bounds import _gradients

    noise = measured(gaussian(50, 0))
    points = gaussian(4, 1)
    expected = torch.stack([noise.at(point).gradient for point in points])
    assert torch.allclose(_gradients(noise, points), expected, atol=1e-14)


def test_noise_of_the_path_by_hand():
    """With tiny virtual noise only ``V_t`` is left, and the sum can be written down."""
    z, held_out = gaussian(N, 0), measured(gaussian(200, 1))
    run = pvi.noise.SGDRun.from_positions(one_pass(z), RATE)
    found = pvi.noise.generalization_bound(
        [run], [measured(z)], held_out, scales=torch.tensor([1e-6], dtype=F64), subgaussian=0.5
    )
    total = 0.0
    for w, row in zip(run.positions, z, strict=True):
        used = (w - row) * torch.exp(-0.5 * (w - row).square().sum())
        total += float((used - held_out.at(w).gradient).square().sum())
    expected = (2 * 0.25 / N * RATE**2 * 1e12 * total) ** 0.5
    assert float(found.trajectory[0]) == pytest.approx(expected, rel=1e-6)
    assert torch.isnan(found.standard_error).all()


def recorded(every, steps=7):
    """A run of torch's SGD with a falling rate: all its positions, rates and the recording."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)
    ).double()
    x = gaussian(steps, 3)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.2)
    recorder = pvi.noise.SGDRecorder(optimiser, every)
    vector = torch.nn.utils.parameters_to_vector
    path, rates = [vector(net.parameters()).detach()], []
    for row in x:
        rates.append(0.2 / (1 + len(rates)))
        optimiser.param_groups[0]["lr"] = rates[-1]
        optimiser.zero_grad()
        net(row).square().sum().backward()
        optimiser.step()
        path.append(vector(net.parameters()).detach())
    return torch.stack(path), torch.tensor(rates, dtype=F64), recorder.run()


@pytest.mark.parametrize("every", [1, 3])
def test_a_recorded_loop_is_the_run_of_its_positions(every):
    path, rates, found = recorded(every)
    expected = pvi.noise.SGDRun.from_positions(path, rates, every)
    for name in ("positions", "gradients", "rates", "final"):
        assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-12), name
    assert found.every == every


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"weight_decay": 0.1}, {"maximize": True}])
def test_a_loop_that_is_no_plain_sgd_is_not_recorded(settings):
    w = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="plain SGD"):
        pvi.noise.SGDRecorder(torch.optim.SGD([w], lr=0.1, **settings))


def test_a_step_with_a_closure_is_not_recorded():
    w = torch.nn.Parameter(torch.ones(1))
    optimiser = torch.optim.SGD([w], lr=0.1)
    pvi.noise.SGDRecorder(optimiser)
    with pytest.raises(ValueError, match="closure"):
        optimiser.step(lambda: w.square().sum())


def test_every_kth_step_counts_k_times():
    points = torch.cumsum(-torch.ones(13, 2, dtype=F64), 0)
    run = pvi.noise.SGDRun.from_positions(points, 0.5, every=3)
    assert run.positions.tolist() == points[[0, 3, 6, 9]].tolist()
    assert torch.equal(run.gradients, torch.full((4, 2), 2.0, dtype=F64))
    assert torch.equal(run.final, points[-1])
    z = gaussian(N, 0)
    flat = measured(1e3 + gaussian(40, 1))  # no gradient at all: V_t is that of the run
    options = {"scales": SCALES[:1], "subgaussian": 0.5}
    every = [
        pvi.noise.generalization_bound(
            [pvi.noise.SGDRun.from_positions(points, 0.5, every=k)], [measured(z)], flat, **options
        ).trajectory
        for k in (1, 3)
    ]
    assert torch.allclose(every[0], every[1], rtol=1e-10)


def test_standard_error_is_the_spread_over_repetitions():
    options = {"scales": SCALES[3:4], "num_draws": 1, "final_draws": 4, "subgaussian": 0.5}
    values, errors = [], []
    for first in range(0, 160, 8):
        held_out = measured(gaussian(100, 10**6 + first))
        sets = [gaussian(N, seed) for seed in range(first, first + 8)]
        runs = [pvi.noise.SGDRun.from_positions(one_pass(z), RATE) for z in sets]
        train = [measured(z) for z in sets]
        found = pvi.noise.generalization_bound(runs, train, held_out, seed=first, **options)
        values.append(found.gap[0])
        errors.append(found.gap[1])
    spread = torch.tensor(values).std()
    assert 0.7 < float(spread / torch.tensor(errors).square().mean().sqrt()) < 1.4


def test_what_makes_it_invalid_is_refused():
    z = gaussian(N, 0)
    run, noise = pvi.noise.SGDRun.from_positions(one_pass(z), RATE), measured(z)
    options = {"scales": SCALES, "subgaussian": 0.5}
    with pytest.raises(ValueError, match="30 of the 30 held-out data are training data"):
        pvi.noise.generalization_bound([run], [noise], noise, **options)
    other = measured(gaussian(20, 3))
    with pytest.raises(ValueError, match="one training set per run"):
        pvi.noise.generalization_bound([run], [], other, **options)
    with pytest.raises(ValueError, match="positive numbers"):
        pvi.noise.generalization_bound([run], [noise], other, scales=-SCALES, subgaussian=1.0)
    fresh = measured(gaussian(9, 9))
    with pytest.raises(ValueError, match="one size"):
        pvi.noise.generalization_bound([run] * 2, [noise, other], fresh, **options)
    with pytest.raises(ValueError, match="all points of a run"):
        pvi.noise.SGDRun.from_positions(z[:1], RATE)
