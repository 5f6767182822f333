"""When a checkpoint is written."""

from pathlib import Path

from particlevi.running.saving import Saver


def test_by_the_count_of_steps():
    saver = Saver(Path("folder"), every=3)
    assert [step for step in range(1, 10) if saver.due(step)] == [3, 6, 9]
    assert [saver.next(step) for step in range(6)] == [3, 3, 3, 6, 6, 6]


def test_never_without_a_folder():
    assert not any(Saver(None, every=3).due(step) for step in range(1, 10))


def test_a_minute_after_the_last_by_the_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("particlevi.running.saving.time.perf_counter", lambda: now[0])
    saver = Saver(Path("folder"), every=None)
    now[0] = 160.0
    assert not saver.due(1)
    now[0] = 160.5
    assert saver.due(1)
    saver.note()
    assert not saver.due(2)
