"""Right calls of the rooms: kernels, schedules, diagnostics, optimisers, pictures and others."""

from __future__ import annotations

import torch

import particlevi as pvi
from particlevi import (
    comparison,
    curvature,
    diagnostics,
    gradients,
    kernels,
    optim,
    plots,
    running,
    schedules,
    storage,
    testing,
    tuning,
)
from tests.calls import things
from tests.calls.call import Call
from tests.calls.things import CHAINS, DATA, MODEL, NORMAL, SERIES, X, normal, stepped

Z, W = normal(8, 2, dtype=torch.float64), normal(7, 2, seed=1, dtype=torch.float64)
PROBABILITIES = torch.softmax(normal(6, 3), 1)
LABELS = torch.arange(6) % 3
PARAMETERS = {"params": things.fresh_parameters()}
WHOLE = {"draws": CHAINS, "data": DATA}


def moved(kernel):
    return things.with_kernel(kernel)


ROOMS = {
    "kernels.additive": Call(kernels.additive, {"groups": "tensor"}, moved),
    "kernels.fixed": Call(kernels.fixed, {"value": 1.0}, lambda b: moved(kernels.rbf(b))),
    "kernels.graphical": Call(
        kernels.graphical,
        {"groups": "tensor"},
        lambda k: pvi.sample(pvi.svgd(MODEL, k), DATA, **things.SHORT),
    ),
    "kernels.imq": Call(kernels.imq, {}, moved),
    "kernels.linear": Call(kernels.linear),
    "kernels.median": Call(kernels.median, {}, lambda b: moved(kernels.rbf(b))),
    "kernels.product": Call(kernels.product, {"groups": "tensor"}, moved),
    "kernels.random_features": Call(kernels.random_features, {"num_features": 4}, moved),
    "kernels.rbf": Call(kernels.rbf, {}, moved),
    "schedules.as_schedule": Call(
        schedules.as_schedule, {"name": "step_size", "value": 0.1}, things.with_schedule
    ),
    "schedules.constant": Call(schedules.constant, {"value": 0.1}, things.with_schedule),
    "schedules.cosine": Call(
        schedules.cosine, {"initial": 0.1, "num_steps": 10}, things.with_schedule
    ),
    "schedules.cyclical": Call(
        schedules.cyclical, {"peak": 0.1, "period": 5}, things.with_schedule
    ),
    "schedules.cyclical_ramp": Call(
        schedules.cyclical_ramp, {"num_steps": 20}, things.with_schedule
    ),
    "schedules.describe": Call(schedules.describe, {"schedule": schedules.constant(0.1)}),
    "schedules.linear_ramp": Call(schedules.linear_ramp, {"num_steps": 20}, things.with_schedule),
    "schedules.polynomial": Call(schedules.polynomial, {"initial": 0.1}, things.with_schedule),
    "schedules.restore": Call(
        schedules.restore, {"description": {"kind": "constant", "value": 0.1}}
    ),
    "schedules.tanh_ramp": Call(schedules.tanh_ramp, {"num_steps": 20}, things.with_schedule),
    "diagnostics.agreement": Call(diagnostics.agreement, {"values": SERIES[..., 0]}),
    "diagnostics.autocorrelation_time": Call(
        diagnostics.autocorrelation_time, {"draws": CHAINS, "inputs": X}
    ),
    "diagnostics.brier": Call(diagnostics.brier, {"probs": PROBABILITIES, "targets": LABELS}),
    "diagnostics.calibration_error": Call(
        diagnostics.calibration_error, {"probs": PROBABILITIES, "targets": LABELS}
    ),
    "diagnostics.coverage": Call(
        diagnostics.coverage,
        {"lower": torch.zeros(6), "upper": torch.ones(6), "targets": torch.ones(6)},
    ),
    "diagnostics.crps": Call(diagnostics.crps, {"draws": normal(5, 6), "targets": normal(6)}),
    "diagnostics.diagnose": Call(diagnostics.diagnose, WHOLE | {"inputs": X}),
    "diagnostics.ess": Call(diagnostics.ess, {"draws": CHAINS}),
    "diagnostics.group_diagnostics": Call(
        diagnostics.group_diagnostics, {"draws": CHAINS, "groups": "tensor"}
    ),
    "diagnostics.ksd": Call(diagnostics.ksd, {"x": Z, "scores": -Z}),
    "diagnostics.ksd_test": Call(diagnostics.ksd_test, {"x": Z, "scores": -Z, "num_bootstrap": 9}),
    "diagnostics.log_likelihood": Call(diagnostics.log_likelihood, WHOLE),
    "diagnostics.log_predictive_density": Call(diagnostics.log_predictive_density, WHOLE),
    "diagnostics.loo": Call(diagnostics.loo, {"log_likelihood": -normal(3, 20, 6).square()}),
    "diagnostics.mcse": Call(diagnostics.mcse, {"draws": CHAINS}),
    "diagnostics.mmd": Call(diagnostics.mmd, {"x": Z, "y": W}),
    "diagnostics.mmd_test": Call(diagnostics.mmd_test, {"x": Z, "y": W, "num_permutations": 9}),
    "diagnostics.nested_rhat": Call(
        diagnostics.nested_rhat, {"values": SERIES.numpy(), "num_superchains": 3}
    ),
    "diagnostics.nll": Call(diagnostics.nll, {"probs": PROBABILITIES, "targets": LABELS}),
    "diagnostics.predict": Call(diagnostics.predict, {"draws": CHAINS, "inputs": X}),
    "diagnostics.recombine": Call(
        diagnostics.recombine,
        {"draws": CHAINS, "num": 4, "groups": "tensor", "pooled": None, "seed": 0},
    ),
    "diagnostics.rhat": Call(diagnostics.rhat, {"draws": CHAINS}),
    "diagnostics.sliced_wasserstein": Call(
        diagnostics.sliced_wasserstein, {"x": Z, "y": W, "num_projections": 5}
    ),
    "diagnostics.sliced_wasserstein_test": Call(
        diagnostics.sliced_wasserstein_test,
        {"x": Z, "y": W, "num_projections": 5, "num_permutations": 9},
    ),
    "diagnostics.to_arviz": Call(diagnostics.to_arviz, WHOLE),
    "gradients.history": Call(
        gradients.history,
        {},
        lambda h: things.with_estimator(pvi.structured(MODEL, "tensor", history=h)),
    ),
    "gradients.minibatch": Call(gradients.minibatch, {"potential": MODEL}, things.with_estimator),
    "optim.AdaPNM": Call(optim.AdaPNM, PARAMETERS, stepped),
    "optim.LeaderSGD": Call(optim.LeaderSGD, PARAMETERS, lambda o: o.step(loss=torch.ones(3))),
    "optim.PNM": Call(optim.PNM, PARAMETERS, stepped),
    "optim.PerturbedGD": Call(optim.PerturbedGD, PARAMETERS, things.perturbed),
    "optim.Power": Call(
        optim.Power,
        {"optimizer": things.fresh_optimizer(), "exponent": 0.5},
        stepped,
    ),
    "optim.Particles": Call(optim.Particles),
    "optim.Processes": Call(optim.Processes, {"patience": 1.0}),
    "optim.SafeguardSGD": Call(optim.SafeguardSGD, PARAMETERS, stepped),
    "optim.power": Call(
        optim.power, {"optimizer": things.fresh_optimizer(), "exponent": 0.5}, stepped
    ),
    "plots.balance": Call(plots.balance, {"path": things.BALANCE}),
    "plots.bound": Call(plots.bound, {"result": things.BOUND}),
    "plots.current": Call(plots.current, {"result": things.CURRENT}),
    "plots.effective_temperature": Call(plots.effective_temperature, {"result": things.COMPARED}),
    "plots.lag_covariance_loops": Call(plots.lag_covariance_loops, {"draws": SERIES, "max_lag": 3}),
    "plots.normality": Call(plots.normality, {"result": things.GAUSSIANITY}),
    "plots.potential_against_loss": Call(plots.potential_against_loss, {"result": things.SLICE}),
    "plots.reversible_null": Call(plots.reversible_null, {"result": things.SPECTRA}),
    "plots.spectrum": Call(plots.spectrum, {"result": things.NOISE.spectrum()}),
    "plots.tails": Call(plots.tails, {"result": things.TAILS}),
    "plots.temperatures": Call(plots.temperatures, WHOLE),
    "tuning.check_invariance": Call(
        tuning.check_invariance, WHOLE | {"num_steps": 2, "num_starts": 1}
    ),
    "tuning.check_stability": Call(
        tuning.check_stability, {"sampler": pvi.sgld(MODEL), "step_size": 0.1, "data": DATA}
    ),
    "tuning.dual_averaging": Call(
        tuning.dual_averaging, {}, things.with_tuner(lambda m: pvi.hmc(m, 2))
    ),
    "tuning.energy_error": Call(tuning.energy_error, {}, things.with_tuner(pvi.mclmc)),
    "tuning.implied_bias": Call(tuning.implied_bias, {"energy_error": 0.1}),
    "tuning.windows": Call(
        tuning.windows, {}, things.with_tuner(lambda m: pvi.randomized_hmc(m, 0.1))
    ),
    "comparison.Score": Call(
        comparison.Score,
        {"name": "a", "meaning": "b", "compute": lambda s, r: comparison.Estimate(1.0)},
        lambda score: pvi.compare({"a": CHAINS, "b": CHAINS}, DATA, scores=[score]),
    ),
    "comparison.default_scores": Call(comparison.default_scores),
    "testing.check_estimator": Call(
        testing.check_estimator,
        {"make": lambda problem: gradients.minibatch(problem.potential)},
    ),
    "testing.check_kernel": Call(testing.check_kernel, {"kernel": kernels.rbf(2.0)}),
    "testing.check_potential": Call(
        testing.check_potential, {"potential": NORMAL, "particles": normal(3, 2)}
    ),
    "testing.problems": Call(testing.problems),
    "curvature.potential_energy": Call(
        curvature.potential_energy,
        {"potential": MODEL, "position": torch.ones(3), "data": DATA},
        curvature.dense_hessian,
    ),
    "curvature.gauss_newton_product": Call(
        curvature.gauss_newton_product,
        {"potential": MODEL, "position": torch.ones(3), "vector": torch.ones(3), "data": DATA},
    ),
    "curvature.largest_curvature": Call(
        curvature.largest_curvature,
        {"potential": MODEL, "particles": torch.ones(2, 3), "data": DATA},
    ),
    "curvature.top_eigenpairs": Call(
        curvature.top_eigenpairs,
        {"product": lambda v: torch.arange(1.0, 4.0, dtype=v.dtype) * v, "size": 3, "num": 1},
    ),
    "storage.Checkpoint": Call(storage.Checkpoint, {"folder": "run"}),
    "storage.InMemory": Call(storage.InMemory, {}, things.with_storage),
    "running.Every": Call(running.Every, {"steps": 2, "rule": lambda look: None}, things.with_rule),
    "running.Monitor": Call(running.Monitor, {}, things.with_monitor),
    "running.max_seconds": Call(running.max_seconds, {"seconds": 1.0}, things.with_rule),
    "running.converged": Call(running.converged, {"ess": 5.0}, things.with_rule),
    "storage.OnDisk": Call(storage.OnDisk, {"path": "draws"}),
    "storage.moments": Call(storage.moments, {}),
    "storage.parameters": Call(
        storage.parameters,
        {"which": None},
        lambda keep: things.with_storage(storage.InMemory(keep=keep)),
    ),
    "storage.projections": Call(
        storage.projections,
        {"matrix": 2, "seed": 0},
        lambda keep: things.with_storage(storage.InMemory(keep=keep)),
    ),
    "tuning.bounded_heat": Call(
        tuning.bounded_heat,
        {"estimator": gradients.minibatch(MODEL), "data": DATA, "batch_size": 2},
    ),
    "plots.training": Call(plots.training, {"trace": things.TRACE}),
}
