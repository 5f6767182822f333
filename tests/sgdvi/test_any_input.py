"""Every public function of ``sgdvi`` and ``noise``, one or two arguments replaced by anything.

The long run is ``python -m pytest -m slow tests/sgdvi/test_any_input.py``: 20 000 calls.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import particlevi as pvi
from particlevi import noise, sgdvi
from tests.test_any_input import NUMBERS, ours_or_right, tensors

F64 = torch.float64
EYE = torch.eye(2, dtype=F64)
LAW = sgdvi.stationary_law(EYE, EYE, learning_rate=0.1, batch_size=5)
X = torch.randn(12, 10, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
SAMPLES = torch.randn(60, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
NET = nn.Linear(2, 1)
DATA = torch.randn(6, 2), torch.randn(6, 1)
NOISE = noise.measure(NET, DATA, loss_fn=nn.functional.mse_loss)
MODEL = pvi.from_module(NET, pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=6)
DRAWS = pvi.sample(
    pvi.sgd(MODEL), DATA, step_size=1e-3, num_particles=3, num_draws=4, progress=False
)
LINEAR = {"hessian": EYE, "noise": EYE, "learning_rate": 0.1, "batch_size": 2}


def bowl(x):
    return 0.5 * x.square().sum(-1)


CALLS = {
    sgdvi.adam_law: LINEAR | {"beta1": 0.5, "epsilon": 1e-8, "batching": "subset", "num_data": 6},
    sgdvi.alignment: {"noise": NOISE, "top": 2, "num_probes": 4, "seed": 0},
    sgdvi.circulation: {
        "draws": X,
        "time_per_draw": 0.1,
        "lag": 1,
        "directions": EYE,
        "num_blocks": 8,
        "num_flips": 9,
        "seed": 0,
    },
    sgdvi.compare_potentials: {
        "points": X[0],
        "potential": bowl,
        "loss": bowl,
        "directions": EYE,
        "origin": X[0, 0],
    },
    sgdvi.decompose_drift: {
        "points": X[0, :2],
        "drift": lambda x: -x,
        "potential": bowl,
        "diffusion": EYE,
        "temperature": 1.0,
        "seed": 0,
    },
    sgdvi.design: {
        "hessian": EYE,
        "noise": EYE,
        "target": EYE / 9,
        "batch_size": 2,
        "num_data": 9,
        "momentum": 0.1,
        "batching": "subset",
        "preconditioner": "diagonal",
        "injected": True,
        "averaging": 1,
        "law": "exact",
        "shapes": [(2,)],
    },
    sgdvi.effective_temperatures: {"covariance": EYE, "hessian": EYE, "num_data": 5},
    sgdvi.entropy_production: {"draws": X, "time_per_draw": 0.1, "lag": 1, "num_blocks": 8},
    sgdvi.epoch_chain: LINEAR | {"num_data": 6, "preconditioner": EYE},
    sgdvi.epoch_law: LINEAR
    | {"num_data": 6, "momentum": 0.5, "weight_decay": 0.1, "minimum": X[0, 0], "drop_last": True},
    sgdvi.escape_time: {
        "slope": lambda x: x**3 - x,
        "noise": torch.ones_like,
        "temperature": 0.1,
        "minimum": -1.0,
        "saddle": 0.0,
        "end": 1.0,
        "wall": -3.0,
        "num_grid": 201,
    },
    sgdvi.eyring_kramers_time: {
        "minimum_hessian": EYE,
        "saddle_hessian": torch.diag(torch.tensor([-1.0, 1.0])),
        "barrier": 1.0,
        "temperature": 0.2,
        "diffusion": EYE,
    },
    sgdvi.exact_law: LINEAR
    | {
        "num_data": 6,
        "momentum": 0.5,
        "weight_decay": 0.1,
        "minimum": X[0, 0],
        "batching": "subset",
    },
    sgdvi.fit_potential: {
        "draws": X,
        "temperature": 1.0,
        "num_centers": 3,
        "width": 1.0,
        "ridge": 0.1,
        "num_blocks": 3,
        "num_bootstrap": 2,
        "seed": 0,
    },
    sgdvi.free_energy_along: {
        "draws": X,
        "potential": bowl,
        "temperature": 1.0,
        "entropy": "neighbours",
        "num_neighbours": 2,
        "num_groups": 4,
    },
    sgdvi.gaussian_kl: {"mean": X[0, 0], "covariance": EYE, "law": LAW},
    sgdvi.gaussian_potential: {"draws": X, "temperature": 1.0, "shrinkage": 0.1, "num_blocks": 4},
    sgdvi.hessian_vector_product: {"noise": NOISE, "vector": torch.ones(3)},
    sgdvi.invariant_subspace: {"noise": NOISE, "num": 1, "seed": 0},
    sgdvi.is_stationary: {"series": X, "what": "It", "level": 0.01},
    sgdvi.iterate_average: {"draws": DRAWS, "window": 2},
    sgdvi.kl_to_posterior: {
        "hessian": EYE,
        "noise": EYE,
        "num_data": 9,
        "learning_rates": torch.tensor([0.1]),
        "batch_size": 2,
        "preconditioner": EYE,
        "momentum": 0.1,
        "exact": True,
    },
    sgdvi.largest_rate: {
        "features": X[0],
        "batch_size": 2,
        "momentum": 0.1,
        "weight_decay": 0.1,
        "batching": "subset",
    },
    sgdvi.least_squares_law: {
        "features": X[0],
        "targets": X[0, :, 0],
        "learning_rate": 0.01,
        "batch_size": 2,
        "momentum": 0.1,
        "weight_decay": 0.1,
        "batching": "subset",
    },
    sgdvi.line: {"start": X[0, 0], "end": X[0, 1], "num": 3, "margin": 0.1},
    sgdvi.local_learning_coefficient: {
        "module": NET,
        "data": DATA,
        "loss_fn": nn.functional.mse_loss,
        "inverse_temperature": 0.5,
        "localization": 1.0,
        "scheme": "sgld",
        "batch_size": 2,
        "step_size": 1e-3,
        "num_chains": 2,
        "num_draws": 20,
        "thin": 1,
        "seed": 0,
    },
    sgdvi.mean_loss: {"model": MODEL, "data": DATA, "chunk_size": 2},
    sgdvi.moments_along: {
        "law": LAW,
        "mean": X[0, 0],
        "covariance": EYE,
        "times": torch.tensor([0.0, 1.0]),
    },
    sgdvi.optimal_preconditioner: {"noise": EYE, "num_data": 5, "batch_size": 2, "diagonal": False},
    sgdvi.optimal_rate: {"noise": EYE, "num_data": 5, "batch_size": 2, "momentum": 0.1},
    sgdvi.ou_covariance: {"drift": EYE, "diffusion": EYE},
    sgdvi.plan: {
        "model": NET,
        "data": DATA,
        "loss_fn": nn.functional.mse_loss,
        "target": "sandwich",
        "weight_decay": 0.1,
        "preconditioner": "scalar",
        "batch_size": 2,
        "momentum": 0.1,
        "batching": "subset",
        "averaging": 1,
        "injected": False,
        "position": torch.ones(3),
    },
    sgdvi.plane: {"a": X[0, 0], "b": X[0, 1], "c": X[0, 2], "num": 2, "margin": 0.1},
    sgdvi.principal_directions: {"draws": X, "num": 1},
    sgdvi.probability_current: {
        "draws": X,
        "time_per_draw": 0.1,
        "directions": EYE,
        "num_grid": 3,
        "num_blocks": 4,
    },
    sgdvi.project: {
        "draws": X,
        "temperature": 1.0,
        "directions": EYE,
        "num_grid": 5,
        "num_blocks": 4,
        "num_bootstrap": 3,
        "seed": 0,
    },
    sgdvi.rate_schedule_moments: {
        "hessian": EYE,
        "noise": EYE,
        "rates": torch.tensor([0.1, 0.2]),
        "batch_size": 2,
        "mean": X[0, 0],
        "covariance": EYE,
        "momentum": 0.1,
    },
    sgdvi.sgd_chain: LINEAR
    | {
        "momentum": 0.1,
        "preconditioner": EYE,
        "injected": 0.1,
        "batching": "subset",
        "num_data": 6,
    },
    sgdvi.spectra: {"draws": X, "num_frequencies": 2, "max_lag": 2},
    sgdvi.stationary_law: LINEAR
    | {
        "num_data": 6,
        "momentum": 0.5,
        "weight_decay": 0.1,
        "minimum": X[0, 0],
        "batching": "subset",
    },
    sgdvi.swag: {"draws": DRAWS, "num_draws": 3, "rank": 2, "scale": 0.5, "seed": 0},
    noise.average: {"noise": NOISE, "draws": torch.ones(2, 3), "directions": torch.eye(3)},
    noise.batch_factor: {"batch_size": 2, "num_data": 5, "batching": "subset"},
    noise.gradient_variance: {
        "target": MODEL,
        "particles": torch.ones(2, 3),
        "data": DATA,
        "batch_size": 2,
        "num_batches": 2,
        "batching": "subset",
        "seed": 0,
    },
    noise.measure: {
        "model": NET,
        "data": DATA,
        "position": torch.ones(3),
        "loss_fn": nn.functional.mse_loss,
        "mode": "eval",
        "chunk_size": 4,
        "progress": False,
    },
    noise.tail_index: {"samples": SAMPLES, "num_null": 19, "seed": 0},
    noise.hill: {"samples": SAMPLES, "fraction": 0.3},
    noise.gaussianity: {"samples": SAMPLES, "num_directions": 2, "num_bootstrap": 19, "seed": 0},
    noise.spectral_weight: {"curvature": torch.ones(2), "learning_rate": 0.1, "num_batches": 3},
    noise.effective_loss: {"noise": NOISE, "learning_rate": 0.1, "batch_size": 2},
    noise.epoch_drift: {"noise": NOISE, "learning_rate": 0.1, "batch_size": 2},
    noise.shuffling_regulariser: {"noise": NOISE, "learning_rate": 0.1, "batch_size": 2},
    noise.finite_rate_regulariser: {
        "noise": NOISE,
        "learning_rate": 0.1,
        "batch_size": 2,
        "top": 2,
    },
    noise.noise_along: {"noise": NOISE, "positions": torch.ones(2, 3), "progress": False},
    noise.scalings: {
        "learning_rate": 0.1,
        "batch_size": 2,
        "momentum": 0.1,
        "batching": "subset",
        "num_data": 5,
    },
    noise.temperature: {
        "learning_rate": 0.1,
        "batch_size": 2,
        "momentum": 0.1,
        "batching": "subset",
        "num_data": 5,
    },
}

ANYTHING = st.one_of(
    NUMBERS.filter(lambda n: not isinstance(n, int) or isinstance(n, bool) or n < 30),
    tensors(),
    tensors(st.sampled_from([(2,), (2, 2), (3,), (12, 10, 2), (1, 2), (3, 3), (0, 2), (12, 2)])),
    st.sampled_from(["auto", "epoch", "", [], [1.0, 2.0], {}, (X,), bowl, torch.tensor(1.0), MODEL,
                     DRAWS, NOISE, LAW, nn.Linear(2, 3), lambda x: None, EYE.float(), X.half(),
                     X.numpy(), 10**400, "cpu"]),
)  # fmt: skip


# They take whole runs of nets with the symmetry that they are about: see tests/noise.
FOR_RECORDED_RUNS = {noise.balance_along, noise.generalization_bound}


def test_every_public_function_is_tried():
    for package in (sgdvi, noise):
        functions = {
            value for name in package.__all__ if inspect.isfunction(value := getattr(package, name))
        }
        assert functions <= set(CALLS) | FOR_RECORDED_RUNS


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_the_arguments_that_are_replaced_are_right(function):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(**CALLS[function])


@st.composite
def calls(draw):
    function = draw(st.sampled_from(list(CALLS)))
    valid = CALLS[function]
    names = draw(st.lists(st.sampled_from(list(valid)), min_size=1, max_size=2, unique=True))
    return function, valid | {name: draw(ANYTHING) for name in names}


def tried(function, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ours_or_right(lambda: function(**arguments))


quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=400, derandomize=True, **quiet)
@given(calls())
def test_an_error_of_ours_or_an_answer(call):
    tried(*call)


@pytest.mark.slow
def test_twenty_thousand_calls():
    """No obscure error; the rate of answers is printed with ``-s``."""
    outcomes: Counter[str] = Counter()

    @settings(max_examples=20_000, derandomize=True, **quiet)
    @given(calls())
    def run(call):
        try:
            outcomes["error of ours" if tried(*call) is None else "answer"] += 1
        except Exception as error:
            outcomes[f"obscure: {call[0].__name__} {type(error).__name__} {str(error)[:90]}"] += 1

    run()
    for kind, count in outcomes.most_common():
        print(count, kind)
    assert not [kind for kind in outcomes if kind.startswith("obscure")]
