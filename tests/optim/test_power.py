"""Power gradients: finite times, 2-cycles, composition."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from particlevi.errors import ParticleviWarning
from particlevi.optim import PNM, AdaPNM, power
from particlevi.optim.power import Power, signed_power

DTYPE = torch.float64


def param(*values):
    return torch.tensor(values, dtype=DTYPE, requires_grad=True)


def sgd(params, exponent, **settings):
    return power(torch.optim.SGD(params, **settings), exponent)


def moved(optimizer, x, steps):
    """Steps on ``x^2 / 2``."""
    for _ in range(steps):
        x.grad = x.detach().clone()
        optimizer.step()
    return x


def finite_time(exponent, end=1e-3):
    """When the flow from 1 reaches ``end``."""
    return (1 - end ** (1 - exponent)) / (1 - exponent)


@pytest.mark.parametrize(("exponent", "time"), [(0.2, 1.245), (0.5, 1.937), (0.8, 3.744)])
def test_the_flow_reaches_the_minimum_in_finite_time(exponent, time):
    assert finite_time(exponent) == pytest.approx(time, abs=6e-4)
    lr = 2e-4
    x = param(1.0)
    optimizer = sgd([x], exponent, lr=lr)
    moved(optimizer, x, round(finite_time(exponent, 0.1) / lr))
    assert x.item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.slow
def test_small_steps_reach_a_thousandth_when_the_flow_does():
    lr = 1e-4
    points = {exponent: param(1.0) for exponent in (0.2, 0.5, 0.8)}
    groups = [{"params": [x], "exponent": exponent} for exponent, x in points.items()]
    optimizer = sgd(groups, 1.0, lr=lr)
    steps = dict.fromkeys(points, 0)
    for _ in range(38_000):
        for exponent, x in points.items():
            x.grad = x.detach().clone()
            steps[exponent] += float(x.detach()) > 1e-3
        optimizer.step()
    times = {exponent: count * lr for exponent, count in steps.items()}
    assert times == pytest.approx({0.2: 1.245, 0.5: 1.937, 0.8: 3.744}, abs=1e-3)


@pytest.mark.parametrize("start", [0.3, -1.0, 1e-5])
def test_descent_ends_in_the_two_cycle(start):
    x = param(start)
    optimizer = sgd([x], 0.5, lr=0.1)
    before = moved(optimizer, x, 400).item()
    assert abs(before) == pytest.approx(0.0025, rel=1e-12)
    assert moved(optimizer, x, 1).item() == pytest.approx(-before, rel=1e-12)


def test_the_two_cycle_of_other_exponents_and_curvatures():
    exponent, curvature, lr = 0.7, 2.0, 0.3
    x = param(1.0)
    optimizer = sgd([x], exponent, lr=lr)
    for _ in range(400):
        x.grad = curvature * x.detach()
        optimizer.step()
    cycle = (lr * curvature**exponent / 2) ** (1 / (1 - exponent))
    assert abs(x.item()) == pytest.approx(cycle, rel=1e-10)


def test_noise_makes_the_mean_step_linear():
    exponent, sigma, g = 0.5, 1.3, 1e-3
    noise = torch.linspace(-8, 8, 400_001, dtype=DTYPE)
    density = torch.exp(-(noise**2) / 2) / math.sqrt(2 * math.pi)
    powers = signed_power([g + sigma * noise], exponent)[0]
    mean = float(torch.trapezoid(powers * density, noise))
    slope = exponent * sigma ** (exponent - 1) * 2 ** ((exponent - 1) / 2)
    slope *= math.gamma(exponent / 2) / math.sqrt(math.pi)
    assert mean / g == pytest.approx(slope, rel=1e-3)


INNER = [
    lambda p: torch.optim.SGD(p, lr=0.1),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    lambda p: torch.optim.Adam(p, lr=0.1),
    lambda p: torch.optim.Adam(p, lr=0.1, amsgrad=True),
    lambda p: torch.optim.AdamW(p, lr=0.1),
    lambda p: PNM(p, lr=0.1),
    lambda p: AdaPNM(p, lr=0.1),
]


@pytest.mark.parametrize("inner", INNER)
def test_any_optimiser_sees_the_power_by_hand(inner):
    x, y = param(1.0, -2.0, 1e-4), param(1.0, -2.0, 1e-4)
    composed, plain = power(inner([x]), 0.5), inner([y])
    for _ in range(10):
        x.grad = x.detach().clone()
        y.grad = y.detach().sign() * y.detach().abs() ** 0.5
        composed.step()
        plain.step()
    assert torch.allclose(x, y, rtol=1e-13, atol=0)


@pytest.mark.parametrize("inner", INNER)
def test_exponent_one_changes_nothing(inner):
    x, y = param(1.0, -2.0), param(1.0, -2.0)
    moved(power(inner([x]), 1.0), x, 5)
    moved(inner([y]), y, 5)
    assert torch.equal(x, y)


def test_an_exponent_above_one_damps_small_components():
    x = param(0.1, 1.0)
    moved(sgd([x], 1.5, lr=1.0), x, 1)
    assert x.detach().tolist() == pytest.approx([0.1 - 0.1**1.5, 0.0], abs=1e-15)


def test_the_power_of_zero_is_zero():
    assert signed_power([torch.tensor([0.0, -0.0])], 0.1)[0].tolist() == [0.0, 0.0]


def test_groups_may_have_their_own_exponent():
    x, y = param(0.25), param(0.25)
    groups = [{"params": [x]}, {"params": [y], "exponent": 1.0}]
    optimizer = sgd(groups, 0.5, lr=0.1)
    x.grad, y.grad = x.detach().clone(), y.detach().clone()
    optimizer.step()
    assert (x.item(), y.item()) == pytest.approx((0.2, 0.225))


def test_the_exponent_may_change_between_steps():
    x = param(0.25)
    optimizer = sgd([x], 0.5, lr=0.1)
    optimizer.param_groups[0]["exponent"] = 1.0
    moved(optimizer, x, 1)
    assert x.item() == pytest.approx(0.225)


def test_sparse_gradients_reach_an_optimiser_that_takes_them():
    x, y = param(1.0, 4.0, 9.0), param(1.0, 4.0, 9.0)
    grad = torch.tensor([0.0, 4.0, 0.0], dtype=DTYPE)
    for point, g in ((x, grad.to_sparse()), (y, grad)):
        point.grad = g
        sgd([point], 0.5, lr=0.1).step()
    assert torch.equal(x, y)
    assert x.grad.is_sparse


def test_several_closures_in_one_step():
    def after(exponent):
        x = param(3.0, -1.0)
        optimizer = power(torch.optim.LBFGS([x], lr=0.5, max_iter=3), exponent)

        def closure():
            optimizer.zero_grad(set_to_none=False)
            loss = (x**4).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return x, x.grad

    x, grad = after(0.5)
    assert not torch.allclose(x, after(1.0)[0])
    assert torch.isfinite(grad).all()


def test_the_gradient_comes_back_after_a_failed_step():
    x = param(4.0)
    inner = torch.optim.SGD([x], lr=0.1)
    optimizer = power(inner, 0.5)
    x.grad = grad = x.detach().clone()
    inner.register_step_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert x.grad is grad


def test_a_loss_scale_that_was_not_taken_out_warns():
    x = param(4.0)
    optimizer = sgd([x], 0.5, lr=0.1)
    x.grad = x.detach().clone()
    optimizer.grad_scale = torch.tensor(2.0)
    with pytest.warns(ParticleviWarning, match="unscale_"):
        optimizer.step()


def test_a_fused_optimiser_gets_unscaled_gradients():
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    scaled = power(torch.optim.Adam([x], fused=True), 0.5)
    plain = power(torch.optim.Adam([y], fused=True), 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for _ in range(3):
        scaled.zero_grad()
        plain.zero_grad()
        scaler.scale((x**4).sum()).backward()
        (y**4).sum().backward()
        scaler.step(scaled)
        scaler.update()
        plain.step()
    assert torch.equal(x, y)


def test_hooks_of_the_wrapped_optimiser_run_compiled_or_not():
    x = param(1.0)
    inner = torch.optim.SGD([x], lr=0.1)
    calls = []
    inner.register_step_post_hook(lambda *args: calls.append(1))
    moved(power(inner, 0.5), x, 2)
    assert len(calls) == 2


def test_torchs_own_optimisers_compile_without_a_graph_break():
    torch.compiler.reset()
    x, y = param(1.0, 2.0), param(1.0, 2.0)
    compiled, plain = sgd([x], 0.5, lr=0.1, momentum=0.9), sgd([y], 0.5, lr=0.1, momentum=0.9)
    step = torch.compile(compiled.step, fullgraph=True, backend="eager")
    for _ in range(3):
        x.grad, y.grad = x.detach().clone(), y.detach().clone()
        step()
        plain.step()
    assert torch.allclose(x, y, rtol=1e-14)


def test_a_copy_wraps_a_copy():
    x = param(1.0)
    optimizer = sgd([x], 0.5, lr=0.1, momentum=0.9)
    copied = copy.deepcopy(optimizer)
    assert isinstance(copied, Power)
    assert copied.optimizer is not optimizer.optimizer
    assert copied.param_groups is copied.optimizer.param_groups


@pytest.mark.parametrize("exponent", [0.0, -0.5, float("nan"), "half"])
def test_bad_exponents_are_refused(exponent):
    with pytest.raises(ValueError, match="exponent"):
        sgd([param(1.0)], exponent, lr=0.1)


def test_what_is_no_optimiser_is_refused():
    with pytest.raises(TypeError, match="takes a torch optimizer, got list"):
        power([param(1.0)], 0.5)


def test_a_differentiable_optimiser_is_refused():
    with pytest.raises(ValueError, match="no derivative at 0"):
        sgd([param(1.0)], 0.5, lr=0.1, differentiable=True)
