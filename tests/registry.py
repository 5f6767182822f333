"""Every sampler, gradient estimator and kernel: one line each makes it pass ``tests/contract``.

A new sampler is one line in ``SAMPLERS``, a new estimator one in ``ESTIMATORS``; a public factory
that is in neither fails ``tests/contract/test_registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import particlevi as pvi
from particlevi.testing import Problem, Setting
from particlevi.testing.problems import PROBLEMS
from particlevi.typing import GradientEstimator, Sampler


@dataclass(frozen=True)
class SamplerCase:
    """A sampler and a step size that is stable on every problem.

    Attributes:
        factory: the public function.
        step_size: stable for curvatures up to 200.
        options: arguments other than the target.
        all_data: it refuses minibatches.
        energy: it refuses estimators whose gradient is not that of their potential.
    """

    factory: Callable[..., Sampler]
    step_size: float
    options: Mapping[str, Any] = field(default_factory=dict)
    all_data: bool = False
    energy: bool = False

    def __call__(self, target: Any) -> Sampler:
        """The sampler of a potential or an estimator."""
        return self.factory(target, **self.options)


@dataclass(frozen=True)
class EstimatorCase:
    """A gradient estimator.

    Attributes:
        factory: the public name.
        make: the estimator of a problem.
        needs_data: it makes no sense for a density without data.
        conservative: its gradient is that of its potential.
    """

    factory: Callable[..., Any]
    make: Callable[[Problem], GradientEstimator]
    needs_data: bool = False
    conservative: bool = True


SAMPLERS = {
    "sgd": SamplerCase(pvi.sgd, 1e-3),
    "sgd_momentum": SamplerCase(pvi.sgd, 1e-3, {"momentum": 0.9}),
    "optimizer_adamw": SamplerCase(pvi.optimizer, 1e-2, {"make": torch.optim.AdamW}),
    "optimizer_pnm": SamplerCase(pvi.optimizer, 1e-2, {"make": pvi.optim.PNM}),
    "sgld": SamplerCase(pvi.sgld, 1e-3),
    "psgld": SamplerCase(pvi.psgld, 1e-3),
    "sghmc": SamplerCase(pvi.sghmc, 1e-2),
    "sghmc_compensated": SamplerCase(pvi.sghmc, 1e-2, {"gradient_noise": 3.0}),
    "sghmc_online": SamplerCase(pvi.sghmc, 1e-2, {"gradient_noise": "online", "friction": 9.0}),
    "sgld_online": SamplerCase(pvi.sgld, 1e-3, {"gradient_noise": "online"}),
    "sgld_compensated": SamplerCase(pvi.sgld, 1e-3, {"gradient_noise": 3.0}),
    "psgld_divergence": SamplerCase(pvi.psgld, 1e-3, {"divergence": True}),
    "sghmc_symplectic": SamplerCase(pvi.sghmc, 1e-2, {"integrator": "symplectic"}),
    "sghmc_explicit": SamplerCase(pvi.sghmc, 1e-2, {"integrator": "explicit", "friction": 4.0}),
    "leimkuhler_matthews": SamplerCase(pvi.leimkuhler_matthews, 1e-3),
    "baoab": SamplerCase(pvi.baoab, 1e-2),
    "obabo": SamplerCase(pvi.obabo, 1e-2),
    "obabo_metropolis": SamplerCase(
        pvi.obabo, 1e-2, {"metropolis_every": 2}, all_data=True, energy=True
    ),
    "hmc": SamplerCase(pvi.hmc, 1e-2, {"num_leapfrog": 3}, all_data=True, energy=True),
    "mclmc": SamplerCase(pvi.mclmc, 1e-2, all_data=True, energy=True),
    "mclmc_leapfrog": SamplerCase(
        pvi.mclmc, 1e-2, {"integrator": "leapfrog"}, all_data=True, energy=True
    ),
    "mams": SamplerCase(pvi.mams, 1e-2, {"trajectory_length": 2e-2}, all_data=True, energy=True),
    "randomized_hmc": SamplerCase(
        pvi.randomized_hmc, 1e-2, {"trajectory_length": 2e-2}, all_data=True, energy=True
    ),
    "sgnht": SamplerCase(pvi.sgnht, 1e-2),
    "psghmc": SamplerCase(pvi.psghmc, 1e-2, {"update_every": 2}),
    "parallel_tempering": SamplerCase(
        pvi.parallel_tempering,
        1e-2,
        {"temperatures": [1.0, 2.0, 4.0]},
        energy=True,
    ),
    "svgd": SamplerCase(pvi.svgd, 1e-2),
    "svgd_adagrad": SamplerCase(pvi.svgd, 1e-2, {"optimizer": "adagrad"}),
    "svgd_rmsprop": SamplerCase(pvi.svgd, 1e-2, {"optimizer": "rmsprop"}),
    "svgd_adam": SamplerCase(pvi.svgd, 1e-2, {"optimizer": "adam"}),
    "svgd_imq_annealed": SamplerCase(
        pvi.svgd,
        1e-2,
        {"kernel": pvi.kernels.imq(), "annealing": pvi.schedules.polynomial(0.9, delay=10)},
    ),
    "svgd_random_features": SamplerCase(
        pvi.svgd, 1e-2, {"kernel": pvi.kernels.random_features(16)}
    ),
    "svgd_product": SamplerCase(pvi.svgd, 1e-2, {"kernel": pvi.kernels.product("tensor")}),
    "svgd_additive": SamplerCase(pvi.svgd, 1e-2, {"kernel": pvi.kernels.additive("tensor")}),
    "message_passing_svgd": SamplerCase(pvi.message_passing_svgd, 1e-2, {"groups": ("random", 3)}),
    "repulsive_langevin": SamplerCase(
        pvi.repulsive_langevin, 1e-3, {"kernel": pvi.kernels.rbf(2.0)}
    ),
    "nvgd": SamplerCase(pvi.nvgd, 1e-3, {"num_inner_steps": 2}),
}

ESTIMATORS = {
    "minibatch": EstimatorCase(
        pvi.gradients.minibatch, lambda problem: pvi.gradients.minibatch(problem.potential)
    ),
    "control_variate": EstimatorCase(
        pvi.control_variate,
        lambda problem: pvi.control_variate(problem.potential, problem.data, problem.center),
        needs_data=True,
    ),
    "svrg": EstimatorCase(
        pvi.control_variate,
        lambda problem: pvi.control_variate(problem.potential, problem.data, refresh=2),
        needs_data=True,
    ),
    "msgd": EstimatorCase(
        pvi.msgd,
        lambda problem: pvi.msgd(problem.potential, "minibatch_cov", batch_size=2),
        needs_data=True,
        conservative=False,
    ),
    "structured": EstimatorCase(
        pvi.structured,
        lambda problem: pvi.structured(
            problem.potential, ("random", 2), num_history=2, history=_history(problem)
        ),
        conservative=False,
    ),
    "structured_dropout": EstimatorCase(
        pvi.structured_dropout,
        lambda problem: pvi.structured_dropout(
            problem.potential, ("random", 2), keep=0.5, history=_history(problem)
        ),
        conservative=False,
    ),
}

KERNELS = {
    "rbf": pvi.kernels.rbf(),
    "imq": pvi.kernels.imq(),
    "linear": pvi.kernels.linear(),
    "random_features": pvi.kernels.random_features(16),
    "product": pvi.kernels.product("tensor"),
    "additive": pvi.kernels.additive("tensor"),
    "graphical": pvi.kernels.graphical("tensor"),
}


def _history(problem: Problem) -> pvi.gradients.history:
    """With entries from the start, so that the first step is no plain one already."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(3, len(problem.center), generator=generator, dtype=torch.float64)
    return pvi.gradients.history(capacity=5, thin=1, initial=problem.center + 0.3 * spread)


density, function, module = (PROBLEMS[name] for name in ("density", "function", "module"))


def batch_of(problem: Problem, num_particles: int | None, size: int = 4, seed: int = 0) -> Any:
    """A minibatch: ``[P, B, ...]`` for so many particles, ``[B, ...]`` shared if None."""
    return problem.batch(num_particles, size, seed)


def grid() -> list[tuple[str, str, str]]:
    """Every sampler with every estimator on every problem where they make sense, by name."""
    return [
        (sampler, estimator, problem)
        for sampler in SAMPLERS
        for estimator, case in ESTIMATORS.items()
        for problem in PROBLEMS
        if not (case.needs_data and problem == "density")
        and not (SAMPLERS[sampler].all_data and problem != "density")
        and not (SAMPLERS[sampler].energy and not case.conservative)
    ]


def setting(sampler: str, estimator: str, problem: str) -> Setting:
    """A case of the grid."""
    case = SAMPLERS[sampler]
    return Setting(case, case.step_size, ESTIMATORS[estimator].make, PROBLEMS[problem])
