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
