"""The divergence of the stationary flow: its error bar, its p-value and its verdict."""

import math

import pytest
import torch

from particlevi import sgdvi
from tests.sgdvi import double_well
from tests.sgdvi.test_effective_potential import gaussian_draws

F = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
C = torch.diag(torch.tensor([4.0, 0.5], dtype=torch.float64))
LAW = sgdvi.stationary_law(F, C, learning_rate=0.05, batch_size=8)


def grid(num: int = 3) -> torch.Tensor:
    axis = torch.linspace(-1.5, 1.5, num, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return points @ torch.linalg.cholesky(LAW.covariance).T


def decomposed(seed: int, factor: float = 1.0, chains: int = 40):
    draws = gaussian_draws(LAW.covariance, chains, 25, seed)
    phi = sgdvi.gaussian_potential(draws, LAW.temperature)
    return sgdvi.decompose_drift(grid(), lambda x: -factor * x @ F.T, phi, C, LAW.temperature)


def test_a_right_fit_is_consistent_and_a_wrong_drift_is_not():
    right, wrong = decomposed(0), decomposed(0, factor=1.3)
    assert right.verdict == "consistent"
    assert wrong.verdict == "inconsistent"
    assert right.imbalance < 0.05
    assert wrong.imbalance > 0.1


def test_a_known_potential_is_judged_without_errors():
    potentials = {
        "consistent": LAW.potential,
        "inconsistent": lambda x: 0.5 * ((x @ F) * x).sum(-1),
    }
    for verdict, phi in potentials.items():
        found = sgdvi.decompose_drift(grid(), lambda x: -x @ F.T, phi, C, LAW.temperature)
        assert found.verdict == verdict
        assert math.isnan(found.p_value)
        assert torch.isnan(found.standard_error).all()
    # The loss in place of Phi, as Phi = f / k of isotropic noise would be.
    assert found.imbalance > 0.1


def test_a_fit_that_is_known_too_little_is_unknown():
    draws = gaussian_draws(LAW.covariance, 10, 2, 1)
    phi = sgdvi.gaussian_potential(draws, LAW.temperature)
    found = sgdvi.decompose_drift(grid(), lambda x: -x @ F.T, phi, C, LAW.temperature)
    assert found.verdict == "unknown"


@pytest.mark.slow
def test_errors_and_level_over_seeds():
    runs = [decomposed(seed) for seed in range(150)]
    scores = torch.stack([run.flow_divergence / run.standard_error for run in runs])
    assert 0.85 < float(scores.std()) < 1.2
    rejected = sum(run.p_value <= 0.05 for run in runs)
    # 7.5 are expected, with a standard deviation of 2.7.
    assert rejected <= 16


@pytest.mark.slow
def test_a_fitted_double_well_is_told_from_a_wrong_one():
    strength = 0.5
    draws = double_well.simulate(strength, 2000, draws=10, thin=50)
    points = draws[::400, 0]
    phi = sgdvi.fit_potential(draws, temperature=1.0)
    right, wrong = (
        sgdvi.decompose_drift(points, drift, phi, torch.eye(2).double(), 1.0)
        for drift in (
            lambda x: double_well.drift(x, strength),
            lambda x: 1.5 * double_well.drift(x, strength),
        )
    )
    assert right.imbalance < 0.5 * wrong.imbalance
    assert wrong.verdict == "inconsistent"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(2)}, "points"),
        ({"drift": lambda x: x[:, 0]}, "drift must map"),
        ({"potential": lambda x: x}, "potential must map"),
        ({"diffusion": torch.eye(3)}, "diffusion"),
        ({"temperature": 0.0}, "temperature"),
        ({"potential": lambda x: x[:, 0] / 0}, "finite"),
    ],
)
def test_bad_input(change, message):
    arguments = {"points": grid(), "drift": lambda x: -x, "potential": LAW.potential}
    arguments |= {"diffusion": C, "temperature": 1.0} | change
    with pytest.raises(ValueError, match=message):
        sgdvi.decompose_drift(**arguments)
