import math

import pytest
import torch

from particlevi import sgdvi
from tests.sgdvi import double_well
from tests.sgdvi.test_effective_potential import autoregression

F = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
C = torch.diag(torch.tensor([4.0, 0.5], dtype=torch.float64))
ETA, B = 0.05, 8


def sgd_runs(replicas, steps, seed=0, noise=C):
    generator = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(noise / B)
    law = sgdvi.exact_law(F, noise, learning_rate=ETA, batch_size=B)
    x = torch.randn(replicas, 2, generator=generator, dtype=torch.float64)
    x = x @ torch.linalg.cholesky(law.covariance).T
    kept = []
    for _ in range(steps):
        xi = torch.randn(x.shape, generator=generator, dtype=x.dtype) @ root.T
        x = x - ETA * (x @ F + xi)
        kept.append(x)
    return law, torch.stack(kept, 1)


def test_rates_are_those_of_the_exact_law():
    law, draws = sgd_runs(400, 2000)
    found = sgdvi.circulation(draws, ETA)
    q, error = found.q(law.temperature)
    assert torch.equal(found.rates, -found.rates.T)
    assert abs(q[0, 1] - law.circulation[0, 1]) < 5 * error[0, 1]
    assert error[0, 1] < 0.03 * law.circulation[0, 1].abs()
    assert found.p_value == pytest.approx(1 / 2001)
    assert found.stationary
    plane = found.strongest_plane()
    assert found.rates[plane] > 0
    # The antisymmetric lag covariance, by its definition.
    lagged = draws[:, 1:].flatten(0, 1).T @ draws[:, :-1].flatten(0, 1) / draws[:, 1:, 0].numel()
    wanted = -(lagged - lagged.T) / (2 * law.temperature * ETA)
    assert torch.allclose(q, wanted, rtol=1e-2)


def test_rates_and_errors_are_their_formulas():
    _, draws = sgd_runs(40, 60)
    shifted = draws + torch.tensor([3.0, -2.0])
    found = sgdvi.circulation(shifted, ETA, lag=3, num_blocks=40, num_flips=99)
    x = draws - draws.mean((0, 1))
    before, after = x[:, :-3], x[:, 3:]
    area = before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]
    blocks = area.mean(1) / (3 * ETA)
    assert float(found.rates[0, 1]) == pytest.approx(float(blocks.mean()), rel=1e-9)
    error = float(blocks.std()) / 40**0.5
    assert float(found.standard_error[0, 1]) == pytest.approx(error, rel=1e-9)
    q, q_error = found.q(0.2)
    assert torch.allclose(q, found.rates / 0.4)
    assert torch.allclose(q_error, found.standard_error / 0.4)
    assert found.lag == pytest.approx(3 * ETA)
    # A run as irreversible as can be: no flip comes near, and no p-value is 0.
    turn = torch.arange(400.0)[None, :, None] + torch.arange(10.0)[:, None, None]
    circle = torch.cat([turn.cos(), turn.sin()], -1)
    certain = sgdvi.circulation(circle, 1.0, num_flips=99, num_blocks=10)
    assert certain.p_values[0, 1] <= 0.03
    assert certain.p_values.min() > 0
    assert float(certain.rates[0, 1]) == pytest.approx(math.sin(1), rel=1e-2)


def test_the_joint_test_allows_for_the_number_of_planes():
    # 45 planes of pure noise: the least of 45 p-values is small, the joint one uniform.
    generator = torch.Generator().manual_seed(3)
    joint, least = [], []
    for _ in range(20):
        noise = torch.randn(40, 20, 10, generator=generator, dtype=torch.float64)
        found = sgdvi.circulation(noise, 1.0, num_flips=200)
        joint.append(found.p_value)
        least.append(float(found.p_values.min()))
    assert abs(sum(joint) / 20 - 0.5) < 5 * (1 / 12 / 20) ** 0.5
    assert sum(least) / 20 < 0.1


def test_entropy_production_at_a_longer_lag():
    _, draws = sgd_runs(100, 400)
    one = sgdvi.entropy_production(draws, ETA)
    thinned = sgdvi.entropy_production(draws[:, ::2], 2 * ETA)
    two = sgdvi.entropy_production(draws, ETA, lag=2)
    assert two.value == pytest.approx(thinned.value, abs=5 * thinned.standard_error)
    assert two.value == pytest.approx(one.value, rel=0.3)
    drift = draws[:16, :200] + torch.linspace(0, 5, 200)[None, :, None]
    with pytest.warns(sgdvi.NotStationaryWarning):
        sgdvi.entropy_production(drift, ETA)


