"""Each test of the contract runs once per optimiser."""

from __future__ import annotations

import pytest

from tests.optim.contract.cases import CASES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, cases in (
        ("case", CASES),
        ("differentiable_case", [case for case in CASES if case.differentiable]),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, cases, ids=lambda case: case.name)
