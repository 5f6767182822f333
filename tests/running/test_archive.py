"""Which runs hold the draws of other processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from particlevi.running import loop


@pytest.mark.parametrize("folder", [None, "run"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("spread", [True, False])
def test_only_a_checkpoint_of_draws_in_several_processes_holds_them(
    spread, shared, folder, monkeypatch
):
    """Not a run of one process, not without a checkpoint, and not where all write to one disk."""
    monkeypatch.setattr(loop, "Archive", lambda plan: plan)
    plan = SimpleNamespace(
        world=SimpleNamespace(spread=spread),
        storage=SimpleNamespace(shared=shared),
        folder=folder,
    )
    held = loop._archive(plan) is not None
    assert held == (spread and not shared and folder is not None)
