"""The isokinetic flow and unadjusted microcanonical Langevin dynamics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi.samplers._microcanonical import (
    INTEGRATORS,
    Point,
    direction,
    flow,
    kick,
    leapfrog,
    refresh,
)
from particlevi.streams import ParticleStreams
from particlevi.typing import Gradient

SECOND_ORDER = ("leapfrog", "minimal_norm")


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def quartic(x):
    """A potential that is no quadratic, and its gradient."""
    return Gradient(x**3 + 0.5 * x.roll(1, -1) + 0.5 * x.roll(-1, -1), _quartic(x))


def _quartic(x):
    return 0.25 * x.pow(4).sum(-1) + 0.5 * (x * x.roll(1, -1)).sum(-1)


def start(size=6, num=40, seed=1, scale=1.0):
    x = scale * normal(num, size, seed=seed)
    found = quartic(x)
    u = direction(normal(num, size, seed=seed + 1))
    return Point(x, u, found.gradient, found.potential)


def gaussian(precision):
    precision = torch.as_tensor(precision, dtype=torch.float64)
    return pvi.from_log_density(
        lambda x: -0.5 * (precision * x.square()).sum(-1),
        len(precision),
        vectorized=True,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("h", [1e-3, 1.0, 300.0])
def test_directions_keep_unit_length(h):
    u, g = direction(normal(50, 7)), normal(50, 7, seed=1)
    for turned in (kick(u, g, h)[0], refresh(u, g, torch.tensor(h, dtype=torch.float64))):
        torch.testing.assert_close(turned.norm(dim=-1), torch.ones(50).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("h", [1e-3, 0.3, 4.0])
def test_a_kick_is_the_hyperbolic_rotation(h):
    u, g = direction(normal(50, 7)), normal(50, 7, seed=1)
    turned, work = kick(u, g, h)
    e, s = -g / g.norm(dim=-1, keepdim=True), h * g.norm(dim=-1, keepdim=True) / 6
    c = (e * u).sum(-1, keepdim=True)
    stretch = s.cosh() + c * s.sinh()
    expected = (e * (s.sinh() + c * (s.cosh() - 1)) + u) / stretch
    torch.testing.assert_close(turned, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(work, 6 * stretch.log().squeeze(-1), rtol=1e-10, atol=1e-11)


def test_a_kick_without_a_force_does_nothing():
    u = direction(normal(5, 3))
    turned, work = kick(u, torch.zeros_like(u), 0.5)
    torch.testing.assert_close(turned, u, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(work, torch.zeros(5).double(), rtol=0, atol=1e-14)


def test_the_work_of_a_kick_is_minus_the_log_volume_it_makes_on_the_sphere():
    u, g = direction(normal(1, 5))[0], normal(1, 5, seed=1)

    def tangent(v):
        return torch.linalg.svd(v.unsqueeze(0), full_matrices=True)[2][1:]

    jacobian = torch.func.jacrev(lambda v: kick(direction(v.unsqueeze(0)), g, 0.7)[0][0])(u)
    turned, work = kick(u.unsqueeze(0), g, 0.7)
    on_sphere = tangent(turned[0]) @ jacobian @ tangent(u).T
    log_volume = torch.linalg.slogdet(on_sphere).logabsdet
    assert float(work) == pytest.approx(-float(log_volume), abs=1e-10)


@pytest.mark.parametrize("integrator", list(INTEGRATORS))
@pytest.mark.parametrize("dynamics", [flow, leapfrog])
def test_the_deterministic_part_is_reversible(integrator, dynamics):
    step, h = dynamics(integrator), torch.tensor(0.3, dtype=torch.float64)
    begin = start()
    there, change = step(begin, quartic, h)
    back, again = step(there._replace(velocity=-there.velocity), quartic, h)
    torch.testing.assert_close(back.position, begin.position, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(back.velocity, -begin.velocity, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(again, -change, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("integrator", list(INTEGRATORS))
@pytest.mark.parametrize("dynamics", [flow, leapfrog])
def test_energy_errors_vanish_at_the_order_of_the_integrator(integrator, dynamics):
    """The energy change of a step is of order h^3 at second order and h^5 at fourth."""
    second = integrator in SECOND_ORDER
    step, h = dynamics(integrator), 0.01 if second else 0.04
    coarse, fine = (
        float(step(start(num=400, scale=0.5), quartic, torch.tensor(each).double())[1].var())
        for each in (h, h / 2)
    )
    order = 0.5 * math.log2(coarse / fine)
    assert order == pytest.approx(3 if second else 5, abs=0.02 if second else 0.2)


def test_the_minimal_norm_is_minimal():
    """With outer kicks of share x the two commutators in the error of a step have the coefficients
    ``(6 x - 1) / 24`` and ``(1 - 6 x + 6 x^2) / 12``: their norm is least (Omelyan, Mryglod and
    Folk, 2002).
    """
    x = torch.tensor(INTEGRATORS["minimal_norm"].kicks[0], dtype=torch.float64, requires_grad=True)
    square = ((6 * x - 1) / 24).square() + ((1 - 6 * x + 6 * x**2) / 12).square()
    (slope,) = torch.autograd.grad(square, x)
    assert abs(float(slope)) < 1e-14


def test_at_equal_cost_the_energy_error_of_minimal_norm_is_below_that_of_leapfrog():
    """One step of two gradients against two of one."""

    def error(integrator, h, num_steps):
        point, total = start(num=400, scale=0.5), torch.zeros(400).double()
        for _ in range(num_steps):
            point, change = flow(integrator)(point, quartic, torch.tensor(h).double())
            total = total + change
        return float(total.std())

    assert error("minimal_norm", 0.1, 1) < 0.5 * error("leapfrog", 0.05, 2)


@pytest.mark.parametrize("integrator", SECOND_ORDER)
def test_a_long_path_without_refreshment_conserves_the_energy_to_second_order(integrator):
    def largest(h):
        point, total, worst = start(), torch.zeros(40).double(), torch.zeros(40).double()
        for _ in range(round(6 / h)):
            point, change = flow(integrator)(point, quartic, torch.tensor(h).double())
            total = total + change
            worst = torch.maximum(worst, total.abs())
        return float(worst.median())

    assert largest(0.05) / largest(0.025) == pytest.approx(4, rel=0.1)


def test_refreshment_forgets_at_its_rate():
    """The mean of ``u . u'`` is about ``exp(-time)`` in many dimensions."""
    u, z = direction(normal(400, 1000)), normal(400, 1000, seed=1)
    for time in (0.1, 1.0):
        turned = refresh(u, z, torch.tensor(time, dtype=torch.float64))
        assert float((u * turned).sum(-1).mean()) == pytest.approx(math.exp(-time), abs=0.005)


