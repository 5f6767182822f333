import warnings

import pytest
import torch
from scipy.stats import norm

import particlevi as pvi
from particlevi import sgdvi
from tests.sgdvi.double_well import potential, region, simulate

F64 = torch.float64
F = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
C = torch.tensor([[1.0, -0.3], [-0.3, 2.0]], dtype=torch.float64)


def gaussian_draws(covariance, replicas, draws, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(replicas, draws, len(covariance), generator=generator, dtype=torch.float64)
    return z @ torch.linalg.cholesky(covariance).T


def autoregression(replicas, draws, factor, seed=0):
    """A reversible run with stationary law Normal(0, 1), ``[P, T, 2]``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(replicas, 2, generator=generator, dtype=torch.float64)
    kept = []
    for _ in range(draws):
        xi = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = factor * x + (1 - factor**2) ** 0.5 * xi
        kept.append(x)
    return torch.stack(kept, 1)


def test_covariance_gives_the_potential_that_theory_predicts():
    law = sgdvi.stationary_law(F, C, learning_rate=0.05, batch_size=8)
    draws = gaussian_draws(law.covariance, 100, 200)
    found = sgdvi.gaussian_potential(draws, law.temperature)
    wanted = law.potential_hessian
    score = (found.hessian - wanted) / found.standard_error
    assert score.abs().max() < 5
    # The error is that of 20 000 independent draws, and far below the distance to the loss.
    assert (found.standard_error < 0.02 * wanted.diagonal().max()).all()
    assert ((F - wanted) / found.standard_error).abs().max() > 20
    assert found.stationary
    points = torch.tensor([[0.1, 0.0], [0.0, -0.2]], dtype=torch.float64)
    error = (found(points) - law.potential(points)) / found.band(points)
    assert error.abs().max() < 5
    # T Cov^-1 but for the correction of the inverse's bias, (D + 1) / n of it.
    product = found.hessian @ found.covariance / law.temperature
    assert torch.allclose(product, product[0, 0] * torch.eye(2).double(), atol=1e-12)
    assert float(product[0, 0]) == pytest.approx(1 - 3 / 19_999, abs=2e-4)


def test_moments_and_replicates_are_those_of_the_draws():
    draws = gaussian_draws(C, 5, 4) + torch.arange(5.0)[:, None, None]
    found = sgdvi.gaussian_potential(draws, 0.3, num_blocks=5)
    assert torch.allclose(found.covariance, torch.cov(draws.flatten(0, 1).T))
    for k in range(5):
        rest = torch.cat([draws[:k], draws[k + 1 :]]).flatten(0, 1)
        assert torch.allclose(found.replicates[0][k], rest.mean(0))
        inverse = 0.3 * torch.linalg.inv(torch.cov(rest.T))
        factor = found.hessian @ found.covariance / 0.3
        assert torch.allclose(found.replicates[1][k], factor[0, 0] * inverse)
    # The jackknife's standard error, from its definition.
    spread = found.replicates[1] - found.replicates[1].mean(0)
    assert torch.allclose(found.standard_error, (0.8 * spread.square().sum(0)).sqrt())
    # At the distance x along an axis the potential is U x^2 / 2 if the mean is held.
    point = found.mean + torch.tensor([100.0, 0.0])
    assert float(found.band(point)) == pytest.approx(
        5000 * float(found.standard_error[0, 0]), rel=0.1
    )


def test_standard_errors_know_of_autocorrelation():
    # Var of the sample variance of an AR(1) run is larger by (1 + a^2)/(1 - a^2).
    a, length = 0.9, 20000
    series = autoregression(1, length, a)
    found = sgdvi.gaussian_potential(series, 1.0, num_blocks=50)
    expected = (2 * (1 + a**2) / (1 - a**2) / length) ** 0.5
    assert float(found.standard_error[0, 0]) == pytest.approx(expected, rel=0.5)
    assert float(found.standard_error[0, 0]) > 2 * (2 / length) ** 0.5


def test_shrinkage():
    draws = gaussian_draws(torch.diag(torch.tensor([1.0, 4.0])).double(), 50, 4)
    plain = sgdvi.gaussian_potential(draws, 1.0)
    half = sgdvi.gaussian_potential(draws, 1.0, shrinkage=0.5)
    mean = plain.covariance.diagonal().mean()
    assert torch.allclose(half.covariance, 0.5 * plain.covariance + 0.5 * mean * torch.eye(2))
    # Many dimensions, few draws: shrinkage makes the inverse exist and the covariance better.
    wide = gaussian_draws(torch.eye(60).double(), 40, 1)
    with pytest.raises(ValueError, match="no inverse"):
        sgdvi.gaussian_potential(wide, 1.0)
    auto = sgdvi.gaussian_potential(wide, 1.0, shrinkage="auto")
    assert auto.shrinkage > 0.8
    assert (auto.covariance - torch.eye(60)).norm() < 0.5 * (
        torch.cov(wide.squeeze(1).T) - torch.eye(60)
    ).norm()
    assert auto.stationary is None


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.5])
def test_double_well(strength):
    draws = simulate(strength, 2000, draws=10, thin=50)
    x, y = draws[..., 0], draws[..., 1]
    for values, wanted in ((x**2, 1.0418), (x**4, 2.0418), (y**2, 1.0)):
        error = values.mean(1).std() / len(values) ** 0.5
        assert abs(values.mean() - wanted) < 5 * error
    phi = sgdvi.fit_potential(draws, temperature=1.0)
    points = region()
    error = phi(points) - potential(points)
    error -= error.mean()
    rms = error.square().mean().sqrt()
    assert rms < 0.07
    # The band is an honest one: neither far too narrow nor far too wide.
    assert 0.4 < phi.band(points).square().mean().sqrt() / rms < 2.5
    if strength == 1.5:
        assert phi.stationary


def test_gradient_of_the_fit_is_that_of_its_value():
    settings = {"num_centers": 30, "width": 1.2, "ridge": 1e-6, "num_bootstrap": 2}
    phi = sgdvi.fit_potential(simulate(0.0, 500, 2, 50), 2.0, **settings)
    x = torch.tensor([[0.3, -0.4], [1.0, 1.0]], dtype=torch.float64)
    for k in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[k] = 1e-5
        wanted = (phi(x + step) - phi(x - step)) / 2e-5
        assert torch.allclose(phi.gradient(x)[:, k], wanted, atol=1e-7)


def test_a_slice_of_a_gaussian_law_is_its_precision():
    """Given the others, the curvature is the entry of the precision matrix, not 1 / variance."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64) / 6**0.5 + torch.eye(6)
    covariance = root @ root.T
    draws = gaussian_draws(covariance, 100, 100)
    phi = sgdvi.fit_potential(draws[..., :1], 2.0, given=draws[..., 1:], num_centers=12)
    step = covariance[0, 0].sqrt() * torch.tensor([[-0.5], [0.0], [0.5]], dtype=torch.float64)
    points = draws[..., :1].mean((0, 1)) + step
    values = phi(points)
    curvature = (values[0] + values[2] - 2 * values[1]) / step[2, 0] ** 2
    wanted = 2.0 * torch.linalg.inv(covariance)[0, 0]
    assert float(curvature) == pytest.approx(float(wanted), rel=0.1)
    assert float(2.0 / covariance[0, 0]) < 0.7 * float(wanted)


def test_given_draws_must_be_the_same_draws():
    draws = gaussian_draws(torch.eye(2).double(), 20, 50)
    with pytest.raises(ValueError, match=r"same draws \[20, 50\], got \[20, 49, 1\]"):
        sgdvi.fit_potential(draws[..., :1], 1.0, given=draws[:, 1:, 1:], num_centers=12)


def test_score_matching_system_by_autograd():
    """The normal equations hold the mean squared slopes and Laplacians of the features."""
    from particlevi.sgdvi import score_matching as module

    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    centers = torch.randn(3, 2, generator=generator, dtype=torch.float64)

    def features(point):
        return module.features(point[None], centers, 0.7)[0]

    slope, second = module.derivatives(z, centers, 0.7)
    for k, point in enumerate(z):
        jacobian = torch.func.jacrev(features)(point)
        hessian = torch.func.jacrev(torch.func.jacrev(features))(point)
        assert torch.allclose(slope[k].T, jacobian, atol=1e-12)
        assert torch.allclose(second[k].T, torch.einsum("kii->ki", hessian), atol=1e-12)


def test_projection_is_the_marginal_potential():
    covariance = torch.tensor([[2.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 0.1]]).double()
    draws = gaussian_draws(covariance, 50, 400)
    found = sgdvi.project(draws, 2.0, torch.eye(3)[:, :1].double())
    x = found.axes[0] + found.origin[0]
    density = torch.from_numpy(norm(0, 2**0.5).pdf(x.numpy()))
    inner = x.abs() < 3
    wanted = -2.0 * density.log()
    error = (found.potential - wanted)[inner]
    error -= error.mean()
    assert (error.abs() / found.standard_error[inner]).max() < 6
    assert float(found.density.sum() * (x[1] - x[0])) == pytest.approx(1, abs=1e-3)
    plane = sgdvi.project(draws, 2.0)
    assert plane.density.shape == (81, 81)
    first = plane.directions[:, 0]
    top = torch.linalg.eigh(covariance)[1][:, -1]
    assert abs(float(first @ top)) > 0.999
    assert plane.coordinates[..., 0].var() > plane.coordinates[..., 1].var()


def test_projection_is_a_kernel_estimate_with_its_error():
    draws = gaussian_draws(torch.eye(3).double(), 40, 50) * torch.tensor([1.0, 2.0, 0.5])
    draws = draws + torch.tensor([10.0, -20.0, 30.0])
    axis = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    found = sgdvi.project(draws, 2.0, axis, num_grid=1281)
    flat = draws[..., 1].flatten() - draws[..., 1].mean()
    width = 0.6 * flat.std() * 2000 ** (-1 / 5)

    def estimate(width):
        shift = (found.axes[0][:, None] - flat) / width
        return torch.exp(-0.5 * shift**2).sum(1) / (2000 * width * (2 * torch.pi) ** 0.5)

    wanted = 2 * estimate(width) - estimate(2**0.5 * width)
    high = wanted > 0.05 * wanted.max()
    assert torch.allclose(found.density[high], wanted[high], rtol=0.02)
    assert torch.allclose(found.potential[high], -2 * (wanted / wanted.max()).log()[high], atol=0.1)
    # Var of the estimate at x is f(x) R / (n h), R the kernel's square integral; Phi = -T log f.
    square = (4 - 4 * (2 / 3) ** 0.5 + 0.5**0.5) / (2 * torch.pi**0.5)
    error = 2 * (square / (wanted * 2000 * width)).sqrt()
    assert torch.allclose(found.standard_error[high].mean(), error[high].mean(), rtol=0.35)
    # The mean is taken off, before directions too: most variance lies along the second axis.
    assert abs(float(sgdvi.principal_directions(draws, 1)[1, 0])) > 0.99


def test_factor_between_potential_and_loss_has_its_error():
    factors, errors = [], []
    for seed in range(30):
        draws = gaussian_draws(torch.eye(1).double(), 20, 20, seed)
        phi = sgdvi.gaussian_potential(draws, 1.0)
        points = sgdvi.line(torch.tensor([-1.0]).double(), torch.tensor([1.0]).double())
        found = sgdvi.compare_potentials(points, phi, lambda x: x[:, 0] ** 2 / 2)
        factors.append(found.scale)
        errors.append(found.scale_error)
    factors, errors = torch.tensor(factors), torch.tensor(errors)
    assert abs(factors.mean() - 1) < 5 * factors.std() / 30**0.5 + 0.01
    assert float(errors.mean()) == pytest.approx(float(factors.std()), rel=0.5)
    fitted = sgdvi.fit_potential(gaussian_draws(torch.eye(1).double(), 20, 100), 1.0, num_centers=9)
    found = sgdvi.compare_potentials(points, fitted, lambda x: x[:, 0] ** 2 / 2)
    assert 0.02 < found.scale_error < 0.3
    assert abs(found.scale - 1) < 5 * found.scale_error


def test_slices_and_where_they_disagree():
    a, b, c = (torch.tensor(v, dtype=torch.float64) for v in ([0.0, 0], [1.0, 0], [0.0, 2]))
    points = sgdvi.line(a, b, num=5, margin=0.5)
    assert points[:, 0].tolist() == [-0.5, 0.0, 0.5, 1.0, 1.5]
    square = sgdvi.plane(a, b, c, num=3, margin=0.0)
    assert square[1, 2].tolist() == [0.5, 2.0]

    def bump(x):
        return x.square().sum(-1) + (x - c).square().sum(-1).mul(-50).exp()

    found = sgdvi.compare_potentials(square, bump, lambda x: 0.5 * x.square().sum(-1))
    assert found.worst == (0, 2)
    assert found.scale == pytest.approx(2, abs=0.3)
    exact = sgdvi.compare_potentials(points, lambda x: 3 * x[..., 0] ** 2, lambda x: x[:, 0] ** 2)
    assert exact.scale == pytest.approx(3)
    assert exact.agreement == pytest.approx(1)
    assert exact.disagreement.abs().max() < 1e-12
    axis = torch.tensor([[1.0], [0.0]])
    along = sgdvi.compare_potentials(
        points, lambda x: x[..., 0] ** 2, lambda x: x[:, 0] ** 2, directions=axis, origin=b
    )
    assert along.potential[3] == 0
    assert along.loss[1] == 0


def test_phi_of_a_net_of_two_weights_is_that_of_its_histogram():
    """``y = w_2 tanh(w_1 x)`` by SGD on single data, whose Phi is not the loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, generator=generator, dtype=F64)
    y = torch.tanh(1.5 * x) + 0.5 * torch.randn(50, generator=generator, dtype=F64)

    def log_likelihood(w, data):
        return -0.5 * (w[:, 1:] * torch.tanh(w[:, :1] * data[..., 0]) - data[..., 1]) ** 2

    model = pvi.from_log_likelihood(
        lambda w: -1.25 * w.square().sum(1), log_likelihood, 2, 50, vectorized=True, dtype=F64
    )
    data, start = torch.stack([x, y], 1), torch.ones(1000, 2, dtype=F64)
    draws = pvi.sample(
        pvi.sgd(model), data, step_size=0.01, batch_size=1, initial=start, num_warmup=300,
        num_draws=60, thin=10, progress=False,
    ).particles  # fmt: skip
    temperature = pvi.noise.temperature(0.5, 1)
    phi = sgdvi.fit_potential(draws[:200], temperature)
    count, edges = torch.histogramdd(draws.flatten(0, 1).cpu(), 24)
    axes = torch.meshgrid(*((e[1:] + e[:-1]) / 2 for e in edges), indexing="ij")
    often = count.flatten() > 100
    points = torch.stack(axes, -1).flatten(0, 1)[often]
    wanted = -temperature * count.flatten()[often].log()
    loss = sgdvi.mean_loss(model, data)(points)
    assert len(points) > 100
    assert float(torch.corrcoef(torch.stack([phi(points), wanted]))[0, 1]) > 0.99
    assert float(torch.corrcoef(torch.stack([loss, wanted]))[0, 1]) < 0.8


def test_mean_loss_is_the_potential_over_n():
    x = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
    model = pvi.from_module(torch.nn.Linear(1, 1), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=20)
    theta = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    loss = sgdvi.mean_loss(model, (x, x), chunk_size=2)
    assert torch.allclose(loss(theta), model(theta, pvi.typing.Batch((x, x))) / 20)


def test_short_runs_say_so():
    drifting = autoregression(1, 400, 0.5) + torch.linspace(0, 3, 400)[None, :, None]
    with pytest.warns(sgdvi.NotStationaryWarning, match="too short"):
        found = sgdvi.gaussian_potential(drifting, 1.0)
    assert found.stationary is False
    # A step of less than a standard deviation shows in the means of batches.
    step = 0.8 * (torch.arange(400) >= 200)[None, :, None]
    with pytest.warns(sgdvi.NotStationaryWarning, match="standard errors"):
        assert not sgdvi.is_stationary(autoregression(1, 400, 0.0) + step)
    shrinking = gaussian_draws(torch.eye(2).double(), 100, 50)
    shrinking = shrinking * torch.linspace(2, 1, 50)[None, :, None]
    with pytest.warns(sgdvi.NotStationaryWarning):
        assert sgdvi.fit_potential(shrinking, 1.0, num_centers=20).stationary is False
    # Chains that drift in different ways have the same law on average, and nothing to say of one.
    spread = gaussian_draws(torch.eye(2).double(), 16, 1)
    drifting = autoregression(16, 400, 0.5) + spread * torch.linspace(-2, 2, 400)[None, :, None]
    with pytest.warns(sgdvi.NotStationaryWarning, match="a coordinate moves by"):
        assert not sgdvi.is_stationary(drifting)
    # A memory of an eighth of the run is too long, a hundredth is not.
    with pytest.warns(sgdvi.NotStationaryWarning, match="a coordinate moves by"):
        assert not sgdvi.is_stationary(autoregression(16, 400, 0.98))
    assert sgdvi.is_stationary(autoregression(16, 400, 0.75))


def test_false_alarms_about_stationarity_are_rare():
    # 300 honest runs at level 1e-3: Poisson with mean 0.3, of an ensemble and of single runs.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(150):
            sgdvi.is_stationary(gaussian_draws(torch.eye(3).double(), 20, 60, seed))
            sgdvi.is_stationary(gaussian_draws(torch.eye(3).double(), 1, 60, seed))
    assert len(caught) <= 3


@pytest.mark.parametrize("function", [sgdvi.gaussian_potential, sgdvi.fit_potential, sgdvi.project])
def test_bad_input(function):
    good = gaussian_draws(torch.eye(2).double(), 50, 50)
    with pytest.raises(ValueError, match="temperature"):
        function(good, 0.0)
    with pytest.raises(ValueError, match="finite"):
        function(good / 0, 1.0)
    with pytest.raises(ValueError, match=r"\[P, T, D\]"):
        function(good[0, 0], 1.0)
    potential = pvi.from_log_density(lambda theta: -theta.square().sum(), num_params=1)
    stein = pvi.sample(pvi.svgd(potential), step_size=0.1, num_particles=5, num_draws=3)
    with pytest.raises(ValueError, match="interact"):
        function(stein, 1.0)


def test_too_few_draws_for_a_fit():
    with pytest.raises(ValueError, match="at least"):
        sgdvi.fit_potential(gaussian_draws(torch.eye(2).double(), 8, 10), 1.0)
    still = gaussian_draws(torch.eye(2).double(), 50, 50)
    still[..., 1] = 3.0
    with pytest.raises(ValueError, match="do not move"):
        sgdvi.fit_potential(still, 1.0, num_centers=20)


@pytest.mark.parametrize("factor", [0.0, 0.8])
def test_the_inverse_is_not_too_large(factor):
    """20 dimensions from 100 draws: uncorrected, the Hessian is 1.27 times too large."""
    found, scores = [], []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x, kept = torch.randn(20, 20, generator=generator, dtype=torch.float64), []
        for _ in range(5 if factor == 0 else 20):
            xi = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = factor * x + (1 - factor**2) ** 0.5 * xi
            kept.append(x)
        phi = sgdvi.gaussian_potential(torch.stack(kept, 1), 1.0)
        found.append(phi.hessian.diagonal())
        scores.append((phi.hessian.diagonal() - 1) / phi.standard_error.diagonal())
    assert float(torch.stack(found).mean()) == pytest.approx(1, abs=0.03)
    assert 0.8 < float(torch.stack(scores).std()) < 1.2


def double_well_draws(seed, count):
    """Independent draws of ``exp(-3 (x^2 - 1)^2 / 4)`` and its density ``[4001]`` on a grid."""
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    density = torch.exp(-0.75 * (x**2 - 1) ** 2)
    total = density.cumsum(0)
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    index = torch.searchsorted(total, uniform * total[-1]).clamp(max=4000)
    jitter = torch.rand(count, generator=torch.Generator().manual_seed(seed + 999)) - 0.5
    return x[index] + jitter * (x[1] - x[0]), density / (total[-1] * (x[1] - x[0]))


@pytest.mark.parametrize("shape", ["normal", "double well"])
@pytest.mark.parametrize("count", [1000, 20_000])
def test_projections_error_covers(shape, count):
    """The standardised error of the density has sd 1: no smoothing bias is left out."""
    scores = []
    for seed in range(20):
        if shape == "normal":
            flat = torch.randn(count, generator=torch.Generator().manual_seed(seed)).double()
        else:
            flat, density = double_well_draws(seed, count)
        found = sgdvi.project(flat.view(50, -1, 1), 1.0, torch.eye(1))
        x = found.axes[0] + found.origin[0]
        if shape == "normal":
            wanted = torch.from_numpy(norm.pdf(x.numpy()))
        else:
            wanted = density[((x + 4) / 8 * 4000).round().long().clamp(0, 4000)]
        high = wanted > 0.05 * wanted.max()
        error = (wanted.log() - found.density.log())[high]
        scores.append(error / found.standard_error[high])
    scores = torch.cat(scores)
    assert 0.85 < float(scores.std()) < 1.2
    assert float((scores.abs() > 2).double().mean()) < 0.1


def rotated_wells(size, count, seed, barrier=3.0):
    """A double well along one direction, normal along the others, turned: draws and ``Phi``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    total = torch.exp(-barrier * (x**2 - 1) ** 2).cumsum(0)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64) * total[-1]
    z = torch.randn(count, size, generator=generator, dtype=torch.float64)
    z[:, 0] = x[torch.searchsorted(total, uniform).clamp(max=60_000)]
    turn = torch.randn(size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    turn = torch.linalg.qr(turn)[0]

    def phi(points):
        inner = points @ turn
        return barrier * (inner[:, 0] ** 2 - 1) ** 2 + inner[:, 1:].square().sum(1) / 2

    return z @ turn.T, phi, turn


# In five dimensions more than 400 bumps would help still, and the warning says so.
beyond = pytest.mark.filterwarnings("ignore:The loss on draws left out still falls")


@beyond
@pytest.mark.slow
@pytest.mark.parametrize(("size", "limit"), [(1, 0.06), (2, 0.08), (3, 0.1), (5, 0.2)])
def test_the_promised_dimensions(size, limit):
    """20 000 draws of a barrier of 3 T: rms error over 95 % of the mass, and the barrier."""
    draws, wanted, turn = rotated_wells(size, 20_000, 0)
    phi = sgdvi.fit_potential(draws.view(100, -1, size), 1.0)
    points, _, _ = rotated_wells(size, 4000, 1)
    true = wanted(points)
    points = points[true < true.quantile(0.95)]
    error = phi(points) - wanted(points)
    error -= error.mean()
    assert error.square().mean().sqrt() < limit
    ends = torch.zeros(2, size, dtype=torch.float64)
    ends[1, 0] = 1
    again = phi.resampled(ends @ turn.T)
    barrier = phi(ends @ turn.T)
    spread = float((again[:, 0] - again[:, 1]).std())
    assert abs(float(barrier[0] - barrier[1]) - 3) < 4 * spread + 0.05


@beyond
@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_the_bands_cover(size):
    """The standardised error has a root mean square of 1.

    That of one run varies by .25, so that 16 runs, as this once took, tell it to .06 only.
    """
    scores = []
    for seed in range(60):
        draws, wanted, _ = rotated_wells(size, 4000, seed, barrier=1.0)
        phi = sgdvi.fit_potential(draws.view(50, -1, size), 1.0, num_bootstrap=40)
        points = rotated_wells(size, 300, 10_000 + seed, barrier=1.0)[0]
        points = points[wanted(points) < wanted(points).quantile(0.9)]
        error, again = phi(points) - wanted(points), phi.resampled(points)
        error, again = error - error.mean(), again - again.mean(1, keepdim=True)
        scores.append(error / again.std(0))
    assert 0.9 < float(torch.cat(scores).square().mean().sqrt()) < 1.1


def test_more_unknowns_than_the_data_bear_are_not_taken():
    draws = rotated_wells(2, 400, 0)[0].view(20, 20, 2)
    phi = sgdvi.fit_potential(draws, 1.0, num_bootstrap=2)
    assert len(phi.centers) + 5 <= 400 * 2 // 10


def test_a_choice_at_the_edge_warns():
    """Ridges from 0.1 only: a smaller one would still help."""
    from particlevi.errors import ParticleviWarning
    from particlevi.sgdvi import fitted_potential as module

    draws = rotated_wells(1, 2000, 0, barrier=6.0)[0].view(20, 100, 1)
    edges = {"_WIDTHS": (1.8, 2.7), "_RIDGES": (1e-1, 1.0, 10.0)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in edges.items():
            patch.setattr(module, name, value)
        with pytest.warns(ParticleviWarning, match=r"ridge 0\.1"):
            sgdvi.fit_potential(draws, 1.0, num_bootstrap=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgdvi.fit_potential(draws, 1.0, num_bootstrap=2)
