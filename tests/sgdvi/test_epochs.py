"""The law of epoch SGD: every order of a few data, simulation, and limits."""

import itertools

import pytest
import torch

from particlevi import sgdvi
from tests.sgdvi.test_stationary import relative, spd

F64 = torch.float64


def noises(num: int, size: int) -> torch.Tensor:
    """Per-sample gradients ``[N, D]`` at the minimum, which sum to zero."""
    generator = torch.Generator().manual_seed(5)
    found = torch.randn(num, size, generator=generator, dtype=F64)
    return found - found.mean(0)


def sgd_step(x, v, gradient, eta, momentum):
    """``torch.optim.SGD``'s own order."""
    v = momentum * v + gradient
    return x - eta * v, v


def one_epoch(x, v, f, batches, eta, momentum):
    """Positions after each batch, ``[n, ..., D]``, and the last momentum."""
    kept = []
    for noise in batches:
        x, v = sgd_step(x, v, x @ f + noise, eta, momentum)
        kept.append(x)
    return torch.stack(kept), v


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize(("batch", "drop_last"), [(1, False), (2, False), (2, True), (4, True)])
def test_every_order_of_five_data_keeps_the_law(momentum, batch, drop_last):
    """Monte-Carlo-free: the covariance after an epoch, averaged over all 120 orders."""
    eta, f, e = 0.3, spd(2, 1), noises(5, 2)
    c = e.T @ e / 5
    law = sgdvi.epoch_law(
        f, c, num_data=5, learning_rate=eta, batch_size=batch, momentum=momentum,
        drop_last=drop_last,
    )  # fmt: skip
    orders = torch.tensor(list(itertools.permutations(range(5))))
    stop = 5 - 5 % batch if drop_last else 5
    batches = [e[orders[:, k : min(k + batch, 5)]].mean(1) for k in range(0, stop, batch)]
    assert law.num_batches == len(batches)
    zero = torch.zeros(120, 2, dtype=F64)
    noise, momenta = one_epoch(zero, zero, f, batches, eta, momentum)
    quiet = [torch.zeros(1, 2, dtype=F64)] * len(batches)
    one, none = torch.eye(2, dtype=F64), torch.zeros(2, 2, dtype=F64)
    # Linear maps of (x, v) to the positions after each batch, column by column.
    of_x, v_of_x = one_epoch(one, none, f, quiet, eta, momentum)
    of_v, v_of_v = one_epoch(none, one, f, quiet, eta, momentum)
    moves = torch.cat([of_x, of_v], 1).transpose(1, 2)
    last = torch.cat([moves[-1], torch.cat([v_of_x, v_of_v]).T])
    kick = torch.cat([noise[-1], momenta], 1)
    joint = torch.zeros(4, 4, dtype=F64)
    for _ in range(3000):
        joint = last @ joint @ last.T + kick.T @ kick / 120
    assert relative(law.end, joint[:2, :2]) < 1e-11
    each = [m @ joint @ m.T + k.T @ k / 120 for m, k in zip(moves, noise, strict=True)]
    assert relative(law.average, torch.stack(each).mean(0)) < 1e-11


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_simulated_epochs_have_the_law_within_two_percent(momentum):
    """2000 replicas of SGD on 24 data in shuffled batches of 4; curvatures from 2 to 0.02."""
    num, batch, eta, chains = 24, 4, 0.05, 2000
    f = torch.diag(torch.tensor([2.0, 0.3, 0.02], dtype=F64))
    e = noises(num, 3) @ torch.tensor([[1, 0.5, 0], [0, 1, 0.5], [0, 0, 1]], dtype=F64)
    law = sgdvi.epoch_law(
        f, e.T @ e / num, num_data=num, learning_rate=eta, batch_size=batch, momentum=momentum
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.linalg.cholesky(law.end) @ torch.randn(3, chains, generator=generator, dtype=F64)
    x, v = x.T, torch.zeros(chains, 3, dtype=F64)
    end, average, count = torch.zeros(3, 3, dtype=F64), torch.zeros(3, 3, dtype=F64), 0
    for epoch in range(700):
        order = torch.rand(chains, num, generator=generator).argsort(1)
        batches = e[order].unflatten(1, (-1, batch)).mean(2).unbind(1)
        path, v = one_epoch(x, v, f, batches, eta, momentum)
        x = path[-1]
        if epoch >= 100:
            count += 1
            end += x.T @ x / chains
            average += torch.einsum("npi,npj->ij", path, path) / chains / len(path)
    assert relative(end / count, law.end) < 0.02
    assert relative(average / count, law.average) < 0.02
    for found, wanted in ((end, law.end), (average, law.average)):
        assert (found.diagonal() / count / wanted.diagonal() - 1).abs().max() < 0.02


def test_fast_directions_are_those_of_independent_batches_and_slow_ones_far_colder():
    f = torch.diag(torch.tensor([1.0, 1e-4], dtype=F64))
    settings = {"learning_rate": 0.5, "batch_size": 2, "num_data": 2000}
    epoch = sgdvi.epoch_law(f, torch.eye(2), **settings).average.diagonal()
    steps = sgdvi.exact_law(f, torch.eye(2), batching="subset", **settings).covariance.diagonal()
    assert float(epoch[0] / steps[0]) == pytest.approx(1, abs=0.01)
    assert float(steps[1] / epoch[1]) > 50


def test_long_epochs_tend_to_the_law_of_single_steps_with_first_order():
    f, c = spd(3, 1), spd(3, 2)
    settings = {"learning_rate": 0.3, "batch_size": 2, "momentum": 0.5}
    wanted = sgdvi.exact_law(f, c, **settings).covariance
    errors = [
        relative(sgdvi.epoch_law(f, c, num_data=num, **settings).average, wanted)
        for num in (2000, 4000)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.05)


def test_decay_moves_the_mean_and_adds_to_the_curvature():
    f, c, minimum = spd(2, 1), spd(2, 2), torch.tensor([1.0, -2.0], dtype=F64)
    settings = {"num_data": 20, "learning_rate": 0.1, "batch_size": 5}
    law = sgdvi.epoch_law(f, c, weight_decay=0.3, minimum=minimum, **settings)
    plain = sgdvi.epoch_law(f + 0.3 * torch.eye(2, dtype=F64), c, **settings)
    assert relative(law.end, plain.end) < 1e-12
    assert (f @ (law.mean - minimum) + 0.3 * law.mean).norm() < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 20}, "below num_data"),
        ({"num_data": 1}, "num_data"),
        ({"learning_rate": 3.0}, "Lower learning_rate"),
        ({"momentum": 1.0}, "momentum"),
        ({"hessian": -torch.eye(2)}, "no stationary law"),
    ],
)
def test_bad_input(change, message):
    good = {"hessian": torch.eye(2), "noise": torch.eye(2), "num_data": 20}
    good |= {"learning_rate": 0.1, "batch_size": 5}
    with pytest.raises(ValueError, match=message):
        sgdvi.epoch_law(**(good | change))
    with pytest.raises(TypeError, match="drop_last"):
        sgdvi.epoch_law(**good, drop_last="yes")
