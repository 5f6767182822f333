"""The store that several processes write is the store of one."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi.storage import chunking, diskstore
from particlevi.storage.hierarchy import Hierarchy
from particlevi.storage.series import Series
from particlevi.storage.team import Alone
from tests.processes import started as started_in
from tests.running import disk_jobs, jobs

pytest.importorskip("zarr")
started = partial(started_in, "tests.running.disk_jobs")
SIZES = [3, pytest.param(2, marks=pytest.mark.slow)]
RUNS = [f"{name}-{chunks}" for name in disk_jobs.runs() for chunks in ("several", "one")]
RUNS += ["chains-behind"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks_on_disk")


@pytest.fixture(scope="module", params=SIZES)
def written(request, folder):
    """What each of several processes gave, and the folder of their stores."""
    place = folder / f"of{request.param}"
    return started(request.param, folder / "stores", "stores", str(place)), place


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """What ``disk_jobs`` changes, as it was after the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("block_length", "is_large", "_STATS_BYTES"):
            patch.setattr(diskstore, name, getattr(diskstore, name))
        patch.setattr(chunking, "_SMALLEST", chunking._SMALLEST)
        yield


@pytest.fixture(scope="module")
def alone(folder):
    """The same stores, of one process."""
    place = folder / "of1"
    return disk_jobs.stores(0, str(place)), place


def files_of(store: Path) -> dict[str, Any]:
    """Chunks and metadata, without what tells runs apart."""
    found: dict[str, Any] = {}
    for path in store.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            name = str(path.relative_to(store))
            found[name] = json.loads(content) if path.name == "zarr.json" else content
    found["zarr.json"].pop("attributes")
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_store_has_the_files_of_one_process(name, written, alone):
    there, here = (files_of(place / name) for _, place in (written, alone))
    assert there.keys() == here.keys()
    for file, content in here.items():
        if isinstance(content, dict):
            assert there[file] == content, file
    found = pvi.load(written[1] / name), pvi.load(alone[1] / name)
    for field in ("particles", "warmup"):
        values = [getattr(draws, field).clone() for draws in found]
        assert torch.allclose(*values, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("chunks", ["several", "one", "behind"])
def test_chains_are_written_bit_for_bit(chunks, written, alone):
    """No tuner sums over chains there, so that even roundings are those of one process."""
    name = f"chains-{chunks}"
    there, here = (files_of(place / name) for _, place in (written, alone))
    assert there == here


@pytest.mark.parametrize("name", RUNS)
def test_the_first_process_has_all_draws_from_disk(name, written, alone):
    there, here = written[0][0][name], alone[0][name]
    assert there["lazy"]
    assert there["chains"] == here["chains"]
    for key in ("particles", "warmup"):
        np.testing.assert_allclose(there[key], here[key], rtol=1e-9, atol=1e-10)
    assert {k: v.shape for k, v in there["stats"].items()} == {
        k: v.shape for k, v in here["stats"].items()
    }


@pytest.mark.slow
def test_of_processes_with_the_same_chains_one_writes(folder, alone):
    started(4, folder / "m", "mesh", str(folder))
    there, here = pvi.load(folder / "mesh"), pvi.load(alone[1] / "chains-several")
    assert torch.allclose(there.particles.clone(), here.particles.clone(), rtol=1e-9, atol=1e-10)
    assert there.stats["potential"].shape == here.stats["potential"].shape


def test_every_other_process_has_its_own_chains(written, alone):
    whole = alone[0]["chains-one"]["particles"]
    chains = [part["chains-one"]["chains"] for number, part in written[0].items() if number]
    assert [c for part in chains for c in part] == list(range(jobs.P // len(written[0]), jobs.P))
    for number, rows in enumerate(chains, 1):
        assert np.array_equal(written[0][number]["chains-one"]["particles"], whole[rows])


def test_the_file_tells_all_chains(written):
    loaded = pvi.load(written[1] / "chains-one")
    assert loaded.chains == list(range(jobs.P))
    assert loaded.attrs["num_particles"] == jobs.P


def test_draws_are_announced_when_every_process_has_written_them(tmp_path, monkeypatch):
    order: list[str] = []

    def noted(kind: type, name: str, what: str) -> None:
        act = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda *given: order.append(what) or act(*given))

    noted(Series, "write", "write")
    noted(Alone, "together", "wait")
    noted(Hierarchy, "commit", "announce")
    run = disk_jobs.long() | {"store": tmp_path / "draws.zarr"}
    pvi.sample(pvi.sgld(jobs.net()), jobs.data(), **run)
    written = [k for k, what in enumerate(order) if what == "write"]
    assert written
    for k in written:
        after = order[k : order.index("announce", k)]
        assert "wait" in after


@pytest.fixture(scope="module")
def refused(folder):
    (folder / "there").mkdir()
    (folder / "file").write_text("x")
    return started(3, folder / "refusals", "refusals", str(folder))


REFUSALS = {
    "exists": ("FileExistsError", "is there already"),
    "file": ("NotADirectoryError", "No draws can be written to"),
    "different": ("ValueError", "every process must give one path"),
    "unseen": ("ValueError", "Process 1 cannot write where process 0 puts the draws"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_a_place_where_no_run_can_begin_is_refused_in_all_by_one_message(why, refused):
    kind, words = REFUSALS[why]
    assert {part[why]["error"] for part in refused.values()} == {kind}
    (message,) = {part[why]["message"] for part in refused.values()}
    assert words in message
    # An error on the way would have draws.
    assert all(part[why]["draws"] is None for part in refused.values())


def test_a_refusal_leaves_nothing_behind(refused, folder):
    assert not list((folder / "there").iterdir())
    assert not (folder / "fresh.zarr").exists()
    assert not [path for path in folder.iterdir() if "partial" in path.name]


@pytest.fixture(scope="module")
def full(folder):
    place = folder / "full"
    return started(3, folder / "full.pickle", "full", str(place)), place / "draws"


def test_a_full_disk_of_one_process_ends_the_run_in_all(full):
    parts, _ = full
    errors = [part["error"] for part in parts.values()]
    assert errors == ["ProcessLostError", "OSError", "ProcessLostError"]
    assert all("The disk is full" in part["message"] for part in parts.values())


def test_a_full_disk_of_one_process_costs_no_draw_that_was_announced(full):
    parts, store = full
    left = pvi.load(store).particles
    count = left.shape[1]
    assert 0 < count < 60
    assert torch.equal(left.clone(), whole().particles[:, :count])
    assert [part["draws"] for part in parts.values()] == [[2, count, left.shape[2]]] * 3


@cache
def whole() -> pvi.Draws:
    return pvi.sample(pvi.sgld(jobs.net()), jobs.data(), **disk_jobs.long())


@pytest.mark.parametrize(
    ("first", "second"),
    [(3, 2), pytest.param(2, 1, marks=pytest.mark.slow)],
)
def test_killed_processes_leave_a_store_that_others_go_on_with(folder, first, second):
    place = folder / f"killed{first}"
    started(first, folder / "k", "killed", str(place))
    left = pvi.load(place / "draws").particles
    assert left.shape[1] == 45
    assert torch.equal(left.clone(), whole().particles[:, :45])
    if second == 1:
        gone_on = disk_jobs.resumed(0, str(place))
    else:
        gone_on = started(second, folder / "r", "resumed", str(place))[0]
    assert np.array_equal(gone_on["particles"], whole().particles.numpy())
    loaded = pvi.load(place / "draws")
    assert torch.equal(loaded.particles.clone(), whole().particles)
    assert torch.equal(loaded.stats["potential"], whole().stats["potential"])
