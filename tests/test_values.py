"""Settings, plans and results are values: whoever holds one can rely on it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil

import particlevi as pvi

CHANGED = {"Verdict", "GradientAt", "_Block"}
"""Collect findings, follow the noise of a step, are used up."""


def dataclasses_of(name: str) -> list[type]:
    """Those that a module defines."""
    found = vars(importlib.import_module(name)).values()
    own = [each for each in found if inspect.isclass(each) and each.__module__ == name]
    return [each for each in own if dataclasses.is_dataclass(each)]


def every_dataclass() -> list[type]:
    """Those of the package."""
    modules = [each.name for each in pkgutil.walk_packages(pvi.__path__, "particlevi.")]
    return [each for name in modules for each in dataclasses_of(name)]


def test_dataclasses_are_frozen():
    params = {each.__name__: each.__dataclass_params__ for each in every_dataclass()}
    assert {name for name, each in params.items() if not each.frozen} == CHANGED


def test_two_values_that_hold_tensors_can_be_compared():
    """By identity: whether tensors are equal is no one truth value, and torch raises."""
    holders = {
        each
        for each in every_dataclass()
        if any(str(field.type).startswith("Tensor") for field in dataclasses.fields(each))
    }
    assert len(holders) > 10
    assert {each for each in holders if each.__dataclass_params__.eq} == set()