def test_reversible_runs_are_not_called_loops():
    # Slow reversible modes have long autocorrelations and a dip in the spectrum, but no loops.
    law, draws = sgd_runs(40, 500, noise=F)
    assert law.irreversibility < 1e-12
    found = sgdvi.circulation(draws, ETA)
    assert found.p_value > 0.01
    runs = [autoregression(1, 4000, 0.9, seed) for seed in range(40)]
    p = [sgdvi.circulation(run, 1.0, num_flips=400).p_value for run in runs]
    # Uniform under the null: the mean of 40 lies within 5 standard deviations of 1/2.
    assert abs(sum(p) / 40 - 0.5) < 5 * (1 / 12 / 40) ** 0.5
    produced = torch.tensor([sgdvi.entropy_production(run, 1.0).value for run in runs])
    assert produced.mean().abs() < 4 * produced.std() / 40**0.5


def test_one_long_run_in_blocks():
    _, draws = sgd_runs(1, 20000)
    found = sgdvi.circulation(draws[0], ETA, num_blocks=40)
    assert found.num_blocks == 40
    assert found.p_values[0, 1] < 0.01


def test_directions_turn_the_rates():
    _, draws = sgd_runs(40, 500)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    a, b = (sgdvi.circulation(draws, ETA, directions=d) for d in (None, swap))
    assert torch.allclose(a.rates, b.rates.T, atol=1e-12)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5])
def test_double_well_circulates_at_the_given_rate(strength):
    step = 0.02
    draws = double_well.simulate(strength, 1000, draws=400, thin=1, step=step)
    found = sgdvi.circulation(draws, step)
    wanted = double_well.CIRCULATION[strength]
    # The rate over a lag of 0.02 is below that of the limit by about that share.
    error = found.standard_error[0, 1]
    assert abs(found.rates[0, 1] - wanted) < 5 * error + step * wanted
    assert error < 0.05
    assert (found.p_value < 0.01) == (strength > 0)


def test_entropy_production():
    law, draws = sgd_runs(400, 2000)
    found = sgdvi.entropy_production(draws, ETA)
    # The discrete steps' own S, B and R in the same formula.
    s, one = law.covariance, torch.eye(2, dtype=torch.float64)
    lagged = (one - ETA * F) @ s
    rates = (lagged.T - lagged) / ETA
    kick = (2 * s - lagged - lagged.T) / (2 * ETA)
    wanted = 0.25 * torch.trace(torch.linalg.inv(kick) @ rates @ torch.linalg.inv(s) @ rates.T)
    assert abs(found.value - wanted) < 5 * found.standard_error
    assert found.standard_error < 0.1 * wanted
    small = sgdvi.stationary_law(F, C, learning_rate=ETA, batch_size=B)
    assert float(wanted) == pytest.approx(small.entropy_production(), rel=0.1)
    _, reversible = sgd_runs(40, 500, noise=F)
    zero = sgdvi.entropy_production(reversible, ETA)
    assert abs(zero.value) < 5 * zero.standard_error
    assert zero.standard_error < 0.1 * found.value


@pytest.mark.parametrize("strength", [0.5, 1.5])
def test_flow_of_the_double_well_has_no_divergence(strength):
    axis = torch.linspace(-2, 2, 7, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    parts = sgdvi.decompose_drift(
        points,
        lambda x: double_well.drift(x, strength),
        double_well.potential,
        torch.eye(2),
        temperature=1.0,
    )
    wanted = double_well.current(points, strength)
    assert torch.allclose(parts.circulating, wanted, atol=1e-12)
    assert torch.allclose(parts.gradient + parts.circulating, parts.drift, atol=1e-12)
    assert parts.flow_divergence.abs().max() < 1e-10
    # The same process at twice the temperature, with twice the potential and half the diffusion.
    twice = sgdvi.decompose_drift(
        points,
        lambda x: double_well.drift(x, strength),
        lambda x: 2 * double_well.potential(x),
        0.5 * torch.eye(2),
        temperature=2.0,
    )
    assert torch.allclose(twice.circulating, wanted, atol=1e-12)
    assert twice.flow_divergence.abs().max() < 1e-10
    # div j and j . grad Phi alone do not vanish in this example.
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: double_well.current(x, strength)))
    assert jacobian(points).diagonal(dim1=1, dim2=2).sum(1).abs().max() > 0.1 * strength
    assert parts.share == pytest.approx(float(wanted.norm() / parts.drift.norm()))


def test_drift_with_noise_that_depends_on_the_point():
    # dx = -(D grad Phi - T div D) dt + sqrt(2 T D) dW is reversible: nothing is left for j.
    def diffusion(x):
        wide = 1 + x[:, 0] ** 2
        cross = 0.3 * torch.sin(x[:, 1])
        rows = torch.stack([wide, cross], -1), torch.stack([cross, 1 + 0 * wide], -1)
        return torch.stack(rows, 1)

    def drift(x):
        slope = torch.stack([x[:, 0] ** 3, 2 * x[:, 1]], -1)
        div = torch.stack([2 * x[:, 0] + 0.3 * torch.cos(x[:, 1]), 0 * x[:, 0]], -1)
        return -torch.einsum("sij,sj->si", diffusion(x), slope) + 0.2 * div

    points = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    parts = sgdvi.decompose_drift(
        points, drift, lambda x: x[:, 0] ** 4 / 4 + x[:, 1] ** 2, diffusion, temperature=0.2
    )
    assert parts.circulating.abs().max() < 1e-12
    assert parts.flow_divergence.abs().max() < 1e-12


