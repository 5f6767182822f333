"""Tests in several workers share the cores."""

import sys
from collections.abc import Generator

import pytest
import torch

from particlevi.running.compiling import OLDEST_COMPILER

OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_COMPILER


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each worker of pytest-xdist."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """With a torch that is too old to compile, tests that ask for it are skipped."""
    try:
        return (yield)
    except RuntimeError as error:
        if OLD and "compile=True needs torch" in str(error):
            pytest.skip(str(error))
        raise


def pytest_runtest_teardown() -> None:
    """Figures that a test opened are closed: pyplot warns of many, in whatever test comes next."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
