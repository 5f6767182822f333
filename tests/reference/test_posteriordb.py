"""Means and variances against posteriordb's reference draws and exact values.

The whole suite needs the reference draws (stan-dev/posteriordb) as ``<data>-<model>.npz`` beside
``<data>.data.json`` in one folder::

    PARTICLEVI_POSTERIORDB=<folder> python -m pytest -m slow tests/reference -s
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import particlevi as pvi
from particlevi.diagnostics import arviz
from tests.reference import models, pyro_models
from tests.reference.models import NAMES, Files, MadeUp, Model, eight_schools, make

SAMPLERS = {
    "hmc": (lambda target: pvi.hmc(target, num_leapfrog=6), {"step_size": 0.3, "thin": 1}),
    "sghmc": (pvi.sghmc, {"step_size": 0.2, "thin": 10}),
}

# One-dimensional quadrature over sigma, beta analytic: mean and standard deviation.
EXACT = {
    "kidiq-kidscore_momiq": (
        [25.79978, 0.6099746, 18.27747],
        [5.92452, 0.0585913, 0.622714],
    ),
    "sblri-blr": (
        [0.999462, 1.000232, 1.000435, 1.001143, 1.001548, 0.964211],
        [0.000964, 0.001149, 0.000952, 0.001062, 0.001046, 0.071171],
    ),
    "sblrc-blr": (
        [0.999651, 0.998722, 0.998184, 0.998837, 0.998590, 1.042851],
        [0.000987, 0.001009, 0.001081, 0.001016, 0.000975, 0.076974],
    ),
}


def laplace(model: Model):
    """Mode and a square root of the inverse Hessian there, by damped Newton steps."""
    if model.scale is not None:
        return model.start, torch.diag(model.scale)

    def energy(u):
        return -model.log_density(u.unsqueeze(0))[0]

    u = model.start.clone()
    for _ in range(200):
        gradient, hessian = torch.func.grad(energy)(u), torch.func.hessian(energy)(u)
        values, vectors = torch.linalg.eigh(hessian)
        step = vectors @ ((vectors.T @ gradient) / values.abs().clamp(min=1e-8))
        size = 1.0
        while not energy(u - size * step) <= energy(u) and size > 1e-8:
            size *= 0.5
        u = u - size * step
        if gradient @ step < 1e-16:
            break
    covariance = torch.linalg.inv(torch.func.hessian(energy)(u))
    return u, torch.linalg.cholesky(covariance)


def draw(model: Model, sampler: str, num_draws: int = 500, chains: int = 20, at=None):
    """Quantities ``[chain, draw, K]``, sampled in coordinates in which the mode is round."""
    mode, root = laplace(model) if at is None else at
    target = pvi.from_log_density(
        lambda z: model.log_density(mode + z @ root.T),
        len(mode),
        vectorized=True,
        dtype=torch.float64,
    )
    factory, options = SAMPLERS[sampler]
    draws = pvi.sample(
        factory(target),
        num_particles=chains,
        num_warmup=300,
        num_draws=num_draws,
        progress=False,
        **options,
    )
    assert arviz.rhat(draws.particles).max() < 1.02
    return model.quantities(mode + draws.particles @ root.T).numpy()


def scores(found, truth, truth_error):
    """Differences of means of ``found [chain, draw, K]`` from the truth in combined errors."""
    error = np.sqrt(arviz.mcse(found) ** 2 + np.asarray(truth_error) ** 2)
    return (found.mean((0, 1)) - truth) / error


def compare(name, kind, found, files):
    """Means and second moments of ``found [chain, draw, K]`` within four combined errors."""
    reference = files.draws(name)
    center = reference.mean((0, 1))
    means = scores(found, center, arviz.mcse(reference))
    squares = (reference - center) ** 2
    spreads = scores((found - center) ** 2, squares.mean((0, 1)), arviz.mcse(squares))
    if name in EXACT:
        mean, sd = (np.array(values) for values in EXACT[name])
        means = scores(found, mean, np.zeros(len(mean)))
        spreads = scores((found - mean) ** 2, sd**2, np.zeros(len(mean)))
    print(f"{name:45} {kind:6} |z| mean {abs(means).max():.2f} var {abs(spreads).max():.2f}")
    assert abs(means).max() < 4
    assert abs(spreads).max() < 4


@pytest.fixture
def files():
    folder = os.environ.get("PARTICLEVI_POSTERIORDB")
    if folder is None:
        pytest.skip("PARTICLEVI_POSTERIORDB names no folder with reference draws")
    return Files(Path(folder))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("name", NAMES)
def test_against_reference_draws(name, sampler, files):
    compare(name, sampler, draw(make(name, files), sampler), files)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_pyro_models_against_reference_draws(name, files):
    found = draw(pyro_models.make(name, files), "hmc", at=laplace(make(name, files)))
    compare(name, "pyro", found, files)


@pytest.mark.parametrize("name", NAMES)
def test_pyro_models_are_the_plain_densities(name):
    """Up to a constant, in the same coordinates, with the same quantities."""
    plain, model = (module.make(name, MadeUp()) for module in (models, pyro_models))
    size = len(plain.start)
    u = 0.3 * torch.randn(5, size, generator=torch.Generator().manual_seed(1)).double()
    ours, theirs = plain.log_density(u), model.log_density(u)
    torch.testing.assert_close(ours - ours[0], theirs - theirs[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(plain.quantities(u), model.quantities(u))


EIGHT_SCHOOLS = {  # mean of theta_1 ... theta_8, mu, tau; the errors of the last two
    "theta": [6.1505, 4.9396, 3.9059, 4.7960, 3.6144, 4.0511, 6.3172, 4.8840],
    "theta_sd": [5.61586, 4.64558, 5.28071, 4.77094, 4.61472, 4.79625, 5.00286, 5.31769],
    "mu": (4.41052, 0.0330, 30.403),
    "tau": (3.60206, 0.0319, 23.204),
}


Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)


def test_eight_schools():
    found = draw(eight_schools(Y, SIGMA), "hmc", num_draws=250)
    sd = np.array(EIGHT_SCHOOLS["theta_sd"])
    z = scores(found[..., :8], np.array(EIGHT_SCHOOLS["theta"]), sd / 100)
    assert abs(z).max() < 4
    for k, name in [(8, "mu"), (9, "tau")]:
        mean, error, square = EIGHT_SCHOOLS[name]
        assert abs(scores(found[..., [k]], mean, error)[0]) < 4
        spread = float(found[..., k].std() ** 2 + found[..., k].mean() ** 2)
        assert spread == pytest.approx(square, rel=0.06)


def test_a_likelihood_that_counts_twice_is_noticed():
    sigma = SIGMA / 2**0.5
    found = draw(eight_schools(Y, sigma), "hmc", num_draws=250)
    mean, error, _ = EIGHT_SCHOOLS["tau"]
    assert abs(scores(found[..., [9]], mean, error)[0]) > 4


@pytest.mark.slow
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_eight_schools_in_pyro(sampler):
    def schools():
        tilde = pyro.sample("tilde", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        theta = pyro.deterministic("theta", mu.unsqueeze(-1) + tau.unsqueeze(-1) * tilde)
        pyro.sample("y", dist.Normal(theta, SIGMA.float()).to_event(1), obs=Y.float())

    factory, options = SAMPLERS[sampler]
    draws = pvi.sample(
        factory(pvi.from_pyro(schools)),
        num_particles=20,
        num_warmup=1000,
        num_draws=1000,
        progress=False,
        **options | {"thin": 5 * options["thin"]},
    )
    found = {name: value.double().numpy() for name, value in draws.constrained().items()}
    for name in ("mu", "tau"):
        mean, error, _ = EIGHT_SCHOOLS[name]
        z = scores(found[name][..., None], mean, error)
        print(f"pyro {name:4} {sampler:6} |z| {abs(float(z[0])):.2f}")
        assert abs(z[0]) < 4
