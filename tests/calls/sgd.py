"""Right calls of ``sgdvi`` and ``noise``."""

from __future__ import annotations

import torch
from torch import nn

from particlevi import noise, sgdvi
from tests.calls.call import Call
from tests.calls.things import (
    DATA,
    DRAWS,
    EYE,
    LAW,
    MODEL,
    NOISE,
    OTHERS,
    PAIRS,
    RUNS,
    SAMPLES,
    SERIES,
    bowl,
    normal,
)
from tests.calls.things import (
    LINEAR as NET,
)

PATH = sgdvi.straight(torch.zeros(3), torch.ones(3))
LINEAR = {"hessian": EYE, "noise": EYE, "learning_rate": 0.1, "batch_size": 2}

SGD = {
    "sgdvi.circulation": Call(
        sgdvi.circulation,
        {
            "draws": SERIES,
            "time_per_draw": 0.1,
            "lag": 1,
            "directions": EYE,
            "num_blocks": 8,
            "num_flips": 9,
            "seed": 0,
        },
    ),
    "sgdvi.compare_potentials": Call(
        sgdvi.compare_potentials,
        {
            "points": SERIES[0],
            "potential": bowl,
            "loss": bowl,
            "directions": EYE,
            "origin": SERIES[0, 0],
        },
    ),
    "sgdvi.decompose_drift": Call(
        sgdvi.decompose_drift,
        {
            "points": SERIES[0, :2],
            "drift": lambda x: -x,
            "potential": bowl,
            "diffusion": EYE,
            "temperature": 1.0,
            "seed": 0,
        },
    ),
    "sgdvi.effective_temperatures": Call(
        sgdvi.effective_temperatures, {"covariance": EYE, "hessian": EYE, "num_data": 5}
    ),
    "sgdvi.entropy_production": Call(
        sgdvi.entropy_production, {"draws": SERIES, "time_per_draw": 0.1, "lag": 1, "num_blocks": 8}
    ),
    "sgdvi.epoch_law": Call(
        sgdvi.epoch_law,
        LINEAR
        | {
            "num_data": 6,
            "momentum": 0.5,
            "weight_decay": 0.1,
            "minimum": SERIES[0, 0],
            "drop_last": True,
        },
    ),
    "sgdvi.exact_law": Call(
        sgdvi.exact_law,
        LINEAR
        | {
            "num_data": 6,
            "momentum": 0.5,
            "weight_decay": 0.1,
            "minimum": SERIES[0, 0],
            "batching": "subset",
        },
    ),
    "sgdvi.fit_potential": Call(
        sgdvi.fit_potential,
        {
            "draws": SERIES,
            "temperature": 1.0,
            "num_centers": 3,
            "width": 1.0,
            "ridge": 0.1,
            "num_blocks": 3,
            "num_bootstrap": 2,
            "seed": 0,
        },
    ),
    "sgdvi.free_energy_along": Call(
        sgdvi.free_energy_along,
        {
            "draws": SERIES,
            "potential": bowl,
            "temperature": 1.0,
            "entropy": "neighbours",
            "num_neighbours": 2,
            "num_groups": 4,
        },
    ),
    "sgdvi.gaussian_kl": Call(
        sgdvi.gaussian_kl, {"mean": SERIES[0, 0], "covariance": EYE, "law": LAW}
    ),
    "sgdvi.gaussian_potential": Call(
        sgdvi.gaussian_potential,
        {"draws": SERIES, "temperature": 1.0, "shrinkage": 0.1, "num_blocks": 4},
    ),
    "sgdvi.hessian_vector_product": Call(
        sgdvi.hessian_vector_product, {"noise": NOISE, "vector": torch.ones(3)}
    ),
    "sgdvi.invariant_subspace": Call(
        sgdvi.invariant_subspace, {"noise": NOISE, "num": 1, "seed": 0}
    ),
    "sgdvi.is_stationary": Call(
        sgdvi.is_stationary, {"series": SERIES, "what": "It", "level": 0.01}
    ),
    "sgdvi.iterate_average": Call(sgdvi.iterate_average, {"draws": DRAWS, "window": 2}),
    "sgdvi.kl_to_posterior": Call(
        sgdvi.kl_to_posterior,
        {
            "hessian": EYE,
            "noise": EYE,
            "num_data": 9,
            "learning_rates": torch.tensor([0.1]),
            "batch_size": 2,
            "preconditioner": EYE,
            "momentum": 0.1,
            "exact": True,
        },
    ),
    "sgdvi.largest_rate": Call(
        sgdvi.largest_rate,
        {
            "features": SERIES[0],
            "batch_size": 2,
            "momentum": 0.1,
            "weight_decay": 0.1,
            "batching": "subset",
        },
    ),
    "sgdvi.least_squares_law": Call(
        sgdvi.least_squares_law,
        {
            "features": SERIES[0],
            "targets": SERIES[0, :, 0],
            "learning_rate": 0.01,
            "batch_size": 2,
            "momentum": 0.1,
            "weight_decay": 0.1,
            "batching": "subset",
        },
    ),
    "sgdvi.line": Call(
        sgdvi.line, {"start": SERIES[0, 0], "end": SERIES[0, 1], "num": 3, "margin": 0.1}
    ),
    "sgdvi.mean_loss": Call(sgdvi.mean_loss, {"potential": MODEL, "data": DATA, "chunk_size": 2}),
    "sgdvi.moments_along": Call(
        sgdvi.moments_along,
        {
            "law": LAW,
            "mean": SERIES[0, 0],
            "covariance": EYE,
            "times": torch.tensor([0.0, 1.0]),
        },
    ),
    "sgdvi.optimal_preconditioner": Call(
        sgdvi.optimal_preconditioner,
        {"noise": EYE, "num_data": 5, "batch_size": 2, "diagonal": False},
    ),
    "sgdvi.optimal_rate": Call(
        sgdvi.optimal_rate, {"noise": EYE, "num_data": 5, "batch_size": 2, "momentum": 0.1}
    ),
    "sgdvi.ou_covariance": Call(sgdvi.ou_covariance, {"drift": EYE, "diffusion": EYE}),
    "sgdvi.plane": Call(
        sgdvi.plane,
        {"a": SERIES[0, 0], "b": SERIES[0, 1], "c": SERIES[0, 2], "num": 2, "margin": 0.1},
    ),
    "sgdvi.principal_directions": Call(sgdvi.principal_directions, {"draws": SERIES, "num": 1}),
    "sgdvi.probability_current": Call(
        sgdvi.probability_current,
        {
            "draws": SERIES,
            "time_per_draw": 0.1,
            "directions": EYE,
            "num_grid": 3,
            "num_blocks": 4,
        },
    ),
    "sgdvi.project": Call(
        sgdvi.project,
        {
            "draws": SERIES,
            "temperature": 1.0,
            "directions": EYE,
            "num_grid": 5,
            "num_blocks": 4,
            "num_bootstrap": 3,
            "seed": 0,
        },
    ),
    "sgdvi.spectra": Call(sgdvi.spectra, {"draws": SERIES, "num_frequencies": 2, "max_lag": 2}),
    "sgdvi.stationary_law": Call(
        sgdvi.stationary_law,
        LINEAR
        | {
            "num_data": 6,
            "momentum": 0.5,
            "weight_decay": 0.1,
            "minimum": SERIES[0, 0],
            "batching": "subset",
        },
    ),
    "sgdvi.swag": Call(
        sgdvi.swag, {"draws": DRAWS, "num_draws": 3, "rank": 2, "scale": 0.5, "seed": 0}
    ),
    "noise.average": Call(
        noise.average, {"noise": NOISE, "draws": torch.ones(2, 3), "directions": torch.eye(3)}
    ),
    "noise.batch_factor": Call(
        noise.batch_factor, {"batch_size": 2, "num_data": 5, "batching": "subset"}
    ),
    "noise.gradient_variance": Call(
        noise.gradient_variance,
        {
            "target": MODEL,
            "particles": torch.ones(2, 3),
            "data": DATA,
            "batch_size": 2,
            "num_batches": 2,
            "batching": "subset",
            "seed": 0,
        },
    ),
    "noise.measure": Call(
        noise.measure,
        {
            "model": NET,
            "data": DATA,
            "position": torch.ones(3),
            "loss_fn": nn.functional.mse_loss,
            "mode": "eval",
            "chunk_size": 4,
            "progress": False,
        },
    ),
    "noise.tail_index": Call(noise.tail_index, {"samples": SAMPLES, "num_null": 19, "seed": 0}),
    "noise.hill": Call(noise.hill, {"samples": SAMPLES, "fraction": 0.3}),
    "noise.gaussianity": Call(
        noise.gaussianity, {"samples": SAMPLES, "num_directions": 2, "num_bootstrap": 19, "seed": 0}
    ),
    "noise.spectral_weight": Call(
        noise.spectral_weight, {"curvature": torch.ones(2), "learning_rate": 0.1, "num_batches": 3}
    ),
    "noise.effective_loss": Call(
        noise.effective_loss, {"noise": NOISE, "learning_rate": 0.1, "batch_size": 2}
    ),
    "noise.epoch_drift": Call(
        noise.epoch_drift, {"noise": NOISE, "learning_rate": 0.1, "batch_size": 2}
    ),
    "noise.shuffling_regulariser": Call(
        noise.shuffling_regulariser, {"noise": NOISE, "learning_rate": 0.1, "batch_size": 2}
    ),
    "noise.finite_rate_regulariser": Call(
        noise.finite_rate_regulariser,
        {
            "noise": NOISE,
            "learning_rate": 0.1,
            "batch_size": 2,
            "top": 2,
        },
    ),
    "noise.noise_along": Call(
        noise.noise_along, {"noise": NOISE, "positions": torch.ones(2, 3), "progress": False}
    ),
    "noise.scalings": Call(
        noise.scalings,
        {
            "learning_rate": 0.1,
            "batch_size": 2,
            "momentum": 0.1,
            "batching": "subset",
            "num_data": 5,
        },
    ),
    "noise.temperature": Call(
        noise.temperature,
        {
            "learning_rate": 0.1,
            "batch_size": 2,
            "momentum": 0.1,
            "batching": "subset",
            "num_data": 5,
        },
    ),
    "noise.balance_along": Call(
        noise.balance_along, {"noise": PAIRS, "positions": PAIRS.position.repeat(2, 1)}
    ),
    "noise.generalization_bound": Call(
        noise.generalization_bound,
        {
            "runs": RUNS,
            "train": [NOISE, NOISE],
            "held_out": OTHERS,
            "scales": torch.tensor([0.1, 1.0]),
            "subgaussian": 0.5,
            "num_draws": 2,
            "final_draws": 4,
        },
    ),
    "noise.DiagonalNet": Call(
        noise.DiagonalNet,
        {"a1": 2.0, "a2": 1.0, "a3": 2.0, "b1": 1.0, "b2": 0.5},
        lambda net: net.mode(0.05),
    ),
    "noise.SGDRecorder": Call(
        noise.SGDRecorder,
        {"optimizer": torch.optim.SGD([torch.nn.Parameter(normal(3))], lr=0.1), "every": 2},
    ),
    "noise.SGDRun.from_positions": Call(
        noise.SGDRun.from_positions, {"positions": normal(7, 3), "learning_rate": 0.1}
    ),
    "sgdvi.adam_law": Call(sgdvi.adam_law, LINEAR | {"beta1": 0.5, "num_data": 6}),
    "sgdvi.alignment": Call(sgdvi.alignment, {"noise": NOISE, "top": 2, "num_probes": 4}),
    "sgdvi.barrier": Call(
        sgdvi.barrier, {"curve": PATH, "potential": MODEL, "data": DATA, "num_points": 3}
    ),
    "sgdvi.connect": Call(
        sgdvi.connect,
        {
            "potential": MODEL,
            "data": DATA,
            "start": torch.zeros(3),
            "end": torch.ones(3),
            "num_steps": 2,
            "batch_size": 2,
        },
    ),
    "sgdvi.crossing": Call(
        sgdvi.crossing, {"curve": PATH, "noise": NOISE, "temperature": 0.1, "num_points": 5}
    ),
    "sgdvi.straight": Call(sgdvi.straight, {"start": torch.zeros(3), "end": torch.ones(3)}),
    "sgdvi.design": Call(
        sgdvi.design,
        {
            "hessian": EYE,
            "noise": EYE,
            "target": EYE / 9,
            "batch_size": 2,
            "num_data": 9,
            "momentum": 0.1,
            "preconditioner": "diagonal",
            "shapes": [(2,)],
        },
    ),
    "sgdvi.epoch_chain": Call(sgdvi.epoch_chain, LINEAR | {"num_data": 6, "preconditioner": EYE}),
    "sgdvi.escape_time": Call(
        sgdvi.escape_time,
        {
            "slope": lambda x: x**3 - x,
            "noise": torch.ones_like,
            "temperature": 0.1,
            "minimum": -1.0,
            "saddle": 0.0,
            "end": 1.0,
            "wall": -3.0,
            "num_grid": 201,
        },
    ),
    "sgdvi.eyring_kramers_time": Call(
        sgdvi.eyring_kramers_time,
        {
            "minimum_hessian": EYE,
            "saddle_hessian": torch.diag(torch.tensor([-1.0, 1.0])),
            "barrier": 1.0,
            "temperature": 0.2,
            "diffusion": EYE,
        },
    ),
    "sgdvi.local_learning_coefficient": Call(
        sgdvi.local_learning_coefficient,
        {
            "module": NET,
            "data": DATA,
            "loss_fn": nn.functional.mse_loss,
            "scheme": "sgld",
            "batch_size": 2,
            "step_size": 1e-3,
            "num_chains": 2,
            "num_draws": 20,
            "thin": 1,
        },
    ),
    "sgdvi.plan": Call(
        sgdvi.plan,
        {
            "model": NET,
            "data": DATA,
            "loss_fn": nn.functional.mse_loss,
            "target": "sandwich",
            "weight_decay": 0.1,
            "preconditioner": "scalar",
            "batch_size": 2,
            "injected": False,
            "position": torch.ones(3),
        },
    ),
    "sgdvi.rate_schedule_moments": Call(
        sgdvi.rate_schedule_moments,
        {
            "hessian": EYE,
            "noise": EYE,
            "rates": torch.tensor([0.1, 0.2]),
            "batch_size": 2,
            "mean": SERIES[0, 0],
            "covariance": EYE,
            "momentum": 0.1,
        },
    ),
    "sgdvi.sgd_chain": Call(
        sgdvi.sgd_chain, LINEAR | {"momentum": 0.1, "preconditioner": EYE, "injected": 0.1}
    ),
}
