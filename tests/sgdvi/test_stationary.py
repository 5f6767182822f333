import itertools
import math

import pytest
import scipy.linalg
import torch

import particlevi as pvi
from particlevi import sgdvi


def spd(size: int, seed: int, lowest: float = 0.2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return a @ a.T / size + lowest * torch.eye(size, dtype=torch.float64)


def simulate(f, c, eta, b, momentum, replicas, steps, seed):
    """Positions after warm-up, with the moments averaged over steps and replicas."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(c / b)
    x = torch.zeros(replicas, len(f), dtype=torch.float64)
    v = torch.zeros_like(x)
    warmup = steps // 5
    moment, lagged = torch.zeros_like(f), torch.zeros_like(f)
    for k in range(steps):
        xi = torch.randn(x.shape, generator=generator, dtype=torch.float64) @ root.T
        before = x
        v = momentum * v + x @ f.T + xi
        x = x - eta * v
        if k >= warmup:
            moment += x.T @ x
            lagged += x.T @ before
    count = replicas * (steps - warmup)
    return moment / count, lagged / count


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("size", [3, 10, 50])
@pytest.mark.parametrize("symmetric", [True, False])
def test_identities(size, symmetric):
    f, c = spd(size, 1), spd(size, 2)
    if not symmetric:
        skew = torch.randn(size, size, generator=torch.Generator().manual_seed(3)).double()
        f = f + 0.3 * (skew - skew.T)
    assert (f @ c - c @ f).norm() > 0.1
    law = sgdvi.stationary_law(f, c, learning_rate=0.05, batch_size=8)
    s, u, q, t = law.covariance, law.potential_hessian, law.circulation, 0.05 / 16
    assert law.temperature == pytest.approx(t, rel=1e-15)
    scale = f.norm() * s.norm()
    assert (f @ s + s @ f.T - 2 * t * c).norm() < 1e-10 * scale
    assert (u @ s - t * torch.eye(size, dtype=s.dtype)).norm() < 1e-10 * t
    assert torch.equal(q, -q.T)
    assert relative((c + q) @ u, f) < 1e-10
    g = f @ s / t
    assert relative((g + g.T) / 2, c) < 1e-10
    assert relative(g @ f.T, f @ g.T) < 1e-10
    # The current is free of divergence and runs along the level lines of the potential.
    flow = -q @ u
    assert abs(flow.trace()) < 1e-10 * flow.norm()
    x = torch.randn(7, size, generator=torch.Generator().manual_seed(4)).double()
    current = law.current(x)
    assert torch.allclose(current, x @ flow.T, atol=1e-12)
    assert ((current * (x @ u)).sum(-1)).abs().max() < 1e-10 * current.norm() * u.norm()
    assert torch.allclose(law.potential(x), 0.5 * ((x @ u) * x).sum(-1), rtol=1e-12)
    # Entropy production: the mean of v (TC)^-1 v for the velocity v = j.
    direct = torch.trace(torch.linalg.inv(t * c) @ flow @ s @ flow.T)
    assert law.entropy_production() == pytest.approx(float(direct), rel=1e-9)
    assert law.irreversibility == pytest.approx(float(q.norm() / c.norm()), rel=1e-12)


def test_potential_depends_on_neither_rate_nor_batch_size():
    f, c = spd(4, 1), spd(4, 2)
    a = sgdvi.stationary_law(f, c, learning_rate=0.05, batch_size=8)
    b = sgdvi.stationary_law(f, c, learning_rate=0.001, batch_size=100)
    assert relative(a.potential_hessian, b.potential_hessian) < 1e-10
    assert relative(a.circulation, b.circulation) < 1e-10


def test_reversible_if_and_only_if_the_matrices_commute():
    f = spd(5, 1)
    assert sgdvi.stationary_law(f, f @ f, learning_rate=0.1, batch_size=2).irreversibility < 1e-13
    law = sgdvi.stationary_law(f, torch.eye(5) * 3, learning_rate=0.1, batch_size=2)
    assert relative(law.potential_hessian, f / 3) < 1e-12
    assert (
        sgdvi.stationary_law(f, spd(5, 2), learning_rate=0.1, batch_size=2).irreversibility > 0.05
    )


def test_three_scalings_give_one_covariance():
    f, c, eta, b = spd(6, 1), spd(6, 2), 0.03, 16
    level = pvi.noise.scalings(eta, b)
    covariances = [
        sgdvi.ou_covariance(f, 2 * level.chaudhari_soatto * c),
        sgdvi.ou_covariance(f, level.ziyin * c),
        sgdvi.ou_covariance(eta * f, level.mandt * c),
        sgdvi.stationary_law(f, c, learning_rate=eta, batch_size=b).covariance,
    ]
    wanted = torch.from_numpy(
        scipy.linalg.solve_continuous_lyapunov(f.numpy(), (eta / b * c).numpy())
    )
    for found in covariances:
        assert relative(found, wanted) < 1e-10


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_exact_law_solves_the_recursion(momentum):
    f, c, eta, b = spd(6, 1), spd(6, 2), 0.2, 4
    law = sgdvi.exact_law(f, c, learning_rate=eta, batch_size=b, momentum=momentum)
    one, zero = torch.eye(6, dtype=torch.float64), torch.zeros(6, 6, dtype=torch.float64)
    # By torch.optim.SGD's own order: v' = m v + g, x' = x - eta v'.
    step = torch.cat(
        [torch.cat([one - eta * f, -eta * momentum * one], 1), torch.cat([f, momentum * one], 1)]
    )
    kick = torch.cat([torch.cat([eta * eta * c, -eta * c], 1), torch.cat([-eta * c, c], 1)]) / b
    joint = torch.cat([torch.cat([zero, zero], 1)] * 2)
    for _ in range(4000):
        joint = step @ joint @ step.T + kick
    s = joint[:6, :6]
    assert relative(law.covariance, s) < 1e-10
    lagged = (step @ joint)[:6, :6]
    time = eta / (1 - momentum)
    q = (lagged.T - lagged) / (2 * law.temperature * time)
    assert relative(law.circulation, q) < 1e-9
    if momentum == 0:
        wanted = scipy.linalg.solve_discrete_lyapunov((one - eta * f).numpy(), (eta**2 * c / b))
        assert relative(law.covariance, torch.from_numpy(wanted)) < 1e-10
        assert relative(law.circulation, (f @ s - s @ f) / (2 * law.temperature)) < 1e-9


def test_exact_law_tends_to_the_small_rate_law_with_first_order():
    f, c = spd(4, 1), spd(4, 2)
    errors = []
    for eta in (0.04, 0.02, 0.01):
        settings = {"learning_rate": eta, "batch_size": 4}
        small = sgdvi.stationary_law(f, c, **settings).covariance
        errors.append(relative(sgdvi.exact_law(f, c, **settings).covariance, small))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(order - 1) < 0.03 for order in orders)


def test_momentum_trace_identity():
    # tr(F S) -> eta tr(C) / (2 b (1 - m)) as the rate goes to 0 at fixed momentum.
    f, c = spd(4, 1), spd(4, 2)
    law = sgdvi.exact_law(f, c, learning_rate=1e-5, batch_size=4, momentum=0.8)
    wanted = 1e-5 / (2 * 4 * 0.2) * c.trace()
    assert float((f @ law.covariance).trace() / wanted) == pytest.approx(1, abs=1e-4)


def test_weight_decay_moves_mean_and_curvature():
    f, c, minimum = spd(3, 1), spd(3, 2), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    law = sgdvi.stationary_law(
        f, c, learning_rate=0.1, batch_size=2, weight_decay=0.3, minimum=minimum
    )
    decayed = f + 0.3 * torch.eye(3, dtype=f.dtype)
    plain = sgdvi.stationary_law(decayed, c, learning_rate=0.1, batch_size=2)
    assert relative(law.covariance, plain.covariance) < 1e-12
    gradient = f @ (law.mean - minimum) + 0.3 * law.mean
    assert gradient.norm() < 1e-12
    assert float(law.potential(law.mean)) == 0.0


def test_null_directions_are_reported():
    f = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    c = torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    law = sgdvi.stationary_law(f, c, learning_rate=0.1, batch_size=2)
    assert law.rank == 2
    assert law.null_directions.abs().flatten().tolist() == pytest.approx([0, 1, 0])
    assert torch.isinf(law.potential(torch.tensor([0.0, 1.0, 0.0])))
    assert float(law.potential(torch.tensor([1.0, 0.0, 0.0]))) == pytest.approx(0.5)
    # A noise of rank 1 that is not an eigenvector of the Hessian moves every direction.
    one = torch.ones(3, dtype=torch.float64)
    full = sgdvi.stationary_law(f, torch.outer(one, one), learning_rate=0.1, batch_size=2)
    assert full.rank == 3


def test_batches_without_replacement():
    f, c = spd(3, 1), spd(3, 2)
    settings = {"learning_rate": 0.1, "batch_size": 10, "num_data": 40}
    with_, without = (
        sgdvi.stationary_law(f, c, batching=batching, **settings)
        for batching in ("replacement", "subset")
    )
    assert relative(without.covariance, with_.covariance * 30 / 39) < 1e-12
    with pytest.raises(ValueError, match="no noise"):
        sgdvi.stationary_law(f, c, batching="subset", learning_rate=0.1, batch_size=4, num_data=4)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_simulated_sgd_has_the_exact_law(momentum):
    f, c, eta, b = spd(3, 1), 4 * spd(3, 7, 0.05), 0.05, 8
    law = sgdvi.exact_law(f, c, learning_rate=eta, batch_size=b, momentum=momentum)
    moment, lagged = simulate(f, c, eta, b, momentum, 4000, 3000, seed=0)
    assert relative(moment, law.covariance) < 0.01
    q = (lagged.T - lagged) / (2 * law.temperature * eta / (1 - momentum))
    assert relative(q, law.circulation) < 0.03
    small = sgdvi.stationary_law(f, c, learning_rate=eta, batch_size=b)
    assert law.irreversibility > 0.1
    if momentum == 0:
        assert relative(moment, small.covariance) < 0.1


def test_optimal_rate_is_where_the_divergence_is_least():
    f, c, n, b = spd(4, 1), spd(4, 2), 1000, 10
    best = sgdvi.optimal_rate(c, num_data=n, batch_size=b)
    assert best == pytest.approx(2 * b * 4 / (n * float(c.trace())), rel=1e-14)

    def kl(rates):
        return sgdvi.kl_to_posterior(f, c, num_data=n, learning_rates=rates, batch_size=b)

    # The derivative in log(rate) is (N eta tr(C)/(2b) - D) / 2: a central difference of
    # KL(eta e^d) - KL(eta e^-d) is then exact.
    d = 0.1
    up, low = kl(torch.tensor([best * math.exp(d), best * math.exp(-d)], dtype=torch.float64))
    assert float(up - low) == pytest.approx(4 / 2 * (2 * math.sinh(d) - 2 * d), rel=1e-8)
    grid = best * torch.linspace(0.5, 1.5, 101, dtype=torch.float64)
    assert int(kl(grid).argmin()) == 50
    assert sgdvi.optimal_rate(c.diagonal(), num_data=n, batch_size=b, momentum=0.9) == (
        pytest.approx(0.1 * best, rel=1e-14)
    )


def test_optimal_preconditioner_gives_the_posterior():
    f, c, n, b = spd(4, 1), spd(4, 2), 1000, 10
    h = sgdvi.optimal_preconditioner(c, num_data=n, batch_size=b)
    law = sgdvi.stationary_law(h @ f, h @ c @ h.T, learning_rate=1.0, batch_size=b)
    assert relative(law.covariance, torch.linalg.inv(n * f)) < 1e-10
    one = torch.ones(1)
    settings = {"num_data": n, "learning_rates": one, "batch_size": b}
    assert abs(float(sgdvi.kl_to_posterior(f, c, preconditioner=h, **settings))) < 1e-10


def test_optimal_diagonal_preconditioner():
    n, b = 1000, 10
    f, c = torch.diag(spd(4, 1).diagonal()), torch.diag(spd(4, 2).diagonal())
    h = sgdvi.optimal_preconditioner(c, num_data=n, batch_size=b, diagonal=True)
    settings = {"num_data": n, "learning_rates": torch.ones(1), "batch_size": b}
    assert abs(float(sgdvi.kl_to_posterior(f, c, preconditioner=h, **settings))) < 1e-10
    # With matrices that are not diagonal it is no longer the best, but better than one rate.
    f, c = spd(4, 1), spd(4, 2) * torch.outer(torch.arange(1, 5), torch.arange(1, 5))
    h = sgdvi.optimal_preconditioner(c, num_data=n, batch_size=b, diagonal=True)
    rate = sgdvi.optimal_rate(c, num_data=n, batch_size=b)
    one_rate = sgdvi.kl_to_posterior(f, c, **settings | {"learning_rates": torch.tensor([rate])})
    assert sgdvi.kl_to_posterior(f, c, preconditioner=h, **settings) < 0.5 * one_rate


def test_exact_divergence_is_infinite_beyond_stability_and_agrees_at_small_rates():
    f, c = spd(3, 1), spd(3, 2)
    limit = 2 / float(torch.linalg.eigvalsh(f).max())
    rates = torch.tensor([1e-6, 1.01 * limit], dtype=torch.float64)
    settings = {"num_data": 100, "learning_rates": rates, "batch_size": 10}
    exact = sgdvi.kl_to_posterior(f, c, exact=True, **settings)
    small = sgdvi.kl_to_posterior(f, c, **settings)
    assert torch.isinf(exact[1])
    assert float(exact[0]) == pytest.approx(float(small[0]), rel=1e-6)


def test_effective_temperatures():
    f = spd(4, 1)
    values = torch.linalg.eigvalsh(f)
    law = sgdvi.stationary_law(f, 3 * f, learning_rate=0.01, batch_size=5)
    found = sgdvi.effective_temperatures(law.covariance, f, num_data=200)
    assert torch.allclose(found, 200 * values * 3 * 0.01 / 10, rtol=1e-10)
    assert torch.isnan(sgdvi.effective_temperatures(f, -f, num_data=2)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hessian": torch.zeros(2, 3)}, r"\[D, D\]"),
        ({"hessian": torch.eye(3)}, "one size"),
        ({"hessian": torch.diag(torch.tensor([1.0, -1.0]))}, "no stationary law"),
        ({"noise": torch.tensor([[1.0, 1.0], [0.0, 1.0]])}, "not symmetric"),
        ({"noise": -torch.eye(2)}, "covariance"),
        ({"noise": torch.tensor([[torch.nan, 0.0], [0.0, 1.0]])}, "finite"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"minimum": torch.zeros(3)}, "minimum"),
        ({"batching": "subset"}, "num_data"),
        ({"batching": "epoch", "num_data": 10}, "epoch_law"),
        ({"momentum": 1.0}, "momentum"),
    ],
)
@pytest.mark.parametrize("function", [sgdvi.stationary_law, sgdvi.exact_law])
def test_bad_input(function, change, message):
    arguments = {"hessian": torch.eye(2), "noise": torch.eye(2)}
    arguments |= {"learning_rate": 0.1, "batch_size": 2} | change
    with pytest.raises(ValueError, match=message):
        function(arguments.pop("hessian"), arguments.pop("noise"), **arguments)


def test_unstable_rate_is_refused():
    with pytest.raises(ValueError, match="Lower learning_rate"):
        sgdvi.exact_law(torch.eye(2), torch.eye(2), learning_rate=2.1, batch_size=1)


def test_momentum_enters_the_small_rate_law_by_the_temperature():
    f, c = spd(3, 1), spd(3, 2)
    law = sgdvi.stationary_law(f, c, learning_rate=1e-3, batch_size=4, momentum=0.9)
    assert law.temperature == pytest.approx(1e-3 / (2 * 4 * 0.1), rel=1e-12)
    # The discrete law tends to it as the rate falls.
    exact = sgdvi.exact_law(f, c, learning_rate=1e-5, batch_size=4, momentum=0.9)
    assert relative(exact.covariance * 100, law.covariance) < 1e-2
    assert exact.temperature == pytest.approx(law.temperature / 100, rel=1e-12)
    kl = {"num_data": 100, "learning_rates": torch.tensor([1e-4]), "batch_size": 4}
    small, discrete = (
        float(sgdvi.kl_to_posterior(f, c, momentum=0.9, exact=exact, **kl))
        for exact in (False, True)
    )
    assert small == pytest.approx(discrete, rel=1e-3)


def test_one_temperature_for_every_scaling():
    settings = {"momentum": 0.5, "batching": "subset", "num_data": 11}
    level = pvi.noise.temperature(0.1, 4, **settings)
    assert level == pytest.approx(0.1 / (2 * 0.5) * (11 - 4) / (11 - 1) / 4, rel=1e-14)
    found = pvi.noise.scalings(0.1, 4, **settings)
    assert found == pytest.approx((level, 2 * level, 2 * level * 0.1 / 0.5), rel=1e-14)
    with pytest.raises(ValueError, match="epoch_law"):
        pvi.noise.temperature(0.1, 4, batching="epoch", num_data=11)


def test_draws_with_momentum_give_the_potential_of_theory():
    """Simulated SGD with momentum, its temperature by ``temperature``."""
    f, c, eta, b, momentum = spd(2, 1), spd(2, 2), 0.01, 8, 0.8
    law = sgdvi.exact_law(f, c, learning_rate=eta, batch_size=b, momentum=momentum)
    z = torch.randn(20_000, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = z @ torch.linalg.cholesky(law.covariance).T
    level = pvi.noise.temperature(eta, b, momentum=momentum)
    found = sgdvi.gaussian_potential(draws, level)
    wanted = sgdvi.stationary_law(f, c, learning_rate=eta, batch_size=b).potential_hessian
    assert relative(found.hessian, wanted) < 0.05


def test_entropy_production_is_infinite_where_the_current_has_no_noise():
    f = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    one = torch.ones(3, dtype=torch.float64)
    law = sgdvi.stationary_law(f, torch.outer(one, one), learning_rate=0.1, batch_size=2)
    assert law.entropy_production() == math.inf
    # As the noise in the other directions vanishes, the production grows without bound.
    produced = [
        sgdvi.stationary_law(
            f, torch.outer(one, one) + e * torch.eye(3), learning_rate=0.1, batch_size=2
        ).entropy_production()
        for e in (1e-2, 1e-4, 1e-6)
    ]
    assert produced[2] > 50 * produced[1] > 2500 * produced[0]
    # A direction that neither moves nor has noise leaves it finite.
    still = torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    law = sgdvi.stationary_law(f, still, learning_rate=0.1, batch_size=2)
    assert law.entropy_production() == 0.0
