"""Every public factory is in the registry."""

import inspect

import particlevi as pvi
from tests.registry import ESTIMATORS, KERNELS, SAMPLERS

METHODS = ("init", "draw_noise", "record", "nbytes")


def _public():
    rooms = (pvi, pvi.gradients, pvi.kernels)
    return {name: getattr(room, name) for room in rooms for name in room.__all__}


def _returns(value, what):
    if not inspect.isfunction(value):
        return False
    return str(inspect.signature(value).return_annotation).rpartition(".")[2] == what


def test_every_sampler_is_registered():
    factories = {name for name, value in _public().items() if _returns(value, "Sampler")}
    assert {"sgd", "sgld", "psgld", "sghmc", "svgd"} <= factories
    assert factories == {case.factory.__name__ for case in SAMPLERS.values()}


def test_every_estimator_is_registered():
    classes = {
        name
        for name, value in _public().items()
        if inspect.isclass(value) and all(hasattr(value, method) for method in METHODS)
    }
    functions = {name for name, value in _public().items() if _returns(value, "GradientEstimator")}
    assert {"minibatch", "control_variate"} <= classes | functions
    assert classes | functions == {case.factory.__name__ for case in ESTIMATORS.values()}


def test_every_kernel_is_registered():
    kernels = {
        name
        for name, value in _public().items()
        if inspect.isclass(value) and hasattr(value, "direction")
    }
    assert {"rbf", "linear"} <= kernels
    assert kernels == {type(kernel).__name__ for kernel in KERNELS.values()}
