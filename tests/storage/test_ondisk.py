"""Draws on disk are those in memory, also for a reader, after a kill and on a full disk."""

from __future__ import annotations

import copy
import errno
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi.drawset.lazy import LazyTensor
from particlevi.storage import diskstore, series
from tests import registry
from tests.contract.test_resume import Killed, assert_same, fail, killed_after

xarray = pytest.importorskip("xarray")
zarr = pytest.importorskip("zarr")

RUN = {"step_size": 1e-3, "num_particles": 3, "num_draws": 10, "progress": False}
OnDisk = pvi.storage.OnDisk


def problem():
    """A net with data, and a sampler of it."""
    made = registry.module(torch.float64)
    return pvi.sghmc(made.potential), made.data


@pytest.fixture
def small_blocks(monkeypatch):
    """Chunks of three draws, so that a run of ten ends inside one."""
    monkeypatch.setattr(diskstore, "block_length", lambda size, draws: min(3, draws))


def pair(path, keep=None, dtype=None, warmup=True, **options):
    """One run in memory, and the same on disk."""
    sampler, data = problem()
    options = {**RUN, "num_warmup": 4, **options}
    given = {"keep": keep, "dtype": dtype, "warmup": warmup}
    memory = pvi.sample(sampler, data, store=pvi.storage.InMemory(**given), **options)
    disk = pvi.sample(sampler, data, store=OnDisk(path, **given), **options)
    return memory, disk


KEEPS = {
    "all": None,
    "patterns": ["2.*", "0.bias"],
    "coordinates": torch.tensor([5, 0, 3]),
    "outputs": pvi.outputs_at(torch.zeros(2, 3, dtype=torch.float64)),
}


GRID = [(keep, None) for keep in KEEPS]
GRID += [("patterns", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)]


@pytest.mark.parametrize(("keep", "dtype"), GRID)
def test_what_is_on_disk_is_what_would_be_in_memory(keep, dtype, tmp_path, small_blocks):
    memory, disk = pair(tmp_path / "draws.zarr", KEEPS[keep], dtype)
    assert_same(disk, memory)
    assert torch.equal(disk.warmup, memory.warmup)
    loaded = pvi.load(tmp_path / "draws.zarr", disk.potential)
    assert_same(loaded, memory)
    assert torch.equal(loaded.warmup, memory.warmup)
    assert loaded.particles.dtype == memory.particles.dtype
    assert loaded.facts == memory.facts
    assert loaded.output_shape == memory.output_shape
    assert loaded.attrs == memory.attrs | {"seed": 0}
    if memory.coordinates is not None:
        assert torch.equal(loaded.coordinates, memory.coordinates)


def test_draws_larger_than_a_chunk_are_cut(tmp_path, monkeypatch):
    """With chunks of 64 bytes every tensor is split, along its own axes too."""
    monkeypatch.setattr("particlevi.storage.chunking._SMALLEST", 1)
    monkeypatch.setattr("particlevi.storage.chunking._LARGEST", 64)
    monkeypatch.setattr("particlevi.storage.chunking._TARGET", 64)
    monkeypatch.setattr("particlevi.storage.chunking.BUFFER_BYTES", 64)
    monkeypatch.setattr(series, "BUFFER_BYTES", 64)
    memory, disk = pair(tmp_path / "draws.zarr")
    assert_same(disk, memory)
    chunks = [
        zarr.open_array(path.parent).chunks
        for path in (tmp_path / "draws.zarr/posterior").glob("*weight/zarr.json")
    ]
    assert all(8 * np.prod(each) <= 64 for each in chunks)


def test_statistics_have_chunks_of_another_length(tmp_path, small_blocks, monkeypatch):
    monkeypatch.setattr(diskstore, "_STATS_BYTES", 4 * 8 * 3)
    memory, disk = pair(tmp_path / "draws.zarr")
    assert_same(disk, memory)


def test_a_path_is_enough(tmp_path):
    sampler, data = problem()
    draws = pvi.sample(sampler, data, store=str(tmp_path / "a" / "draws.zarr"), **RUN)
    assert isinstance(draws.particles, LazyTensor)
    assert torch.equal(draws.particles, pvi.sample(sampler, data, **RUN).particles)


