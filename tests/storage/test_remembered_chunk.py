"""A chunk is remembered for the next draw that is read of it, unless it is too large for that."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.storage import zarrsource

pytest.importorskip("zarr")


@pytest.fixture
def draws(tmp_path):
    potential = pvi.from_log_density(lambda x: -0.5 * x.square().sum(-1), 3)
    run = {"step_size": 0.1, "num_particles": 2, "num_draws": 10, "progress": False}
    return pvi.sample(pvi.sgld(potential), store=tmp_path / "draws.zarr", **run)


def _reads(draws, monkeypatch):
    """How often the files are read for four draws of one chunk."""
    calls = []
    read = zarrsource.ZarrSource._read
    monkeypatch.setattr(
        zarrsource.ZarrSource, "_read", lambda *given: calls.append(1) or read(*given)
    )
    for draw in range(4):
        torch.as_tensor(draws.particles[:, draw]).sum()
    return len(calls)


def test_a_chunk_is_read_once_for_its_draws(draws, monkeypatch):
    assert _reads(draws, monkeypatch) == 1


def test_a_chunk_of_the_largest_size_is_remembered(draws, monkeypatch):
    monkeypatch.setattr(zarrsource, "BUFFER_BYTES", 2 * 10 * 3 * 4)
    assert _reads(draws, monkeypatch) == 1


def test_a_larger_chunk_is_not_remembered(draws, monkeypatch):
    monkeypatch.setattr(zarrsource, "BUFFER_BYTES", 2 * 10 * 3 * 4 - 1)
    assert _reads(draws, monkeypatch) == 4
