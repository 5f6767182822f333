"""Tests in several workers share the cores."""

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """One thread for each worker of pytest-xdist."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