def test_readers_see_what_to_arviz_gives(tmp_path):
    memory, _ = pair(tmp_path / "draws.zarr")
    tree = xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr")
    given = memory.to_arviz()
    for group in ("posterior", "sample_stats", "warmup_posterior", "warmup_sample_stats"):
        for name, values in given[group].data_vars.items():
            found = tree[group][name]
            assert found.dims[:1] == ("chain",) or found.dims == ("draw",)
            assert np.array_equal(np.broadcast_to(found.values, values.shape), values.values)
            if found.ndim > 1:
                assert found.dims == values.dims


def test_attributes_survive_netcdf(tmp_path):
    pair(tmp_path / "draws.zarr")
    tree = xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr")
    tree.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    again = xarray.open_datatree(tmp_path / "draws.nc", engine="h5netcdf")
    assert again.attrs.keys() == tree.attrs.keys()
    assert all(again.attrs[name] == value for name, value in tree.attrs.items())


def test_constrained_quantities_are_beside_what_is_sampled(tmp_path):
    pyro = pytest.importorskip("pyro")

    def model():
        scale = pyro.sample("scale", pyro.distributions.HalfNormal(1.0))
        law = pyro.distributions.Normal(0.0, scale).expand([5]).to_event(1)
        pyro.sample("y", law, obs=torch.ones(5))

    potential = pvi.from_pyro(model)
    options = RUN | {"store": OnDisk(tmp_path / "draws.zarr")}
    draws = pvi.sample(pvi.sghmc(potential), **options)
    tree = xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr")
    own = torch.from_numpy(tree["posterior"]["scale"].values)
    assert torch.equal(own, draws.constrained()["scale"])
    raw = torch.from_numpy(tree["unconstrained_posterior"]["scale"].values)
    assert torch.equal(raw.unsqueeze(-1), draws.particles.clone())


def test_a_run_can_be_read_while_it_goes_on(tmp_path, small_blocks):
    path, seen = tmp_path / "draws.zarr", []

    def look(_):
        tree = xarray.open_datatree(path, engine="zarr")
        here = pvi.load(path)
        assert bool(torch.isfinite(here.particles).all())
        assert np.isfinite(tree["posterior"]["0.weight"].values).all()
        assert tree["posterior"].sizes["draw"] == here.particles.shape[1]
        seen.append(here.particles.shape[1])

    sampler, data = problem()
    pvi.sample(sampler, data, store=path, monitor=pvi.running.Every(1, look), **RUN)
    assert seen == [0, 0, 3, 3, 3, 6, 6, 6, 9]


@pytest.mark.parametrize("kill_at", range(1, 14, 2))
def test_resumes_bit_for_bit_wherever_it_stopped(kill_at, tmp_path, small_blocks):
    sampler, data = problem()
    options = {**RUN, "num_warmup": 4, "thin": 1}
    storage = {"warmup": True}
    whole = pvi.sample(sampler, data, store=pvi.storage.InMemory(**storage), **options)
    path, checkpoint = tmp_path / "draws.zarr", pvi.storage.Checkpoint(tmp_path / "run", every=4)
    store = OnDisk(path, **storage)
    with pytest.raises(Killed):
        bomb = killed_after(sampler, kill_at, fail)
        pvi.sample(bomb, data, store=store, checkpoint=checkpoint, **options)
    resumed = pvi.resume(tmp_path / "run", sampler, data, store=store, progress=False)
    assert_same(resumed, whole)
    assert torch.equal(resumed.warmup, whole.warmup)
    assert_same(pvi.load(path), whole)


def endless(folder: str) -> None:
    """In a process of its own: a long run."""
    sampler, data = problem()
    options = {**RUN, "num_draws": 300, "store": f"{folder}/draws.zarr"}
    diskstore.block_length = lambda size, draws: 2
    pvi.sample(sampler, data, checkpoint=pvi.storage.Checkpoint(f"{folder}/run", 5), **options)


