"""Every sampler under every estimator, on every kind of potential: the checks of one step."""

from __future__ import annotations

from typing import Any

import pytest

import particlevi as pvi
from particlevi.testing import check_estimator, check_kernel, check_potential, problems
from particlevi.testing.samplers import CHECKS
from tests import registry
from tests.registry import ESTIMATORS, KERNELS

NAMES = ("sampler", "estimator", "problem")


def cases(check: str) -> list[Any]:
    """The grid; compiled, all samplers with one estimator and all estimators with one sampler."""
    if check != "compiled":
        return registry.grid()
    return [
        pytest.param(*case, marks=() if "minibatch" in case or "sgld" in case else pytest.mark.slow)
        for case in registry.grid()
        if "function" not in case
    ]


@pytest.mark.parametrize(NAMES, cases("protocol"))
def test_protocol(sampler, estimator, problem):
    CHECKS["protocol"](registry.setting(sampler, estimator, problem))


@pytest.mark.parametrize(NAMES, cases("purity"))
def test_a_step_leaves_its_arguments_as_they_were(sampler, estimator, problem):
    CHECKS["purity"](registry.setting(sampler, estimator, problem))


@pytest.mark.parametrize(NAMES, cases("dtype"))
def test_the_dtype_is_kept(sampler, estimator, problem):
    CHECKS["dtype"](registry.setting(sampler, estimator, problem))


@pytest.mark.parametrize(NAMES, cases("seed"))
def test_the_seed_decides_the_draws(sampler, estimator, problem):
    CHECKS["seed"](registry.setting(sampler, estimator, problem))


@pytest.mark.parametrize(NAMES, cases("independence"))
def test_many_particles_move_as_each_would_alone(sampler, estimator, problem):
    CHECKS["independence"](registry.setting(sampler, estimator, problem))


@pytest.mark.parametrize(NAMES, cases("compiled"))
def test_compiled_whole_and_once_it_gives_the_same(sampler, estimator, problem):
    CHECKS["compiled"](registry.setting(sampler, estimator, problem))


def test_the_checks_are_all_here():
    assert set(CHECKS) == {"protocol", "purity", "dtype", "seed", "independence", "compiled"}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators(name):
    check_estimator(ESTIMATORS[name].make, needs_data=ESTIMATORS[name].needs_data)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_say_whether_their_gradient_is_that_of_their_potential(name):
    for problem in problems():
        if problem.data is not None or not ESTIMATORS[name].needs_data:
            made = ESTIMATORS[name].make(problem)
            assert made.conservative == ESTIMATORS[name].conservative


@pytest.mark.parametrize("problem", problems(), ids=lambda problem: problem.name)
def test_potentials(problem):
    check_potential(problem.potential, problem.data, particles=problem.start(5))


FIXED = {
    "rbf": pvi.kernels.rbf(2.0),
    "imq": pvi.kernels.imq(2.0),
    "linear": pvi.kernels.linear(),
    "random_features": pvi.kernels.random_features(16, 2.0),
    "product": pvi.kernels.product("tensor", pvi.kernels.rbf(2.0)),
    "additive": pvi.kernels.additive("tensor", pvi.kernels.rbf(2.0)),
    "graphical": pvi.kernels.graphical("tensor", pvi.kernels.rbf(2.0)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name):
    check_kernel(FIXED[name], differentiable=name != "graphical")