def bias(precision, h, integrator, num_steps=900, chains=100):
    """Mean of ``lambda x^2``, its Monte-Carlo error, and the variance of energy changes over D."""
    precision = torch.as_tensor(precision, dtype=torch.float64)
    size = len(precision)
    exact = normal(chains, size, seed=3) / precision.sqrt()
    draws = pvi.sample(
        pvi.mclmc(gaussian(precision), float((1 / precision).sum().sqrt()), integrator),
        step_size=h,
        initial=exact,
        num_warmup=100,
        num_draws=num_steps,
        progress=False,
    )
    square = (precision * draws.particles.square()).mean(-1).mean(1)
    error = draws.stats["energy_error"]
    return float(square.mean()), float(square.std()) / math.sqrt(chains), float(error.var()) / size


def test_a_small_step_has_no_bias():
    found, error, _ = bias(np.linspace(1, 4, 8), 0.15, "minimal_norm", num_steps=600)
    assert abs(found - 1) < 4 * error
    assert error < 0.02


# Second moment over the truth, and the variance of energy changes over D, in 50 dimensions.
BIAS = [
    ("identity", "minimal_norm", 0.40, 0.996, 5.4e-7),
    ("identity", "minimal_norm", 1.00, 0.987, 1.5e-4),
    ("identity", "minimal_norm", 1.26, 0.976, 6.5e-4),
    ("identity", "minimal_norm", 2.00, 0.909, 6.8e-3),
    ("identity", "leapfrog", 0.40, 1.014, 3.2e-5),
    ("identity", "leapfrog", 0.64, 1.036, 5.3e-4),
    ("identity", "leapfrog", 1.00, 1.091, 8.0e-3),
    ("identity", "leapfrog", 1.60, 1.265, 1.8e-1),
    ("spread", "leapfrog", 0.08, 1.010, 9e-4),
    ("spread", "leapfrog", 0.126, 1.035, 1.7e-2),
    ("spread", "leapfrog", 0.16, 1.064, 8e-2),
    ("spread", "minimal_norm", 0.126, 0.997, 2e-5),
    ("spread", "minimal_norm", 0.20, 0.981, 1.3e-3),
]


@pytest.mark.slow
@pytest.mark.parametrize(("target", "integrator", "h", "moment", "energy"), BIAS)
def test_bias_by_the_energy_error(target, integrator, h, moment, energy):
    precision = np.ones(50) if target == "identity" else np.geomspace(1, 100, 50)
    found, error, variance = bias(precision, h * math.sqrt(50), integrator)
    assert abs(found - moment) < 5 * error + 0.003
    assert variance == pytest.approx(energy, rel=0.25)