def test_probability_current():
    strength, step = 1.5, 0.05
    draws = double_well.simulate(strength, 1000, draws=400, thin=1, step=step)
    found = sgdvi.probability_current(draws, step, torch.eye(2), num_grid=12)
    centers = torch.stack(torch.meshgrid(*found.axes, indexing="ij"), -1)
    centers = centers + draws.mean((0, 1))
    axis = torch.linspace(-8, 8, 1601, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    z = float(torch.exp(-double_well.potential(grid)).sum() * (axis[1] - axis[0]) ** 2)
    wanted = double_well.current(centers, strength)
    wanted = wanted * torch.exp(-double_well.potential(centers))[..., None] / z
    known = found.density > 0.01
    score = (found.current - wanted)[known] / found.standard_error[known]
    # Cells have a width and steps a length, which blur the current a little.
    blur = 0.15 * wanted.abs().max()
    assert ((found.current - wanted)[known].abs() < 5 * found.standard_error[known] + blur).all()
    assert score.square().mean() < 4
    assert (wanted[known] * found.current[known]).sum() > 0.9 * wanted[known].square().sum()
    reversible = double_well.simulate(0.0, 500, draws=200, thin=1, step=step)
    null = sgdvi.probability_current(reversible, step, torch.eye(2), num_grid=8)
    score = (null.current / null.standard_error)[null.density > 0.01]
    assert 0.4 < score.square().mean() < 1.8


def test_spectra_of_an_autoregression_are_the_null():
    found = sgdvi.spectra(autoregression(80, 2000, 0.9), num_frequencies=128, max_lag=20)
    assert torch.allclose(found.factors, torch.tensor(0.9).double(), atol=0.01)
    ratio = found.power[2:] / found.null_power[2:]
    assert (ratio - 1).abs().max() < 0.08
    assert (found.autocorrelation - found.null_autocorrelation).abs().max() < 0.03
    assert torch.allclose(found.autocorrelation, found.null_autocorrelation, atol=0.03)
    # Errors and spreads by their definitions, on two coordinates of one run.
    runs = autoregression(20, 300, 0.9)
    few = sgdvi.spectra(runs, num_frequencies=8, max_lag=4)
    scaled = (runs - runs.mean((0, 1))) / runs.std((0, 1), correction=0)
    product = scaled[:, :-4] * scaled[:, 4:]
    each = product.mean((0, 1))
    assert float(few.autocorrelation_std[4]) == pytest.approx(float(each.std(correction=0)))
    error = product.mean((1, 2)).std() / 20**0.5
    assert float(few.autocorrelation_error[4]) == pytest.approx(float(error))
    single = [sgdvi.spectra(runs[..., k : k + 1], num_frequencies=8).power for k in range(2)]
    assert torch.allclose(few.power_std, (single[0] - single[1]).abs() / 2)
    chains = [sgdvi.spectra(scaled[k : k + 1], num_frequencies=8, max_lag=4) for k in range(20)]
    powers = torch.stack([each.power for each in chains])
    assert torch.allclose(few.power_error, powers.std(0) / 20**0.5, rtol=0.5)
    # Zero at low frequency, long memory: the "signs of a limit cycle", without one.
    assert found.null_power[0] < 0.1 * found.null_power[-1]


def test_spectra_see_a_real_oscillation():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    step = torch.linalg.matrix_exp(0.4 * turn) * 0.98
    generator = torch.Generator().manual_seed(0)
    x, kept = torch.zeros(20, 2, dtype=torch.float64), []
    for _ in range(2000):
        x = x @ step.T + 0.2 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        kept.append(x)
    found = sgdvi.spectra(torch.stack(kept[200:], 1))
    peak = found.frequencies[found.power.argmax()]
    assert abs(peak - 0.4) < 0.05
    assert found.power.max() > 5 * found.null_power[found.power.argmax()]


def test_bad_input():
    _, draws = sgd_runs(10, 50)
    with pytest.raises(ValueError, match="one coordinate"):
        sgdvi.circulation(draws[..., :1], ETA)
    with pytest.raises(ValueError, match="lag"):
        sgdvi.circulation(draws, ETA, lag=50)
    with pytest.raises(ValueError, match="8 blocks"):
        sgdvi.circulation(draws, ETA, num_blocks=3)
    with pytest.raises(ValueError, match="time_per_draw"):
        sgdvi.circulation(draws, -1.0)
    with pytest.raises(ValueError, match="at least 129 draws"):
        sgdvi.spectra(draws)
    with pytest.raises(ValueError, match="directions"):
        sgdvi.probability_current(draws, ETA, torch.eye(3))
