"""Settings, plans and results are values: whoever holds one can rely on it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from types import ModuleType

import particlevi as pvi

CHANGED = {"Verdict", "GradientAt", "_Block"}
"""Collect findings, follow the noise of a step, are used up."""


def dataclasses_in(module: ModuleType) -> list[type]:
    """Those that a module shows."""
    found = [getattr(module, name) for name in getattr(module, "__all__", vars(module))]
    return [each for each in found if inspect.isclass(each) and dataclasses.is_dataclass(each)]


def dataclasses_of(name: str) -> list[type]:
    """Those that a module defines."""
    found = vars(importlib.import_module(name)).values()
    own = [each for each in found if inspect.isclass(each) and each.__module__ == name]
    return [each for each in own if dataclasses.is_dataclass(each)]


def test_dataclasses_are_frozen():
    modules = [each.name for each in pkgutil.walk_packages(pvi.__path__, "particlevi.")]
    every = [each for name in modules for each in dataclasses_of(name)]
    params = {each.__name__: each.__dataclass_params__ for each in every}
    assert {name for name, each in params.items() if not each.frozen} == CHANGED


def test_two_results_that_hold_tensors_can_be_compared():
    """By identity: whether tensors are equal is no one truth value, and torch raises."""
    rooms = [getattr(pvi, name) for name in pvi.__all__]
    public = [pvi, *(room for room in rooms if inspect.ismodule(room))]
    every = {each for module in public for each in dataclasses_in(module)}
    holders = {
        each
        for each in every
        if any(str(field.type).startswith("Tensor") for field in dataclasses.fields(each))
    }
    assert len(holders) > 10
    assert {each for each in holders if each.__dataclass_params__.eq} == set()