def test_after_sigkill_what_is_there_is_whole_and_resumes(tmp_path, monkeypatch):
    code = f"from tests.storage.test_ondisk import endless; endless({str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    path, deadline = tmp_path / "draws.zarr", time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.01)
        if (tmp_path / "run/state.safetensors").exists() and pvi.load(path).particles.shape[1] > 20:
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL
    monkeypatch.setattr(diskstore, "block_length", lambda size, draws: 2)
    sampler, data = problem()
    whole = pvi.sample(sampler, data, **{**RUN, "num_draws": 300})
    left = pvi.load(path)
    count = left.particles.shape[1]
    assert 20 < count < 300
    assert torch.equal(left.particles, whole.particles[:, :count])
    assert torch.equal(left.stats["potential"], whole.stats["potential"][:, :count])
    assert_same(pvi.resume(tmp_path / "run", sampler, data, progress=False), whole)
    assert not list(path.rglob("*.partial"))


@pytest.mark.parametrize("at", [0, 5, 12])
def test_a_full_disk_says_so_and_leaves_what_was_written(at, tmp_path, monkeypatch, small_blocks):
    from zarr.storage import _local

    path, put, count = tmp_path / "draws.zarr", _local._put, 0

    def full(target, *arguments, **options):
        nonlocal count
        if "/c/" in str(target) and "posterior" in str(target):
            count += 1
            if count > 4 + at:
                raise OSError(errno.ENOSPC, "No space left on device")
        return put(target, *arguments, **options)

    monkeypatch.setattr(_local, "_put", full)
    sampler, data = problem()
    with pytest.raises(OSError, match=r"The disk is full.*pvi\.load") as caught:
        pvi.sample(sampler, data, store=path, **RUN)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    whole, left = pvi.sample(sampler, data, **RUN), pvi.load(path)
    size = left.particles.shape[1]
    assert size % 3 == 0
    assert torch.equal(left.particles, whole.particles[:, :size])
    assert torch.equal(caught.value.draws.particles, left.particles)


def test_chains_that_diverged_are_left_out_when_read_too(tmp_path):
    quartic = pvi.from_log_density(lambda theta: -0.25 * (theta**4).sum(), num_params=2)
    options = {**RUN, "step_size": 0.05, "initial": torch.tensor([[0.0, 0.0], [99, 0], [0.1, 0]])}
    del options["num_particles"]
    with pytest.warns(UserWarning, match="diverged: 1"):
        draws = pvi.sample(pvi.sgld(quartic), store=tmp_path / "draws.zarr", **options)
    loaded = pvi.load(tmp_path / "draws.zarr", quartic)
    assert draws.diverged and loaded.diverged == draws.diverged
    assert_same(loaded, draws)


def test_interacting_particles_are_not_shown_as_chains(tmp_path):
    normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=2)
    options = RUN | {"step_size": 0.1, "store": tmp_path / "draws.zarr"}
    draws = pvi.sample(pvi.svgd(normal), **options)
    tree = xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr")
    assert set(tree.children) == {"particles", "particle_stats"}
    assert torch.equal(pvi.load(tmp_path / "draws.zarr").particles, draws.particles)


def refused_before_the_first_step(kind, match, store, folder=None):
    """``sample`` refuses and its sampler has made no step."""
    sampler, data = problem()
    bomb = killed_after(sampler, -1, fail)
    with pytest.raises(kind, match=match):
        pvi.sample(bomb, data, store=store, checkpoint=folder, **RUN)


def test_a_store_that_exists_is_refused(tmp_path):
    sampler, data = problem()
    pvi.sample(sampler, data, store=tmp_path / "draws.zarr", **RUN)
    before = sorted(tmp_path.rglob("*"))
    refused_before_the_first_step(FileExistsError, "is there already", tmp_path / "draws.zarr")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    store = tmp_path / "file" / "draws.zarr"
    refused_before_the_first_step(OSError, "No draws can be written", store)


def test_something_else_is_refused():
    refused_before_the_first_step(TypeError, "store must be a path", 3)


def test_the_store_of_another_run_is_refused(tmp_path):
    sampler, data = problem()
    for name in ("a", "b"):
        folder = tmp_path / f"run-{name}"
        pvi.sample(sampler, data, store=tmp_path / name, checkpoint=folder, **RUN)
    with pytest.raises(ValueError, match="another run"):
        pvi.resume(tmp_path / "run-a", sampler, data, store=tmp_path / "b", progress=False)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="were written to"):
        pvi.resume(tmp_path / "run-a", sampler, data, progress=False)


