"""What a call means where nothing is said: a default is a promise, and to change one breaks it.

Whoever changes a default changes it here too, and says so in ``CHANGELOG.md``, since programs of
users then give other results.
"""

from __future__ import annotations

import inspect
import math
from functools import reduce
from typing import Any

import pytest

import particlevi as pvi
from tests import registry

DEFAULTS: dict[str, dict[str, Any]] = {
    "Correlated": {"fan_in": False},
    "Gaussian": {"num_outputs": 1},
    "Hierarchical": {"scale": 1.0, "spread": 1.0, "fan_in": False},
    "Horseshoe": {"scale": 1.0, "fan_in": False},
    "Laplace": {"scale": 1.0, "fan_in": False, "mean": 0.0},
    "NegativeBinomial": {"concentration": "learned", "num_outputs": 1},
    "Normal": {"scale": 1.0, "fan_in": False, "mean": 0.0},
    "Ordinal": {"cutpoints": "learned"},
    "StudentT": {"scale": 1.0, "fan_in": False, "mean": 0.0, "num_outputs": 1},
    "baoab": {"friction": 1.0, "temperature": 1.0},
    "check_collapse": {"num_steps": 300, "seed": 0},
    "compare": {"thin": 1, "max_hessian": 1500, "seed": 0},
    "control_variate": {"chunk_size": 1024},
    "from_log_density": {"vectorized": False, "device": "cpu"},
    "from_log_likelihood": {"vectorized": False, "device": "cpu"},
    "from_module": {"batch_norm": "frozen"},
    "hmc": {"num_leapfrog": 10, "temperature": 1.0, "jitter": 0.1},
    "leimkuhler_matthews": {"temperature": 1.0},
    "mams": {"integrator": "minimal_norm"},
    "mclmc": {"integrator": "minimal_norm"},
    "message_passing_svgd": {"groups": "tensor", "optimizer": "plain", "annealing": 1.0},
    "nvgd": {
        "num_inner_steps": 10,
        "network_step_size": 0.005,
        "regularisation": 0.5,
        "validation_fraction": 0.25,
        "patience": 5,
    },
    "obabo": {"friction": 1.0, "temperature": 1.0},
    "optimizer": {"loss": "mean"},
    "parallel_tempering": {
        "temperatures": (1.0, 2.0, 4.0, 8.0),
        "friction": 1.0,
        "swap_every": 1,
        "energy_noise": "online",
    },
    "psghmc": {
        "friction": 1.0,
        "temperature": 1.0,
        "decay": 0.99,
        "regularisation": 1e-07,
        "update_every": 100,
        "freeze": True,
    },
    "psgld": {
        "temperature": 1.0,
        "decay": 0.99,
        "regularisation": 0.001,
        "freeze": True,
        "divergence": False,
    },
    "randomized_hmc": {"trajectory_length": 0.5 * math.pi, "integrator": "leapfrog"},
    "repulsive_langevin": {"temperature": 1.0, "jitter": 1e-06},
    "resume": {"processes": "all", "progress": True},
    "sample": {
        "seed": 0,
        "compile": False,
        "progress": True,
        "batching": "replacement",
        "processes": "all",
    },
    "sgd": {"momentum": 0.0},
    "sghmc": {"friction": 1.0, "temperature": 1.0, "gradient_noise": 0.0, "integrator": "baoa"},
    "sgld": {"temperature": 1.0, "gradient_noise": 0.0},
    "sgnht": {"diffusion": 1.0, "temperature": 1.0},
    "structured": {"num_history": 1},
    "structured_dropout": {"num_masks": 4, "mask": "bernoulli"},
    "suggest_step_size": {"temperature": 1.0, "friction": 1.0, "verbose": True},
    "svgd": {"optimizer": "plain", "annealing": 1.0},
    "gradients.history": {
        "capacity": 200,
        "thin": 10,
        "replace": "oldest",
        "pooled": False,
        "frozen": False,
    },
    "kernels.median": {"log": "P+1", "pairs": "distinct"},
    "kernels.random_features": {"num_features": 1024, "seed": 0},
    "storage.InMemory": {"warmup": False, "sharded": False},
    "storage.OnDisk": {"warmup": False, "compress": False},
    "storage.projections": {"seed": 0},
    "running.Monitor": {"rules": (), "every": 100},
    "running.converged": {"ess": 400.0, "rhat": 1.01},
    "tuning.bounded_heat": {
        "dynamics": "momentum",
        "compensated": False,
        "tolerance": 0.1,
        "target": 0.0001,
        "step_size": 0.1,
        "decoherence": 2.0,
        "every": 4,
        "first_probes": 40,
        "seed": 0,
    },
    "tuning.check_invariance": {"num_starts": 4, "num_steps": 150, "tolerance": 0.1, "seed": 0},
    "tuning.dual_averaging": {"target_acceptance": 0.8, "step_size": 0.1},
    "tuning.energy_error": {"target": 0.0001, "metric": "diagonal", "decoherence": 2.0},
    "tuning.windows": {"metric": "dense", "target_acceptance": 0.8, "step_size": 0.5},
    "diagnostics.autocorrelation_time": {"of": "parameters", "num": 100},
    "diagnostics.calibration_error": {"num_bins": 15, "binning": "width"},
    "diagnostics.diagnose": {"thin": 1},
    "diagnostics.ess": {"of": "parameters", "method": "bulk", "num": 100},
    "diagnostics.ksd": {"statistic": "U"},
    "diagnostics.ksd_test": {"num_bootstrap": 500, "seed": 0},
    "diagnostics.log_likelihood": {"thin": 1, "chunk_size": 64, "batch_size": 1024},
    "diagnostics.log_predictive_density": {"thin": 1, "chunk_size": 64, "batch_size": 1024},
    "diagnostics.mcse": {"of": "parameters", "method": "mean", "num": 100},
    "diagnostics.mmd": {"statistic": "U"},
    "diagnostics.mmd_test": {"num_permutations": 500, "seed": 0},
    "diagnostics.predict": {
        "quantiles": (),
        "thin": 1,
        "chunk_size": 64,
        "batch_size": 1024,
        "seed": 0,
    },
    "diagnostics.rhat": {"of": "parameters", "num": 100},
    "diagnostics.sliced_wasserstein": {"num_projections": 100, "seed": 0},
    "diagnostics.sliced_wasserstein_test": {
        "num_projections": 50,
        "num_permutations": 200,
        "seed": 0,
    },
    "diagnostics.to_arviz": {"log_likelihood": False, "posterior_predictive": False, "seed": 0},
    "noise.batch_factor": {"batching": "replacement"},
    "noise.gaussianity": {"num_directions": 30, "num_bootstrap": 199, "seed": 0},
    "noise.generalization_bound": {"num_draws": 4, "final_draws": 32, "seed": 0},
    "noise.gradient_variance": {"num_batches": 32, "batching": "replacement", "seed": 0},
    "noise.hill": {"fraction": 0.05},
    "noise.measure": {"mode": "eval", "chunk_size": 1024, "progress": False},
    "noise.noise_along": {"progress": False},
    "noise.scalings": {"momentum": 0.0, "batching": "replacement"},
    "noise.shuffling_regulariser": {"partitions": "fixed"},
    "noise.tail_index": {"center": True, "confidence": 0.95, "num_null": 99, "seed": 0},
    "noise.temperature": {"momentum": 0.0, "batching": "replacement"},
    "curvature.curvature_operator": {"kind": "hessian", "weight_decay": 0.0, "chunk_size": 4096},
    "curvature.edge_of_stability": {"momentum": 0.0, "tolerance": 0.001},
    "curvature.estimate_trace": {"num_products": 60, "method": "hutch++", "seed": 0},
    "curvature.gauss_newton_product": {"chunk_size": 1024},
    "curvature.largest_curvature": {"chunk_size": 1024, "tolerance": 0.01},
    "curvature.potential_energy": {"chunk_size": 1024},
    "curvature.spectral_density": {"num_steps": 60, "num_probes": 8, "seed": 0},
    "curvature.top_eigenpairs": {"tolerance": 0.0, "seed": 0},
    "optim.PNM": {
        "lr": 0.001,
        "betas": (0.9, 1.0),
        "weight_decay": 0.0,
        "decoupled_weight_decay": True,
        "maximize": False,
        "capturable": False,
        "differentiable": False,
    },
    "optim.AdaPNM": {
        "lr": 0.001,
        "betas": (0.9, 0.999, 1.0),
        "eps": 1e-08,
        "weight_decay": 0.0,
        "amsgrad": True,
        "decoupled_weight_decay": True,
        "maximize": False,
        "capturable": False,
        "differentiable": False,
    },
    "optim.LeaderSGD": {
        "lr": 0.001,
        "pull": 0.1,
        "period": 1,
        "window": 16,
        "num_groups": 1,
        "global_pull": 0.0,
        "global_period": 1,
        "stale_pull": 0.0,
        "global_stale_pull": 0.0,
        "momentum": 0.0,
        "nesterov": False,
        "weight_decay": 0.0,
        "decoupled_weight_decay": False,
        "maximize": False,
        "capturable": False,
    },
    "optim.PerturbedGD": {
        "lr": 0.001,
        "std": 0.01,
        "seed": 0,
        "weight_decay": 0.0,
        "decoupled_weight_decay": True,
        "maximize": False,
        "capturable": False,
    },
    "optim.Processes": {"patience": 10.0},
    "optim.SafeguardSGD": {
        "lr": 0.001,
        "window": 100,
        "constant": 2.0,
        "noise": 0.0,
        "sketch": 4096,
        "seed": 0,
        "weight_decay": 0.0,
        "decoupled_weight_decay": False,
        "maximize": False,
        "capturable": False,
    },
}


def is_plain(value: Any) -> bool:
    """A number, a word or several of them."""
    return isinstance(value, bool | int | str | tuple) or (
        isinstance(value, float) and not math.isnan(value)
    )


def given(factory: Any) -> dict[str, Any]:
    """The plain values in a signature, in its order."""
    found = {key: each.default for key, each in inspect.signature(factory).parameters.items()}
    return {key: value for key, value in found.items() if is_plain(value)}


def named(name: str) -> Any:
    """What a public name stands for."""
    return reduce(getattr, name.split("."), pvi)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_that_were_promised(name):
    """As text, since True equals 1 and means another thing."""
    assert repr(given(named(name))) == repr(DEFAULTS[name])


FACTORIES = {
    name: case.factory for name, case in {**registry.SAMPLERS, **registry.ESTIMATORS}.items()
}


@pytest.mark.parametrize("name", FACTORIES)
def test_every_sampler_and_estimator_with_defaults_is_in_the_table(name):
    known = any(named(key) is FACTORIES[name] for key in DEFAULTS)
    assert known == bool(given(FACTORIES[name]))
