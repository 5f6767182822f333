"""Particles at which a matrix of the model cannot be factorised."""

import pytest
import torch

import particlevi as pvi
from particlevi.data import as_data
from particlevi.gradients.full import full_gradient

F64 = torch.float64
POINTS = torch.tensor([[0.5, 1.0], [-0.5, 2.0], [0.2, -1.0]], dtype=F64)
BAD = torch.tensor([False, True, False])


def covariance(x):
    """Of determinant ``x_0``: positive definite where that is above 0."""
    one = torch.ones_like(x[..., 0])
    return torch.stack([one, one, one, 1 + x[..., 0]], -1).unflatten(-1, (2, 2))


def density(x):
    return -torch.linalg.cholesky(covariance(x))[..., 1, 1].log() - 0.5 * x.square().sum(-1)


def likelihood(x, y):
    return density(x)[..., None] * y


def potentials():
    for vectorized in (True, False):
        yield pvi.from_log_density(density, 2, vectorized=vectorized, dtype=F64), None
        yield (
            pvi.from_log_likelihood(
                lambda x: -x.square().sum(-1), likelihood, 2, 4, vectorized=vectorized, dtype=F64
            ),
            torch.ones(4, dtype=F64),
        )


@pytest.mark.parametrize(("potential", "data"), list(potentials()))
def test_they_alone_have_no_density(potential, data):
    found = full_gradient(potential, POINTS, as_data(data, potential))
    alone = [full_gradient(potential, p[None], as_data(data, potential)) for p in POINTS[~BAD]]
    assert (found.potential == torch.inf).tolist() == BAD.tolist()
    assert torch.equal(found.potential[~BAD], torch.cat([each.potential for each in alone]))
    torch.testing.assert_close(found.gradient[~BAD], torch.cat([each.gradient for each in alone]))


FACTORISATIONS = {
    "cholesky": lambda a: torch.linalg.cholesky(a).sum((-1, -2)),
    "cholesky by name": lambda a: torch.linalg.cholesky(input=a).sum((-1, -2)),
    "inverse": lambda a: torch.linalg.inv(a).sum((-1, -2)),
    "solution": lambda a: torch.linalg.solve(a, torch.ones_like(a[..., 0])).sum(-1),
    "singular values": lambda a: torch.linalg.svdvals(a.log()).sum(-1),
}


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("name", FACTORISATIONS)
def test_whatever_fails_fails_for_them_alone(name, vectorized):
    """At the last point the matrix is singular, not positive, and its logarithm not finite."""

    def log_density(x):
        matrix = x[..., 0, None, None] * torch.eye(2, dtype=F64) + torch.ones(2, 2, dtype=F64)
        return -FACTORISATIONS[name](matrix) - 0.5 * x.square().sum(-1)

    potential = pvi.from_log_density(log_density, 2, vectorized=vectorized, dtype=F64)
    points = torch.tensor([[0.5, 1.0], [2.0, 2.0], [-2.0, 0.0]], dtype=F64)
    found = full_gradient(potential, points, as_data(None, potential))
    alone = [full_gradient(potential, p[None], as_data(None, potential)) for p in points[:2]]
    expected = torch.cat([each.gradient for each in alone] + [torch.zeros(1, 2, dtype=F64)])
    assert found.potential[2] == torch.inf
    torch.testing.assert_close(found.potential[:2], torch.cat([each.potential for each in alone]))
    torch.testing.assert_close(found.gradient, expected)


def test_they_do_not_cost_an_evaluation_each():
    count = 0

    def counted(x):
        nonlocal count
        count += 1
        return density(x)

    potential = pvi.from_log_density(counted, 2, vectorized=True, dtype=F64)
    count = 0
    potential(POINTS.repeat(50, 1))
    assert count == 3


def test_where_all_fail_the_reason_is_told():
    potential = pvi.from_log_density(density, 2, vectorized=True, dtype=F64)
    with pytest.warns(pvi.errors.ParticleviWarning, match="factorised: linalg.cholesky"):
        assert potential(POINTS[BAD]).tolist() == [torch.inf]


def test_a_density_of_zero_for_another_reason_is_not_told_as_that():
    walls = pvi.from_log_density(
        lambda x: torch.where(x[..., 0] > 0.6, density(x), density(x) - torch.inf), 2,
        vectorized=True, dtype=F64,
    )  # fmt: skip
    assert walls(POINTS).isinf().all()


def test_a_run_goes_on_past_them():
    """``x_0`` is exponential beside 0, where there is no density."""
    potential = pvi.from_log_density(
        lambda x: 0.5 * torch.linalg.slogdet(covariance(x))[1]
        + 0 * torch.linalg.cholesky(covariance(x)).sum((-1, -2)) - 2 * x[..., 0],
        1, vectorized=True, dtype=F64,
    )  # fmt: skip
    draws = pvi.sample(
        pvi.randomized_hmc(potential, trajectory_length=0.6), step_size=0.2, num_particles=8,
        initial=torch.full((8, 1), 0.5, dtype=F64), num_warmup=200, num_draws=500, thin=3,
        progress=False,
    )  # fmt: skip
    gamma = draws.particles[..., 0]
    assert float(gamma.mean()) == pytest.approx(0.75, abs=0.06)
    assert len(draws) == 8
