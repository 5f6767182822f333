"""Perturbed gradient descent: the point is perturbed, and the smoothed objective is minimised."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from particlevi.optim import PerturbedGD

DTYPE = torch.float64


def ones(*shape):
    return torch.ones(shape, dtype=DTYPE, requires_grad=True)


def factors():
    """Rank-2 factors of an 8 x 12 matrix with singular values 3 and 1, far from balance."""
    generator = torch.Generator().manual_seed(0)
    u, _ = torch.linalg.qr(torch.randn(8, 2, generator=generator, dtype=DTYPE))
    v, _ = torch.linalg.qr(torch.randn(12, 2, generator=generator, dtype=DTYPE))
    target = u @ torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=DTYPE) @ v.T
    x = torch.randn(8, 2, generator=generator, dtype=DTYPE).requires_grad_()
    y = (0.2 * torch.randn(12, 2, generator=generator, dtype=DTYPE)).requires_grad_()
    return x, y, target


def factorised(s1, s2, steps):
    """Ends of a long run: singular values of ``X Y^T``, and the ratio of the squared norms."""
    x, y, target = factors()
    lr = torch.tensor(0.01, dtype=DTYPE)
    groups = [{"params": [x], "std": s1}, {"params": [y], "std": s2}]
    optimizer = PerturbedGD(groups, lr=lr)
    for step in range(steps):
        if step > 0.7 * steps:
            lr.fill_(0.01 * 10 ** (-2 * (step / steps - 0.7) / 0.3))
        with optimizer.perturbed():
            residual = (x @ y.T - target).detach()
            x.grad, y.grad = residual @ y.detach(), residual.T @ x.detach()
        optimizer.step()
    x, y = x.detach(), y.detach()
    values = torch.linalg.svdvals(x @ y.T)[:2]
    return values.tolist(), float(x.square().sum() / y.square().sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("s1", "s2", "ratio"), [(0.1, 0.1, 8 / 12), (0.2, 0.05, 8 * 0.04 / (12 * 0.0025))]
)
def test_singular_values_are_soft_thresholded(s1, s2, ratio):
    values, found = factorised(s1, s2, 60_000)
    threshold = s1 * s2 * math.sqrt(8 * 12)
    assert values == pytest.approx([3 - threshold, 1 - threshold], rel=0.01)
    assert found == pytest.approx(ratio, rel=0.02)


def mean_gradient(s1, s2):
    """The mean gradient of the factorisation at perturbed points, by its closed form."""
    x, y, target = factors()
    residual = (x @ y.T - target).detach()
    return residual @ y.detach() + 12 * s2**2 * x.detach()


def test_the_mean_step_is_the_gradient_of_the_smoothed_objective():
    x, y, target = factors()
    optimizer = PerturbedGD([{"params": [x], "std": 0.3}, {"params": [y], "std": 0.2}], lr=1.0)
    samples = []
    for _ in range(1500):
        with optimizer.perturbed():
            samples.append(((x @ y.T - target) @ y).detach())
    found = torch.stack(samples)
    z = (found.mean(0) - mean_gradient(0.3, 0.2)) / (found.std(0) / math.sqrt(len(found)))
    assert float(z.abs().max()) < 4.5
    assert float(z.std()) == pytest.approx(1.0, abs=0.5)


def test_noise_on_the_step_would_not_pass():
    # The gradient at the point itself lacks the ridge term, by many standard errors.
    x, y, target = factors()
    plain = ((x @ y.T - target) @ y).detach()
    assert float((plain - mean_gradient(0.3, 0.2)).abs().max()) > 0.5


def test_the_points_come_back_to_the_bit():
    theta = torch.full((50,), 1 / 3, requires_grad=True)
    optimizer = PerturbedGD([theta], std=0.5)
    with optimizer.perturbed():
        assert not (theta == 1 / 3).any()
    assert torch.equal(theta, torch.full((50,), 1 / 3))


def test_the_points_come_back_after_an_error():
    theta = ones(3)
    optimizer = PerturbedGD([theta], std=0.5)
    with pytest.raises(ZeroDivisionError), optimizer.perturbed():
        _ = 1 / 0
    assert torch.equal(theta, torch.ones(3, dtype=DTYPE))
    with optimizer.perturbed():
        pass


def test_the_step_is_taken_from_the_point_itself():
    theta = ones(4)
    optimizer = PerturbedGD([theta], lr=0.1, std=0.5)
    with optimizer.perturbed():
        at = theta.detach().clone()
        (theta**3).sum().backward()
    optimizer.step()
    assert torch.allclose(theta, 1 - 0.3 * at**2, rtol=1e-15)


def xi(optimizer, theta):
    with optimizer.perturbed():
        return theta.detach().clone() - 1


def test_each_perturbation_is_fresh():
    theta = ones(4)
    optimizer = PerturbedGD([theta], std=0.5)
    assert not torch.equal(xi(optimizer, theta), xi(optimizer, theta))


def test_a_seed_fixes_the_perturbations():
    first, second, other = (
        xi(PerturbedGD([theta], std=0.5, seed=seed), theta)
        for theta, seed in ((ones(4), 0), (ones(4), 0), (ones(4), 1))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_groups_and_parameters_are_perturbed_apart():
    x, y, z = ones(4), ones(4), ones(4)
    optimizer = PerturbedGD([{"params": [x, y]}, {"params": [z]}], std=0.5)
    with optimizer.perturbed():
        assert not torch.equal(x, y)
        assert not torch.equal(x, z)


def test_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    theta = ones(4)
    optimizer = PerturbedGD([theta])
    xi(optimizer, theta)
    optimizer.smoothed(theta.sum, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_scales_per_group():
    wide, narrow = ones(4000), ones(4000)
    groups = [{"params": [wide], "std": 0.3}, {"params": [narrow], "std": 0.01}]
    optimizer = PerturbedGD(groups)
    with optimizer.perturbed():
        assert float(wide.detach().std()) == pytest.approx(0.3, rel=0.05)
        assert float(narrow.detach().std()) == pytest.approx(0.01, rel=0.05)


def test_the_perturbation_halves_in_a_half_life():
    theta = ones(20_000)
    optimizer = PerturbedGD([theta], std=0.4, half_life=2.0)
    stds = [float(xi(optimizer, theta).std()) for _ in range(5)]
    assert stds == pytest.approx([0.4 * 2 ** (-k / 2) for k in range(5)], rel=0.02)


def test_without_perturbation_it_is_gradient_descent_to_the_bit():
    theta, other = ones(4), ones(4)
    perturbed = PerturbedGD([theta], lr=0.1, std=0.0)
    plain = torch.optim.SGD([other], lr=0.1)
    for _ in range(5):
        with perturbed.perturbed():
            (theta**4).sum().backward()
        (other**4).sum().backward()
        perturbed.step()
        plain.step()
        perturbed.zero_grad()
        plain.zero_grad()
    assert torch.equal(theta, other)


def test_a_gradient_at_the_point_itself_is_refused():
    theta = ones(3)
    optimizer = PerturbedGD([theta])
    theta.sum().backward()
    with pytest.raises(RuntimeError, match="perturbed"):
        optimizer.step()


def test_one_perturbation_is_for_one_step():
    theta = ones(3)
    optimizer = PerturbedGD([theta])
    with optimizer.perturbed():
        theta.sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="perturbed"):
        optimizer.step()


def test_perturbations_do_not_nest():
    optimizer = PerturbedGD([ones(3)])
    with (
        optimizer.perturbed(),
        pytest.raises(RuntimeError, match="already"),
        optimizer.perturbed(),
    ):
        pass


def test_backward_outside_is_an_error():
    theta = ones(3)
    optimizer = PerturbedGD([theta])
    with optimizer.perturbed():
        loss = (theta**2).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_smoothed_objective_is_unbiased_and_its_error_calibrated():
    theta = ones(100)
    optimizer = PerturbedGD([theta], std=0.5)
    exact = 100 * (1 + 6 * 0.5**2 + 3 * 0.5**4)

    def objective():
        return (theta**4).sum()

    found = [optimizer.smoothed(objective, 25, seed) for seed in range(300)]
    z = torch.tensor([(f.value - exact) / f.standard_error for f in found])
    assert abs(float(z.mean())) * math.sqrt(300) < 4
    assert float(z.std()) == pytest.approx(1.0, abs=0.15)


def test_pairs_are_exact_where_the_objective_is_odd_about_the_point():
    theta = ones(3)
    optimizer = PerturbedGD([theta], std=0.5)

    def objective():
        return (5 * theta).sum()

    found = optimizer.smoothed(objective, 4)
    assert found.value == pytest.approx(15.0, abs=1e-13)


def test_sampling_the_objective_changes_nothing_about_the_steps():
    theta, other = ones(4), ones(4)
    sampled, plain = PerturbedGD([theta], std=0.1), PerturbedGD([other], std=0.1)
    sampled.smoothed(theta.sum, 3)
    assert torch.equal(xi(sampled, theta), xi(plain, other))


def test_any_module():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = PerturbedGD(net.parameters(), lr=0.05, std=0.02)
    x = torch.randn(64, 4)
    y = x[:, :1] - x[:, 1:2]

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        return loss.detach()

    losses = [float(optimizer.step(closure)) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"std": -1.0}, "std"), ({"half_life": 0.0}, "half_life"), ({"seed": -1}, "seed")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PerturbedGD([ones(3)], **settings)


@pytest.mark.parametrize("grouped", [False, True])
def test_whole_numbers_are_refused(grouped):
    numbers = [torch.zeros(3, dtype=torch.int64)]
    with pytest.raises(TypeError, match="floating-point numbers"):
        PerturbedGD([{"params": numbers}] if grouped else numbers)
