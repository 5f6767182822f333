"""The bound on the generalisation gap, where the gap and every part are known."""

import pytest
import torch

import particlevi as pvi

F64 = torch.float64
N, RATE = 30, 0.4
SCALES = torch.tensor([0.05, 0.1, 0.2, 0.5, 1.0, 2.0], dtype=F64)
START = torch.tensor([1.0, 1.0], dtype=F64)


def bump(theta, z):
    """``1 - exp(-|w - z|^2/2)``, between 0 and 1, one value per datum."""
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


@pytest.mark.slow
def test_figures_of_the_closed_case():
    """The trajectory term .0634 and the sensitivity .0255 at s = 2, the gap .0254."""
    found = bound(100, 4000, scales=SCALES[-1:], num_draws=1, final_draws=16)
    error = float(found.standard_error[0])
    assert found.gap[0] == pytest.approx(0.0254, abs=4 * found.gap[1])
    assert float(found.trajectory[0]) == pytest.approx(0.0634, abs=0.002)
    assert float(found.bound[0]) == pytest.approx(0.0889, abs=4 * error)
    assert float(found.published[0]) == pytest.approx(0.1152, abs=4 * error)


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
