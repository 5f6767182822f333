import math

import pytest
import torch

from particlevi import sgdvi
from tests.sgdvi import double_well
from tests.sgdvi.test_circulation import ETA, B, C, F

START = torch.tensor([0.6, -0.4], dtype=torch.float64)


def law():
    return sgdvi.stationary_law(F, C, learning_rate=ETA, batch_size=B)


def test_moments_solve_the_moment_equations():
    known = law()
    start = 0.001 * torch.eye(2, dtype=torch.float64)
    t, d = torch.tensor([0.3]), 1e-5
    here = sgdvi.moments_along(known, START, start, t)
    later = sgdvi.moments_along(known, START, start, t + d)
    step = (t + d).double() - t.double()
    mean, p = here.mean[0], here.covariance[0]
    assert torch.allclose((later.mean[0] - mean) / step, -F @ mean, atol=1e-4)
    slope = (later.covariance[0] - p) / step
    assert torch.allclose(slope, 2 * known.temperature * C - F @ p - p @ F, atol=1e-4)


def test_free_energy_falls_along_the_exact_moments():
    known = law()
    times = torch.linspace(0, 6, 200)
    moments = sgdvi.moments_along(known, START, 0.001 * torch.eye(2), times)
    kl = sgdvi.gaussian_kl(*moments, known)
    assert (kl.diff() < 0).all()
    assert kl[-1] < 1e-3 * kl[0]
    # KL by torch's own formula, and T KL = E[Phi] - T H + T log Z.
    normal = torch.distributions.MultivariateNormal
    ours = normal(moments.mean[5], moments.covariance[5])
    stationary = normal(known.mean, known.covariance)
    divergence = torch.distributions.kl_divergence(ours, stationary)
    assert float(kl[5]) == pytest.approx(float(divergence), rel=1e-10)
    u, t = known.potential_hessian, known.temperature
    energy = 0.5 * ((u * moments.covariance[5]).sum() + moments.mean[5] @ u @ moments.mean[5])
    partition = 0.5 * torch.logdet(2 * math.pi * t * torch.linalg.inv(u))
    assert torch.allclose(t * kl[5], energy - t * ours.entropy() + t * partition, rtol=1e-9)


def test_free_energy_of_an_ensemble_of_sgd():
    known = law()
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(C / B)
    x = START + 0.03 * torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    kept = [x]
    for _ in range(120):
        xi = torch.randn(x.shape, generator=generator, dtype=x.dtype) @ root.T
        x = x - ETA * (x @ F + xi)
        kept.append(x)
    runs = torch.stack(kept, 1)[:, ::8][:, [0, 1, 2, 4, 8, 15]]
    exact = sgdvi.exact_law(F, C, learning_rate=ETA, batch_size=B)
    for entropy in ("gaussian", "neighbours"):
        found = sgdvi.free_energy_along(runs, exact.potential, known.temperature, entropy=entropy)
        assert found.largest_rise < 3.5
        assert found.value[0] - found.value[-1] > 20 * found.standard_error[-1]
        # The discrete recursion's own moments, relative to the end.
        mean, p = START, 0.03**2 * torch.eye(2, dtype=torch.float64)
        step = torch.eye(2, dtype=torch.float64) - ETA * F
        for _ in range(8):
            mean, p = step @ mean, step @ p @ step + ETA**2 * C / B
        wanted = known.temperature * sgdvi.gaussian_kl(mean, p, exact)
        drop = found.value[1] - found.value[-1]
        error = found.standard_error[[1, -1]].norm()
        assert abs(drop - wanted) < 5 * error
    still = sgdvi.free_energy_along(runs[:, [-1, 0]], exact.potential, known.temperature)
    assert still.largest_rise > 10


def test_values_and_errors_of_an_ensemble_of_known_law():
    generator = torch.Generator().manual_seed(3)
    x = 2 * torch.randn(4000, 1, 2, generator=generator, dtype=torch.float64)
    entropy = 1 + math.log(2 * math.pi) + 2 * math.log(2)
    for kind in ("gaussian", "neighbours"):
        found = sgdvi.free_energy_along(x, lambda p: p.square().sum(-1), 0.5, entropy=kind)
        assert float(found.entropy[0]) == pytest.approx(entropy, abs=0.1)
        assert float(found.value[0]) == pytest.approx(
            float(found.energy[0] - 0.5 * found.entropy[0])
        )
    # Without entropy the error is that of a mean: Var |x|^2 = 64 here.
    cold = sgdvi.free_energy_along(x, lambda p: p.square().sum(-1), 1e-9, num_groups=100)
    assert float(cold.standard_error[0]) == pytest.approx(8 / 4000**0.5, rel=0.35)


def test_entropy_by_neighbours_on_a_law_that_is_no_gaussian():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4000, 1, 2, generator=generator, dtype=torch.float64) * 3
    found = sgdvi.free_energy_along(
        x, lambda p: 0 * p[..., 0], 1.0, entropy="neighbours", num_groups=10
    )
    # A uniform square loses a little at its edges.
    assert abs(found.entropy[0] - 2 * math.log(3)) < 0.06


def test_free_energy_falls_in_the_double_well_with_a_fitted_potential():
    strength = 1.5
    phi = sgdvi.fit_potential(double_well.simulate(strength, 1000, 5, 50), 1.0, num_centers=80)
    generator = torch.Generator().manual_seed(2)
    x = torch.tensor([1.0, 1.0]) + 0.2 * torch.randn(1500, 2, generator=generator).double()
    kept = [x]
    for _ in range(80):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) * (2 * 0.02) ** 0.5
        x = x + 0.02 * double_well.drift(x, strength) + noise
        kept.append(x)
    runs = torch.stack(kept, 1)[:, ::20]
    found = sgdvi.free_energy_along(runs, phi, 1.0, entropy="neighbours")
    assert found.largest_rise < 3.5
    assert found.value[0] - found.value[-1] > 10 * found.standard_error.max()


def test_bad_input():
    with pytest.raises(ValueError, match="runs"):
        sgdvi.free_energy_along(torch.zeros(5, 3, 2), lambda x: x[..., 0], 1.0)
    null = torch.diag(torch.tensor([1.0, 0.0]))
    flat = sgdvi.stationary_law(torch.eye(2), null, learning_rate=0.1, batch_size=2)
    with pytest.raises(ValueError, match="without noise"):
        sgdvi.gaussian_kl(torch.zeros(2), torch.eye(2), flat)