def test_a_run_in_memory_is_not_resumed_on_disk(tmp_path):
    sampler, data = problem()
    pvi.sample(sampler, data, checkpoint=tmp_path / "run", **RUN)
    with pytest.raises(ValueError, match="kept its draws in memory"):
        pvi.resume(tmp_path / "run", sampler, data, store=tmp_path / "x", progress=False)


def test_a_damaged_chunk_is_found(tmp_path):
    sampler, data = problem()
    pvi.sample(sampler, data, store=tmp_path / "draws.zarr", **RUN)
    chunk = next((tmp_path / "draws.zarr/posterior/0.weight/c").rglob("0"))
    chunk = next(path for path in sorted(chunk.parent.rglob("*")) if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[5] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        pvi.load(tmp_path / "draws.zarr").particles.clone()


def test_without_zarr_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    refused_before_the_first_step(ImportError, r"particlevi\[zarr\]", tmp_path / "draws.zarr")


def test_too_little_space_is_told_before_the_first_step(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(diskstore.shutil, "disk_usage", lambda path: usage)
    sampler, data = problem()
    with pytest.warns(pvi.ParticleviWarning, match="are free at"):
        pvi.sample(sampler, data, store=tmp_path / "draws.zarr", **RUN)


def test_the_space_that_is_wanted_and_that_is_free_are_told_in_gigabytes(tmp_path, monkeypatch):
    """4 particles, 100000 draws and 1000 numbers of 4 bytes: 1.6 GB, of which one draw is made."""
    usage = shutil.disk_usage(tmp_path)._replace(free=int(0.7e9))
    monkeypatch.setattr(diskstore.shutil, "disk_usage", lambda path: usage)
    normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=1000)
    options = RUN | {"num_particles": 4, "num_draws": 100_000, "store": tmp_path / "draws.zarr"}
    with pytest.warns(pvi.ParticleviWarning, match=r"take 1\.6 GB .* 0\.7 GB are free at"):
        pvi.sample(pvi.sgld(normal), monitor=pvi.running.Every(1, lambda look: True), **options)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_the_warm_up_is_kept_only_if_asked_for(where, tmp_path):
    store = pvi.storage.InMemory() if where == "memory" else OnDisk(tmp_path / "draws.zarr")
    sampler, data = problem()
    assert pvi.sample(sampler, data, store=store, num_warmup=4, **RUN).warmup is None


def test_bfloat16_takes_less_room_than_float32(tmp_path):
    normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=2000)
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        path = tmp_path / str(dtype)
        pvi.sample(pvi.sghmc(normal), store=OnDisk(path, dtype=dtype), **(RUN | {"step_size": 0.5}))
        sizes[dtype] = sum(f.stat().st_size for f in path.rglob("c/**/*") if f.is_file())
    assert sizes[torch.bfloat16] < 0.55 * sizes[torch.float32]


def test_compressed_draws_are_the_same_and_smaller(tmp_path):
    normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=2000)
    found = {}
    for compress in (False, True):
        store = OnDisk(tmp_path / str(compress), compress=compress)
        draws = pvi.sample(pvi.sghmc(normal), store=store, **(RUN | {"step_size": 0.5}))
        files = (tmp_path / str(compress)).rglob("c/**/*")
        found[compress] = draws.particles.clone(), sum(f.stat().st_size for f in files)
    assert torch.equal(found[True][0], found[False][0])
    assert found[True][1] < 0.96 * found[False][1]


def lazily(path):
    """Draws on disk, and the same in memory."""
    memory, disk = pair(path)
    return disk.particles, memory.particles


