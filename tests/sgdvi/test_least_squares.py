"""The exact law of least squares: every batch of a few data, simulation, and the stable limit."""

import itertools

import pytest
import torch

from particlevi import sgdvi
from tests.sgdvi.test_stationary import relative

F64 = torch.float64
DECAY = 0.1


def problem(num: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num, size, generator=generator, dtype=F64)
    x = x * torch.linspace(1, 2, size, dtype=F64)
    noise = torch.randn(num, generator=generator, dtype=F64)
    return x, x @ torch.linspace(-1, 1, size, dtype=F64) + noise


def batches(num: int, size: int, batching: str) -> list[tuple[int, ...]]:
    if batching == "subset":
        return list(itertools.combinations(range(num), size))
    return list(itertools.product(range(num), repeat=size))


@pytest.mark.parametrize("batching", ["replacement", "subset"])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_one_step_over_every_batch_keeps_the_moments(momentum, batching):
    """Monte-Carlo-free: the joint second moment of (x, v) is a fixed point, to rounding."""
    (x, y), eta, size = problem(4, 2), 0.05, 2
    law = sgdvi.least_squares_law(
        x, y, learning_rate=eta, batch_size=2, momentum=momentum, weight_decay=DECAY,
        batching=batching,
    )  # fmt: skip
    one = torch.eye(size, dtype=F64)
    best = torch.linalg.solve(x.T @ x / 4 + DECAY * one, x.T @ y / 4)
    assert relative(law.mean, best) < 1e-12
    moment = torch.zeros(2 * size, 2 * size, dtype=F64)
    every = batches(4, 2, batching)
    steps, kicks = [], []
    for batch in every:
        a, rest = x[list(batch)], y[list(batch)] - x[list(batch)] @ best
        f = a.T @ a / 2 + DECAY * one
        e = -a.T @ rest / 2 + DECAY * best
        steps.append(torch.cat([torch.cat([one - eta * f, -eta * momentum * one], 1),
                                torch.cat([f, momentum * one], 1)]))  # fmt: skip
        kicks.append(torch.cat([-eta * e, e]))
    steps, kicks = torch.stack(steps), torch.stack(kicks)
    for _ in range(4000):
        moment = (steps @ moment @ steps.mT).mean(0) + kicks.T @ kicks / len(every)
    assert relative(law.covariance, moment[:size, :size]) < 1e-10


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_simulated_sgd_has_the_law(momentum):
    """2000 chains at a rate where the noise that depends on the state counts."""
    (x, y), chains = problem(40, 2), 2000
    settings = {"batch_size": 4, "momentum": momentum}
    eta = 0.55 * sgdvi.largest_rate(x, **settings)
    law = sgdvi.least_squares_law(x, y, learning_rate=eta, **settings)
    generator = torch.Generator().manual_seed(0)
    w, v = law.mean.repeat(chains, 1), torch.zeros(chains, 2, dtype=F64)
    moment, count = torch.zeros(2, 2, dtype=F64), 0
    for step in range(3000):
        index = torch.randint(40, (chains, 4), generator=generator)
        a = x[index]
        rest = torch.einsum("pbi,pi->pb", a, w) - y[index]
        v = momentum * v + torch.einsum("pbi,pb->pi", a, rest) / 4
        w = w - eta * v
        if step >= 500:
            moment += (w - law.mean).T @ (w - law.mean) / chains
            count += 1
    assert relative(moment / count, law.covariance) < 0.02
    # The law of constant noise at the minimum is not that of least squares.
    residual = x @ law.mean - y
    constant = (x * residual[:, None]).T @ (x * residual[:, None]) / 40
    simple = sgdvi.exact_law(law.hessian, constant, learning_rate=eta, **settings)
    assert relative(simple.covariance, law.covariance) > 0.2


def test_small_rates_have_the_law_of_constant_noise():
    x, y = problem(40, 3)
    law = sgdvi.least_squares_law(x, y, learning_rate=1e-5, batch_size=4)
    residual = x @ law.mean - y
    constant = (x * residual[:, None]).T @ (x * residual[:, None]) / 40
    simple = sgdvi.stationary_law(law.hessian, constant, learning_rate=1e-5, batch_size=4)
    assert relative(simple.covariance, law.covariance) < 1e-3


def test_the_limit_with_one_feature_is_its_kurtosis():
    """``E (1 - eta a^2)^2 < 1`` for batches of one: ``eta < 2 E a^2 / E a^4``."""
    a = problem(30, 1)[0]
    wanted = 2 * a.square().mean() / a.pow(4).mean()
    assert sgdvi.largest_rate(a, batch_size=1) == pytest.approx(float(wanted), rel=1e-8)
    # Large batches: that of full-batch descent, with momentum too.
    full = 2 * 1.5 / float(a.square().mean())
    many = sgdvi.largest_rate(a, batch_size=10**7, momentum=0.5)
    assert many == pytest.approx(full, rel=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_the_second_moment_diverges_beyond_the_limit_only(momentum):
    (x, _), size = problem(4, 2), 2
    limit = sgdvi.largest_rate(x, batch_size=2, momentum=momentum)
    one = torch.eye(size, dtype=F64)
    for eta, grows in ((0.97 * limit, False), (1.03 * limit, True)):
        steps = []
        for batch in batches(4, 2, "replacement"):
            a = x[list(batch)]
            f = a.T @ a / 2
            steps.append(torch.cat([torch.cat([one - eta * f, -eta * momentum * one], 1),
                                    torch.cat([f, momentum * one], 1)]))  # fmt: skip
        steps = torch.stack(steps)
        lifted = torch.einsum("kab,kcd->acbd", steps, steps).reshape(16, 16) / len(steps)
        radius = float(torch.linalg.eigvals(lifted).abs().max())
        assert (radius > 1) == grows


def test_rates_beyond_the_limit_are_refused_with_the_limit():
    x, y = problem(40, 2)
    limit = sgdvi.largest_rate(x, batch_size=1)
    # Constant noise would be stable there.
    assert limit < 1.5 / float(torch.linalg.eigvalsh(x.T @ x / 40).max())
    with pytest.raises(ValueError, match=f"below {limit:.6g}"):
        sgdvi.least_squares_law(x, y, learning_rate=1.01 * limit, batch_size=1)
    sgdvi.least_squares_law(x, y, learning_rate=0.99 * limit, batch_size=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(5)}, "features"),
        ({"features": torch.zeros(5, 2)}, "full rank"),
        ({"targets": torch.zeros(4)}, "one length"),
        ({"targets": torch.full((5,), torch.nan)}, "finite"),
        ({"features": torch.randn(5, 61)}, "at most 60"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"batching": "epoch"}, "epoch_law"),
        ({"batch_size": 5, "batching": "subset"}, "no noise"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_input(change, message):
    x, y = problem(5, 2)
    arguments = {"features": x, "targets": y, "learning_rate": 0.01, "batch_size": 2} | change
    with pytest.raises(ValueError, match=message):
        sgdvi.least_squares_law(**arguments)
