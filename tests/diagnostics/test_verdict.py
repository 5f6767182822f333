"""Each thing that can be wrong with a run is found, named and measured, and nothing else is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import particlevi as pvi
from particlevi.diagnostics.arviz import integrated_autocorrelation_time
from particlevi.diagnostics.temperatures import Temperature
from particlevi.diagnostics.verdict import heat
from particlevi.potentials.layout import Layout
from tests.stationarity.laws import NoisyGradient, quadratic

TARGET = quadratic(torch.diag(torch.linspace(0.5, 2.0, 20, dtype=torch.float64)).numpy())


def run(sampler, h=0.5, **options):
    options = dict(num_particles=8, num_warmup=100, num_draws=200, thin=4) | options
    return pvi.sample(sampler, step_size=h, progress=False, **options)


def problems(draws, **options):
    found = draws.diagnose(verbose=False, **options)
    assert found.ok == (not found.findings)
    return " ".join(f.problem for f in found.findings)


def test_a_good_run(capsys):
    draws = run(pvi.sghmc(TARGET))
    found = draws.diagnose()
    assert found.ok, found
    assert capsys.readouterr().out.strip() == str(found)
    assert "Nothing wrong was found." in str(found)
    assert found.facts["configurational temperature"] == pytest.approx(1, abs=0.03)


def test_not_converged_and_too_few_draws():
    apart = torch.arange(8.0).unsqueeze(1).expand(8, 20).clone()
    found = problems(
        run(pvi.sghmc(TARGET), 0.05, initial=apart, num_particles=None, num_warmup=0, thin=1)
    )
    assert "Not converged: R-hat" in found
    assert "Too few independent draws: the smallest ESS" in found


def test_how_much_longer():
    draws = run(pvi.sghmc(TARGET), num_draws=40, thin=2)
    found = draws.diagnose(verbose=False)
    (finding,) = [f for f in found.findings if "Too few independent" in f.problem]
    assert f"Run about {math.ceil(400 / draws.ess().min())} times as long" in finding.advice
    assert found.facts["smallest ESS per second"] == draws.ess(per="second").min()


def test_minibatch_noise_makes_it_too_hot():
    found = problems(run(pvi.sghmc(NoisyGradient(TARGET, 1.5))))
    assert "Too hot by" in found
    assert "kinetic temperature" in found
    assert "configurational temperature" in found


def test_sgld_at_a_large_step_is_too_hot():
    assert "Too hot by" in problems(run(pvi.sgld(TARGET), 0.4, thin=10))


def test_too_cold():
    frozen = run(pvi.sghmc(TARGET, temperature=1.0))
    stats = dict(frozen.stats) | {"temperature": torch.full((200,), 2.0)}
    found = problems(replace(frozen, stats=stats))
    assert "Too cold by 50%: the kinetic temperature is" in found


@pytest.mark.parametrize(
    "mean, mcse, off",
    [(1.1, 0.01, True), (1.1, 0.03, False), (1.02, 0.001, False), (0.9, 0.01, True)],
)
def test_a_temperature_is_off_by_both_its_size_and_its_error(mean, mcse, off):
    measured = Temperature(2 * mean, 2 * mcse, 20, 0.9, 2 * mean)
    assert bool(heat.is_off(measured, heat.Expected(2.0, 2.0), 2.0)) == off


def test_one_hot_tensor_is_named():
    """Where the total is as it should be: 18 coordinates are fine, 2 are at three times T."""
    layout = Layout({"weight": (18,), "bias": (2,)})
    draws = run(pvi.sghmc(replace(TARGET, layout=layout)))
    assert draws.diagnose(verbose=False).ok
    hot = {"kinetic_temperature[bias]": 3 * draws.stats["kinetic_temperature[bias]"]}
    found = problems(replace(draws, stats=draws.stats | hot))
    assert "Too hot by 2" in found and "the kinetic temperature of bias is" in found


def test_hidden_noise_under_the_thermostat():
    found = problems(run(pvi.sgnht(NoisyGradient(TARGET, 8.0)), 0.2))
    assert "Minibatch noise dominates: the thermostat rests at" in found
    assert "dominates" not in problems(run(pvi.sgnht(TARGET), 0.2))


def test_noise_that_cannot_be_taken_out():
    with pytest.warns(UserWarning, match="gradient noise has a variance above"):
        draws = run(pvi.sghmc(NoisyGradient(TARGET, 4.0), gradient_noise=16.0))
    assert "for 100% of the parameters it is more than" in problems(draws)
    exact = run(pvi.sghmc(TARGET, gradient_noise=1e-3))
    assert "dominates" not in problems(exact)


def test_rejections():
    draws = run(pvi.hmc(TARGET, num_leapfrog=5), 1.39)
    assert "Most proposals are rejected" in problems(draws)
    apart = pvi.parallel_tempering(TARGET, [1.0, 300.0])
    assert "hardly exchange places" in problems(run(apart))


def test_a_chain_that_accepts_nothing_is_named():
    start = torch.randn(8, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start[3] *= 1e3
    neck = pvi.from_log_density(
        lambda x: -0.5 * x.square().sum(-1) - 1e4 * (x[..., 0] - 50).clamp(min=0).square(),
        20,
        vectorized=True,
        dtype=torch.float64,
    )
    start[3, 0] = 1e3
    draws = run(pvi.hmc(neck, num_leapfrog=5), 0.3, initial=start)
    assert "Chains [3] accepted nothing" in problems(draws)
    assert "accepted nothing" not in problems(draws[:3])


def test_divergence():
    start = torch.zeros(8, 1, dtype=torch.float64)
    start[3] = 30.0
    quartic = pvi.from_log_density(
        lambda x: -0.25 * (x**4).sum(-1), 1, vectorized=True, dtype=torch.float64
    )
    with pytest.warns(UserWarning, match="diverged"):
        draws = run(pvi.sgld(quartic), 0.01, initial=start, num_particles=None)
    assert "1 of 8 chains diverged, the first at step" in problems(draws)


def test_interacting_particles_and_single_chains():
    assert "interact" in problems(run(pvi.svgd(TARGET), 0.1, num_draws=5))
    assert "One chain cannot show" in problems(run(pvi.sghmc(TARGET), num_particles=1))
    assert "tell nothing" in problems(run(pvi.sghmc(TARGET), num_draws=3))


def test_function_space_is_the_view_of_a_net():
    net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    x = torch.linspace(-1, 1, 20).unsqueeze(1)
    model = pvi.from_module(net, pvi.Gaussian(scale=0.3), pvi.Normal(1.0), num_data=20)
    draws = pvi.sample(
        pvi.sghmc(model),
        (x, x),
        step_size=0.05,
        num_particles=4,
        num_warmup=50,
        num_draws=20,
        progress=False,
    )
    assert "of the predictions" in problems(draws, data=(x, x), inputs=x)
    assert "of the parameters" in problems(draws, data=(x, x))


def test_projections_are_the_view_of_many_parameters():
    wide = quadratic(torch.eye(250, dtype=torch.float64).numpy())
    assert "of the projections" in problems(run(pvi.sghmc(wide), num_draws=10, thin=1))


def test_autocorrelation_time_of_sgld():
    """SGLD on a Gaussian is AR(1) with a = 1 - h l: (1 + a)/(1 - a) = 19 at h l = 0.1."""
    draws = pvi.sample(
        pvi.sgld(quadratic([[1.0]])),
        step_size=0.1,
        num_particles=400,
        num_warmup=100,
        num_draws=1500,
        progress=False,
    )
    found = float(integrated_autocorrelation_time(draws.particles)[0])
    assert found == pytest.approx(19, rel=0.05)


def kinds(draws, **options):
    return {f.kind for f in draws.diagnose(verbose=False, **options).findings}


def test_findings_are_typed_and_the_worst_come_first():
    found = run(pvi.sghmc(NoisyGradient(TARGET, 1.5)), num_draws=20).diagnose(verbose=False)
    severities = [finding.severity for finding in found.findings]
    assert severities == sorted(severities, key=["wrong", "model", "uncertain", "untold"].index)
    (hot,) = [f for f in found.findings if f.kind == "too hot" and "kinetic" in f.problem]
    assert hot.numbers["mean"] == found.facts["kinetic temperature"]
    assert hot.numbers["mcse"] == found.errors["kinetic temperature"]
    assert "kinetic temperature" in str(found) and "+-" in str(found).splitlines()[-1]


def test_the_kinetic_temperature_of_baoab_is_held_against_its_own_law():
    """``T (1 - h^2 l / 4)``: 30 % below T here, and right."""
    draws = run(pvi.baoab(TARGET), 1.0)
    found = draws.diagnose(verbose=False)
    assert found.facts["kinetic temperature"] < 0.75
    assert not {f.kind for f in found.findings} & {"too cold", "too hot"}
    hot = draws.stats | {"kinetic_temperature": 1.1 * draws.stats["kinetic_temperature"]}
    finding = replace(draws, stats=hot).diagnose(verbose=False).findings[0]
    assert finding.kind == "too hot"
    assert "is the sampler's law at this step" in finding.problem
    cold = draws.stats | {"kinetic_temperature": 0.9 * draws.stats["kinetic_temperature"]}
    assert "too cold" in kinds(replace(draws, stats=cold))


def test_a_step_beyond_the_law_of_baoab_has_a_verdict():
    """Where ``h^2 E|g|^2 / 4`` exceeds T D it expects no kinetic temperature above zero."""
    draws = run(pvi.baoab(TARGET), 1.0)
    unsure = torch.where(torch.arange(len(draws)) == 0, 1e3, 0.1).double().unsqueeze(1)
    stats = {"step_size": 3, "kinetic_temperature": unsure}
    steep = {name: factor * draws.stats[name] for name, factor in stats.items()}
    draws = replace(draws, stats=draws.stats | steep)
    assert draws.temperatures()["kinetic"].mean < 4 * draws.temperatures()["kinetic"].mcse
    assert not draws.diagnose(verbose=False).ok


def test_the_law_of_baoab_knows_the_metric():
    """In coordinates ``theta = z / 2`` the curvature is a quarter, and so is the bias."""
    draws = run(pvi.baoab(TARGET), 1.0)
    quarter = 0.25 * (1 - draws.stats["kinetic_temperature"])
    moved = replace(
        draws,
        stats=draws.stats | {"kinetic_temperature": 1 - quarter},
        metric=torch.full((20,), 0.5, dtype=torch.float64),
    )
    assert not kinds(moved) & {"too cold", "too hot"}
    assert "too hot" in kinds(replace(moved, metric=None))


def test_euler_forms_are_not_called_hot_for_their_momenta():
    draws = run(pvi.sghmc(TARGET, friction=1.0, integrator="symplectic"), 0.1, thin=20)
    assert "too hot" not in kinds(replace(draws, potential=None))


def test_heat_with_a_large_error_is_told():
    """Rare draws of 10^6 T leave no useful error of the mean; half the draws are at 100 T."""
    draws = run(pvi.sghmc(TARGET))
    hot = 100 * draws.stats["kinetic_temperature"]
    hot[::3, :3] = 1e6
    draws = replace(draws, stats=draws.stats | {"kinetic_temperature": hot})
    every = draws.temperatures()["kinetic"]
    assert every.mean - 1 < 4 * every.mcse
    assert "too hot" in kinds(draws)


def test_one_hot_chain_is_told():
    draws = run(pvi.sghmc(TARGET))
    hot = draws.stats["kinetic_temperature"].clone()
    hot[0] *= 10
    assert "too hot" in kinds(replace(draws, stats=draws.stats | {"kinetic_temperature": hot}))


def minibatches(step_size, batch_size):
    x = torch.linspace(-1, 3, 400, dtype=torch.float64)
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        lambda theta, data: -0.5 * (data - theta).square(),
        num_params=1,
        num_data=400,
        dtype=torch.float64,
    )
    draws = pvi.sample(
        pvi.sgld(target),
        x,
        step_size=step_size,
        batch_size=batch_size,
        num_particles=8,
        num_warmup=300,
        num_draws=300,
        thin=5,
        progress=False,
    )
    return draws, x


def test_the_advice_against_minibatch_noise_has_its_size():
    """Thirty times too hot is no matter of halving the step."""
    draws, x = minibatches(0.002, 2)
    (finding,) = [f for f in draws.diagnose(x, verbose=False).findings if f.kind == "too hot"]
    times = finding.numbers["off"] / 0.03
    assert times > 100
    assert f"batches about {times:.2g} times as large" in finding.advice
    assert "alve the step" not in finding.advice


def test_the_advice_without_minibatches_does_not_speak_of_them():
    draws = run(pvi.sgld(TARGET), 0.4, thin=10)
    (finding,) = [f for f in draws.diagnose(verbose=False).findings if f.kind == "too hot"]
    assert "batches" not in finding.advice


def test_energies_that_are_not_finite_count_as_rejections():
    draws = run(pvi.hmc(TARGET, num_leapfrog=5), 0.5)
    lost = draws.stats["acceptance"].clone()
    lost[:, ::3] = math.nan
    found = problems(replace(draws, stats=draws.stats | {"acceptance": lost}))
    assert "Most proposals" not in found
    lost[:] = math.nan
    found = problems(replace(draws, stats=draws.stats | {"acceptance": lost}))
    assert "acceptance is 0.00; 100% of the proposals had no finite energy" in found


def test_divergent_transitions_are_told():
    draws = run(pvi.sghmc(TARGET))
    diverging = torch.zeros(8, 200)
    assert "diverging" not in kinds(replace(draws, stats=draws.stats | {"diverging": diverging}))
    diverging[2, 7] = 1
    assert "diverging" in kinds(replace(draws, stats=draws.stats | {"diverging": diverging}))


def test_draws_of_a_fitted_law_are_no_chains():
    draws = pvi.Draws.from_tensor(torch.randn(2, 50, 20, dtype=torch.float64), kind="independent")
    assert draws.diagnose(verbose=False).ok


def test_tempered_draws_are_those_of_the_target():
    """Epistemic spread, ESS and the verdict know nothing of the hot replicas."""
    draws = run(pvi.parallel_tempering(TARGET, [1.0, 2.0, 4.0]), num_particles=24)
    assert len(draws) == 8
    assert draws.stats["replica_temperature"].unique().tolist() == [1.0]
    variance = draws.flat().var(0) * torch.linspace(0.5, 2.0, 20, dtype=torch.float64)
    assert variance.mean().item() == pytest.approx(1, abs=0.1)
    assert not kinds(draws) & {"too hot", "too cold", "not converged"}
    assert draws.last().shape == (24, 20)


def test_every_draw_of_an_ensemble_counts():
    draws = run(pvi.repulsive_langevin(TARGET), 0.1, num_draws=6)
    assert draws.interacting
    assert draws.flat().shape == (48, 20)
    assert run(pvi.svgd(TARGET), 0.1, num_draws=6).flat().shape == (8, 20)


def test_draws_where_the_gradient_overflows_are_told():
    density = pvi.from_log_density(
        lambda x: -(300 * x).exp().square().sum(), 1, dtype=torch.float64
    )
    draws = pvi.Draws.from_tensor(torch.full((4, 50, 1), 2.0).double(), potential=density)
    kinds = [found.kind for found in draws.diagnose(verbose=False).findings]
    assert "not stationary" in kinds


def test_iterates_that_are_cold_were_set_to_no_temperature():
    iterates = pvi.Draws.from_tensor(0.1 * torch.randn(4, 200, 20, dtype=torch.float64), TARGET)
    (finding,) = [f for f in iterates.diagnose(verbose=False).findings if f.kind == "too cold"]
    assert "that of the posterior is 1" in finding.problem
    assert "pvi.sgdvi.plan" in finding.advice