INDICES = {
    "chains": lambda x: x[[2, 0]],
    "mask": lambda x: x[torch.tensor([True, False, True])],
    "thinned": lambda x: x[:, ::3],
    "columns": lambda x: x[..., 3:7],
    "last": lambda x: x[:, -1],
    "one chain": lambda x: x[1],
    "flat": lambda x: x[:, 1::2].flatten(0, 1),
    "some rows": lambda x: x.flatten(0, 1)[torch.tensor([0, 29, 7, 7])],
    "rows": lambda x: x.reshape(-1, x.shape[-1])[4:23],
    "pieces": lambda x: torch.cat([piece.double() for piece in x.flatten(0, 1).split(7)]),
    "largest": lambda x: x.abs().amax((0, 1)),
    "none": lambda x: x[:, :0],
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return lazily(tmp_path_factory.mktemp("lazy") / "draws.zarr")


@pytest.mark.parametrize("index", INDICES)
def test_picking_from_disk_is_picking_from_memory(index, both):
    disk, memory = both
    assert torch.equal(INDICES[index](disk), INDICES[index](memory))


def test_lazy_draws_travel_and_are_not_changed(both):
    disk, memory = both
    assert torch.equal(pickle.loads(pickle.dumps(disk)), memory)
    assert torch.equal(copy.deepcopy(disk), memory)
    assert "LazyTensor([3, 10" in repr(disk)
    with pytest.raises(TypeError, match="not changed in place"):
        disk.mul_(2)


def test_more_than_fits_is_refused(both, monkeypatch):
    monkeypatch.setattr("particlevi.storage.zarrsource.available_memory", lambda: 100)
    with pytest.raises(MemoryError, match=r"draws\.thin"):
        both[0].clone()


def test_another_folder_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        pvi.load(tmp_path)
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(ValueError, match="not written by particlevi"):
        pvi.load(tmp_path)


def test_a_run_is_made_longer(tmp_path, small_blocks):
    sampler, data = problem()
    whole = pvi.sample(sampler, data, **{**RUN, "num_draws": 23})
    path, folder = tmp_path / "draws.zarr", tmp_path / "run"
    pvi.sample(sampler, data, store=path, checkpoint=folder, **RUN)
    longer = pvi.resume(folder, sampler, data, num_draws=23, progress=False)
    assert_same(longer, whole)
    assert_same(pvi.load(path), whole)
    assert xarray.open_datatree(path, engine="zarr")["posterior"].sizes["draw"] == 23


def test_to_arviz_reads_from_disk(tmp_path):
    memory, disk = pair(tmp_path / "draws.zarr")
    given, found = (
        each[[2, 0], 3:].to_arviz(problem()[1], log_likelihood=True) for each in (memory, disk)
    )
    for group in ("posterior", "sample_stats", "log_likelihood", "warmup_posterior"):
        for name, values in given[group].data_vars.items():
            shown = found[group][name].values
            assert np.array_equal(np.broadcast_to(shown, values.shape), values.values), name


DIAGNOSTICS = {
    "ess": lambda draws, data: draws.ess(),
    "rhat": lambda draws, data: draws.rhat(),
    "projections": lambda draws, data: draws.ess("projections", num=5),
    "predict": lambda draws, data: draws.predict(data[0], chunk_size=4).mean,
    "log_likelihood": lambda draws, data: draws.log_likelihood(data, chunk_size=4),
    "temperature": lambda draws, data: draws.temperatures(data)["all"].mean,
    "diagnose": lambda draws, data: draws.diagnose(data, verbose=False).facts["largest R-hat"],
}


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    path = tmp_path_factory.mktemp("longer") / "draws.zarr"
    return pair(path, num_draws=60)


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_diagnostics_read_piece_by_piece(name, longer, monkeypatch):
    """The same as in memory, and never all draws at once."""
    memory, disk = longer
    data = problem()[1]
    monkeypatch.setattr("particlevi.drawset.lazy.PANEL_BYTES", 3 * 60 * 8 * 7)
    monkeypatch.setattr("particlevi.diagnostics.verdict.mixing.MAX_COORDINATES", 10)
    largest, load = 0, LazyTensor.load

    def counted(self):
        nonlocal largest
        largest = max(largest, self.numel())
        return load(self)

    monkeypatch.setattr(LazyTensor, "load", counted)
    found, wanted = (DIAGNOSTICS[name](draws, data) for draws in (disk, memory))
    assert np.allclose(np.asarray(found), np.asarray(wanted), rtol=1e-5, equal_nan=True)
    assert 0 < largest < memory.particles.numel() / 2


def test_draws_on_disk_are_saved_to_a_file(tmp_path):
    memory, disk = pair(tmp_path / "draws.zarr")
    disk.save(tmp_path / "draws.safetensors")
    back = pvi.load(tmp_path / "draws.safetensors")
    assert torch.equal(back.particles, memory.particles)
    assert torch.equal(back.warmup, memory.warmup)
