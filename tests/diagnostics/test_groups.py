"""Diagnostics by group, and draws from the product of the groups' laws."""

import math

import pytest
import torch

import particlevi as pvi
from particlevi.diagnostics.groups import group_numbers

D64 = torch.float64


def normal(size=4):
    return pvi.from_log_density(
        lambda theta: -0.5 * theta.square().sum(-1), size, vectorized=True, dtype=D64
    )


def run(target, chains=8, num_draws=400, **options):
    return pvi.sample(
        pvi.sgld(target),
        step_size=0.2,
        num_particles=chains,
        num_warmup=20,
        num_draws=num_draws,
        progress=False,
        **options,
    )


def of(particles, size):
    return pvi.Draws(particles=particles, stats={}, shapes={"theta": (size,)})


def test_times_are_those_of_the_process():
    """AR(1) with a = 0.8: (1 + a) / (1 - a) = 9 draws."""
    found = pvi.diagnostics.group_diagnostics(
        run(normal(), num_draws=3000), torch.tensor([0, 0, 1, 1])
    )
    assert found.iac.tolist() == pytest.approx([9, 9], rel=0.15)
    assert torch.allclose(
        found.ess_per_weight * found.iac_per_weight, torch.tensor(24_000.0, dtype=D64)
    )
    assert found.ess[1] == found.ess_per_weight[2:].median() or found.ess[1] == pytest.approx(
        found.ess_per_weight[2:].mean().item()
    )


def test_cross_correlation():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 5000, 4, generator=generator, dtype=D64)
    z[..., 2] = 0.6 * z[..., 0] + 0.8 * z[..., 2]
    found = pvi.diagnostics.group_diagnostics(
        of(z, 4), torch.tensor([0, 0, 1, 2])
    ).cross_correlation
    assert found[0, 1].item() == pytest.approx(0.6 / math.sqrt(2), abs=0.02)
    assert found[0, 2] < 0.02
    assert found[0, 0] < 0.02
    assert found[1, 1].isnan()
    assert torch.allclose(found, found.T, equal_nan=True)


def test_drift():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 1000, 2, generator=generator, dtype=D64)
    still = pvi.diagnostics.group_diagnostics(of(z, 2), "parameter").drift
    assert still.tolist() == pytest.approx([2 / math.sqrt(1000)] * 2, rel=0.3)
    z[:, :500, 1] += 3.0
    moving = pvi.diagnostics.group_diagnostics(of(z, 2), "parameter").drift
    assert moving[1].item() == pytest.approx(3 / math.sqrt(1 + 1.5**2), rel=0.02)
    assert moving[0] == still[0]
    # In standard deviations of all draws, so that chains far apart drift less by that measure.
    apart = z + torch.linspace(-10, 10, 50, dtype=D64).view(50, 1, 1)
    ratio = pvi.diagnostics.group_diagnostics(of(apart, 2), "parameter").drift[1] / moving[1]
    variance = 1 + 1.5**2
    spread = 20**2 / 12 * 51 / 49
    assert ratio.item() == pytest.approx(math.sqrt(variance / (variance + spread)), rel=0.03)


def test_recombined_draws_follow_the_product_law():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 500, 3, generator=generator, dtype=D64)
    z[..., 1] = z[..., 0] + 0.1 * z[..., 1]
    z[..., 2] = z[..., 0] - z[..., 1]
    draws = of(z, 3)
    mixed = draws.recombine(20_000, torch.tensor([0, 1, 1]), seed=3)
    assert mixed.particles.shape == (1, 20_000, 3)
    correlation = torch.corrcoef(mixed.particles[0].T)
    whole = torch.corrcoef(z.flatten(0, 1).T)
    assert correlation[0, 1].abs() < 0.05 < whole[0, 1]
    assert correlation[1, 2].item() == pytest.approx(whole[1, 2].item(), abs=0.03)
    flat = z.flatten(0, 1)
    for columns in ([0], [1, 2]):
        pairs = {tuple(row) for row in flat[:, columns].tolist()}
        assert {tuple(row) for row in mixed.particles[0][:, columns].tolist()} <= pairs
    assert torch.equal(
        mixed.particles, draws.recombine(20_000, torch.tensor([0, 1, 1]), seed=3).particles
    )
    one = draws.recombine(50, torch.zeros(3, dtype=torch.long)).particles[0]
    assert {tuple(row) for row in one.tolist()} <= {tuple(row) for row in flat.tolist()}


def test_recombined_draws_stay_within_a_chain_unless_pooled():
    z = torch.arange(4.0).view(4, 1, 1).expand(4, 10, 2).contiguous()
    own = of(z, 2).recombine(1000, "parameter").particles[0]
    assert torch.equal(own[:, 0], own[:, 1])
    assert set(own[:, 0].tolist()) == {0, 1, 2, 3}
    mixed = of(z, 2).recombine(1000, "parameter", pooled=True).particles[0]
    assert (mixed[:, 0] != mixed[:, 1]).double().mean().item() == pytest.approx(0.75, abs=0.07)


def test_the_groups_of_the_run_are_the_default(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    potential = pvi.from_module(net, pvi.Gaussian(scale=0.5), pvi.Normal(1.0), num_data=20)
    x = torch.randn(20, 2)
    for rule in ("layer", ("random", 3)):
        draws = pvi.sample(
            pvi.sgld(pvi.structured(potential, rule)),
            (x, x[:, :1]),
            step_size=1e-3,
            num_particles=2,
            num_draws=30,
            progress=False,
        )
        assert torch.equal(group_numbers(draws, None), potential.groups(rule))
        draws.save(tmp_path / "draws")
        loaded = pvi.load(tmp_path / "draws", potential)
        assert torch.equal(loaded.recombine(10).particles, draws.recombine(10).particles)
        mean, _ = loaded.recombine(10).predict(x)
        assert mean.shape == (20, 1)
        kept = draws.recombine(5, torch.zeros(potential.num_params, dtype=torch.long))
        assert kept.particles.shape == (1, 5, potential.num_params)


def test_errors():
    draws = run(normal(), num_draws=10)
    with pytest.raises(ValueError, match="Pass groups"):
        draws.recombine(5)
    with pytest.raises(ValueError, match="Pass groups"):
        pvi.diagnostics.group_diagnostics(draws)
    with pytest.raises(ValueError, match="groups must be"):
        draws.recombine(5, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="num must be"):
        draws.recombine(0, "tensor")
    with pytest.raises(ValueError, match="picked independently"):
        draws.recombine(5, "tensor").ess()


def test_what_is_printed_fits_on_a_screen():
    normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(-1), 40, vectorized=True)
    draws = pvi.sample(
        pvi.sgld(normal), step_size=0.5, num_particles=4, num_draws=100, progress=False
    )
    found = pvi.diagnostics.group_diagnostics(draws, "parameter")
    lines = repr(found).splitlines()
    assert len(lines) == 1 + 20 + 2
    assert f"{found.ess[0]:.1f}" in lines[1] and f"{found.drift[0]:.3f}" in lines[1]
    assert "20 more" in lines[-2] and "at most 0." in lines[-1]