def test_a_step_out_of_the_support_is_taken_back_and_told():
    """No ratchet: the chain goes on at the same step size, in a new direction."""

    def log_density(x):
        inside = (x > 0).all(-1)
        return torch.where(inside, x.log().sum(-1) - x.sum(-1), torch.nan)

    target = pvi.from_log_density(log_density, 2, vectorized=True, dtype=torch.float64)
    draws = pvi.sample(
        pvi.mclmc(target),
        step_size=0.8,
        initial=torch.ones(50, 2, dtype=torch.float64),
        num_draws=300,
        progress=False,
    )
    error = draws.stats["energy_error"]
    assert 0.01 < float(torch.isinf(error).double().mean()) < 0.5
    assert not torch.isnan(error).any()
    assert torch.isfinite(draws.particles).all()
    assert not draws.diverged
    moved = draws.particles.diff(dim=1).abs().sum(-1) > 0
    assert bool(moved[:, -50:].any(1).all())


def test_one_parameter_is_refused():
    target = gaussian([1.0])
    with pytest.raises(ValueError, match="at least 2 parameters, got 1"):
        pvi.mclmc(target)


def test_an_unknown_integrator_is_refused():
    with pytest.raises(ValueError, match="'leapfrog', 'minimal_norm', 'omelyan'"):
        pvi.mclmc(gaussian([1.0, 2.0]), integrator="euler")


def stepped(target, u, noise, h=0.4, length=1.6, gradient=None):
    """One step from the origin in the direction u, with the random numbers given."""
    sampler = pvi.mclmc(target, decoherence_length=length, integrator="leapfrog")
    state = sampler.init(torch.zeros_like(u), ParticleStreams(0))
    gradient = torch.zeros_like(u) if gradient is None else gradient
    begun = torch.ones_like(state.memory.begun)
    memory = state.memory._replace(direction=u, gradient=gradient, begun=begun)
    controls = {
        "step_size": u.new_tensor(h),
        "decoherence_length": u.new_tensor(sampler.schedules["decoherence_length"](0)),
    }
    state = state._replace(memory=memory)
    return sampler.step(state, None, (noise, ()), controls)


def test_half_of_the_refreshment_comes_before_the_move_and_half_after():
    flat = pvi.from_log_density(lambda x: 0 * x.sum(-1), 3, vectorized=True, dtype=torch.float64)
    u, first, last = direction(normal(20, 3)), normal(20, 3, seed=1), normal(20, 3, seed=2)
    state, _ = stepped(flat, u, (first, last), h=0.4, length=1.6)
    half = torch.tensor(0.5 * 0.4 / 1.6, dtype=torch.float64)
    before = refresh(u, first, half)
    torch.testing.assert_close(state.position, 0.4 * before, rtol=1e-12, atol=1e-12)
    after = refresh(before, last, half)
    torch.testing.assert_close(state.memory.direction, after, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [2, 9])
def test_the_length_over_which_a_direction_is_forgotten_is_by_default_the_root_of_d(size):
    schedule = pvi.mclmc(gaussian(np.ones(size))).schedules["decoherence_length"]
    assert schedule(0) == math.sqrt(size)


def test_a_step_that_is_taken_back_leaves_in_a_new_direction():
    wall = pvi.from_log_density(
        lambda x: torch.where(x.square().sum(-1) > 0, torch.nan, 0.0 * x.sum(-1)),
        3,
        vectorized=True,
        dtype=torch.float64,
    )
    u, first, last = direction(normal(5, 3)), normal(5, 3, seed=1), normal(5, 3, seed=2)
    state, info = stepped(wall, u, (first, last))
    assert bool(torch.isinf(info.energy_error).all())
    assert not state.position.any()
    torch.testing.assert_close(state.memory.direction, direction(first), rtol=0, atol=0)


def test_a_direction_that_is_not_finite_is_never_kept():
    """Whatever made it so: from it no step would lead back."""
    flat = pvi.from_log_density(lambda x: 0 * x.sum(-1), 2, vectorized=True, dtype=torch.float64)
    u, first = direction(normal(4, 2)), normal(4, 2, seed=1)
    last = torch.full_like(first, math.nan)
    last[0] = 1.0
    state, info = stepped(flat, u, (first, last))
    assert torch.isinf(info.energy_error).tolist() == [False, True, True, True]
    assert torch.isfinite(state.memory.direction).all()


@pytest.mark.parametrize("height", [-1003.0, -1001.0, 1001.0, 1003.0])
def test_a_step_whose_energy_changes_far_beyond_use_is_taken_back(height):
    """On a cliff, where gradients say nothing of the height."""
    cliff = pvi.from_log_density(
        lambda x: torch.where(x[..., 0] > 0.1, -height, 0.0 * x[..., 0]), 2, vectorized=True
    )
    ahead, still = torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    state, info = stepped(cliff, ahead, (still, still), h=0.4)
    taken_back = abs(height) > 1000 + 2
    assert float(state.position[0, 0]) == pytest.approx(0.0 if taken_back else 0.4)
    assert float(info.energy_error) == pytest.approx(math.inf if taken_back else height)
