from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import particlevi as pvi
from particlevi.diagnostics.temperatures import chi_square_interval
from particlevi.potentials.layout import Layout
from tests.stationarity.laws import quadratic, random_hessian


@pytest.mark.parametrize(
    "size, low, high",
    [
        (10, 0.2156, 2.5188),
        (100, 0.6733, 1.4017),
        (1000, 0.8886, 1.1189),
        (10_000, 0.9639, 1.0368),
        (100_000, 0.9885, 1.0116),
    ],
)
def test_chi_square_intervals(size, low, high):
    assert chi_square_interval(1.0, size) == pytest.approx((low, high), abs=5.1e-5)
    assert chi_square_interval(4.0, size) == pytest.approx((4 * low, 4 * high), abs=2.1e-4)


def model():
    """A correlated Gaussian in 60 dimensions away from the origin, in two tensors."""
    target = quadratic(random_hessian(60, 0.5, 2.0, seed=1), mean=[7.0] * 60)
    return replace(target, layout=Layout({"weight": (5, 10), "bias": (10,)}))


def run(sampler, h, **options):
    options = dict(num_particles=200, num_warmup=200, num_draws=20, thin=5) | options
    start = torch.full((options.pop("num_particles"), 60), 7.0, dtype=torch.float64)
    return pvi.sample(sampler, step_size=h, initial=start, progress=False, **options)


@pytest.mark.parametrize("T", [0.25, 4.0])
def test_exact_where_the_integrator_is(T):
    found = run(pvi.sghmc(model(), temperature=T), 0.5).temperatures()
    names = ["kinetic", "kinetic[weight]", "kinetic[bias]", "all", "weight", "bias"]
    assert list(found) == names
    assert [t.size for t in found.values()] == [60, 50, 10, 60, 50, 10]
    for value in found.values():
        assert abs(value.mean - T) < 5 * value.mcse + 1e-3 * T
        assert value.mcse < 0.02 * T
    # Nearly independent draws of T chi2_60 / 60.
    for name in ("kinetic", "all"):
        exact = T * math.sqrt(2 / 60 / 4000)
        assert 0.9 * exact < found[name].mcse < 1.6 * exact
    for name in ("kinetic", "all"):
        assert found[name].inside == pytest.approx(0.99, abs=0.01)


def test_bias_of_sgld_is_seen():
    """``E l Var(theta) = T / (1 - h l / 2)``, averaged over curvatures, is the bias."""
    h = 0.2
    curvature = torch.linalg.eigvalsh(torch.from_numpy(random_hessian(60, 0.5, 2.0, seed=1)))
    found = run(pvi.sgld(model()), h, thin=20).temperatures(thin=2)
    assert "kinetic" not in found
    expected = float((1 / (1 - h * curvature / 2)).mean())
    assert expected > 1.1
    assert abs(found["all"].mean - expected) < 5 * found["all"].mcse + 1e-3


def test_kinetic_temperature_of_baoab_is_below():
    h = 0.8
    curvature = torch.linalg.eigvalsh(torch.from_numpy(random_hessian(60, 0.5, 2.0, seed=1)))
    found = run(pvi.baoab(model()), h).temperatures()["kinetic"]
    assert abs(found.mean - float((1 - h**2 * curvature / 4).mean())) < 5 * found.mcse


def test_kinetic_temperature_of_each_tensor():
    """``1 - h^2 l / 4`` under ``baoab``, with curvature 2 in one tensor and .5 in the other."""
    h, curvature = 1.0, torch.tensor([2.0] * 50 + [0.5] * 10, dtype=torch.float64)
    target = pvi.from_log_density(
        lambda x: -0.5 * (curvature * x.square()).sum(-1), 60, vectorized=True, dtype=torch.float64
    )
    target = replace(target, layout=Layout({"weight": (5, 10), "bias": (10,)}))
    draws = run(pvi.baoab(target), h)
    found = draws.temperatures()
    for name, expected in [("weight", 0.5), ("bias", 0.875)]:
        each = found[f"kinetic[{name}]"]
        assert abs(each.mean - expected) < 5 * each.mcse
        assert f"kinetic_temperature[{name}]" in draws.to_arviz()["sample_stats"]
    total = (50 * found["kinetic[weight]"].mean + 10 * found["kinetic[bias]"].mean) / 60
    assert found["kinetic"].mean == pytest.approx(total, rel=1e-12)


def test_minibatch_model_uses_all_the_data():
    """On draws from a minibatch run the gradient is the full one: T_conf = l Var(theta)."""
    n, x = 40, torch.linspace(-1, 3, 40, dtype=torch.float64)
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        lambda theta, data: -0.5 * (data - theta).square(),
        num_params=1,
        num_data=n,
        dtype=torch.float64,
    )
    draws = pvi.sample(
        pvi.sgld(target),
        x,
        step_size=0.01,
        batch_size=5,
        num_particles=50,
        num_warmup=50,
        num_draws=50,
        progress=False,
    )
    found = draws.temperatures(x)["all"]
    expected = (n + 1) * float(draws.particles.var(correction=0))
    assert found.mean == pytest.approx(expected, rel=1e-9)
    assert found.mean > 2


def test_both_are_in_sample_stats():
    draws = run(pvi.sghmc(model()), 0.5, num_particles=4)
    stats = draws.to_arviz()["sample_stats"]
    for name in ("kinetic_temperature", "configurational_temperature"):
        assert torch.equal(torch.as_tensor(stats[name].to_numpy()), draws.stats[name])


def test_refusals():
    target = model()
    draws = run(pvi.sgld(target), 0.1, num_draws=4)
    from particlevi.diagnostics import temperatures

    with pytest.raises(ValueError, match="no momenta"):
        temperatures.kinetic(draws)
    with pytest.raises(ValueError, match="without their potential"):
        temperatures.configurational(replace(draws, potential=None))
    with pytest.raises(ValueError, match="interact"):
        temperatures.configurational(replace(draws, facts=pvi.typing.Facts(kind="particles")))
    assert not math.isnan(temperatures.configurational(draws)["all"].mcse)
