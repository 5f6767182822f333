"""A file that is not as it was written is refused, and so is one of another run."""

from __future__ import annotations

import json
import random
import shutil

import pytest
import torch

import particlevi as pvi
from particlevi.storage import checkpoint as files
from particlevi.storage import sealed
from tests import registry

OPTIONS = {"num_particles": 2, "num_draws": 12, "step_size": 1e-3, "progress": False}


def made(folder, seed=0):
    """A finished run of four files, and how to go on with it."""
    problem = registry.function(torch.float64)
    often = pvi.storage.Checkpoint(folder, every=4)
    sampler = pvi.sghmc(problem.potential)
    pvi.sample(sampler, problem.data, checkpoint=often, seed=seed, **OPTIONS)
    return lambda: pvi.resume(folder, sampler, problem.data, progress=False)


def parts(folder):
    """The files of draws."""
    return sorted(folder.glob("draws-*"))


def test_tensors_in_one_storage_are_written_and_read_apart(tmp_path):
    base = torch.arange(6.0)
    given = {"whole": base, "again": base, "part": base[2:4]}
    sealed.write(tmp_path / "file", given, "text")
    found, text = sealed.read(tmp_path / "file")
    assert text == "text"
    assert {name: t.tolist() for name, t in found.items()} == {
        name: t.tolist() for name, t in given.items()
    }


def test_every_flipped_bit_is_found(tmp_path):
    resume = made(tmp_path)
    places = random.Random(0)
    for path in sorted(tmp_path.glob("*.safetensors")):
        whole = path.read_bytes()
        for _ in range(80):
            bit = places.randrange(8 * len(whole))
            content = bytearray(whole)
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            with pytest.raises(ValueError, match=path.name):
                resume()
        path.write_bytes(whole)
    resume()


def test_every_flipped_bit_of_saved_draws_is_found(tmp_path):
    draws = made(tmp_path / "run")()
    path = tmp_path / "draws"
    draws.save(path)
    whole = path.read_bytes()
    for bit in random.Random(1).sample(range(8 * len(whole)), 100):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            pvi.load(path)


def test_parts_of_another_run_are_refused(tmp_path):
    resume = made(tmp_path / "a")
    made(tmp_path / "b", seed=1)
    for part in parts(tmp_path / "a"):
        kept = part.read_bytes()
        shutil.copy(tmp_path / "b" / part.name, part)
        with pytest.raises(ValueError, match=f"{part.name} holds draws of another run"):
            resume()
        part.write_bytes(kept)


def test_the_state_of_another_run_is_refused(tmp_path):
    resume = made(tmp_path / "a")
    made(tmp_path / "b", seed=1)
    shutil.copy(tmp_path / "b" / "state.safetensors", tmp_path / "a")
    with pytest.raises(ValueError, match="of another run"):
        resume()


def test_the_probing_points_of_another_run_are_refused(tmp_path):
    resume = made(tmp_path / "a")
    made(tmp_path / "b", seed=1)
    shutil.copy(tmp_path / "b" / "probe.safetensors", tmp_path / "a")
    with pytest.raises(ValueError, match=r"probe\.safetensors is of another run"):
        resume()


def test_parts_in_each_others_place_are_refused(tmp_path):
    resume = made(tmp_path)
    first, second, *_ = parts(tmp_path)
    shutil.copy(first, second)
    with pytest.raises(ValueError, match=f"{second.name}.*another place"):
        resume()


def test_draws_that_became_nan_are_refused(tmp_path):
    """Also if whoever changed them wrote a digest that is right."""
    resume = made(tmp_path)
    part = parts(tmp_path)[0]
    tensors, known = files.read(part)
    tensors["values"][1, 0, 0] = torch.nan
    files.write(part, tensors, known)
    with pytest.raises(ValueError, match=f"{part.name} holds draws that are not finite"):
        resume()


def test_a_missing_part_is_named(tmp_path):
    resume = made(tmp_path)
    part = parts(tmp_path)[-1]
    part.unlink()
    with pytest.raises(FileNotFoundError, match=part.name):
        resume()


@pytest.mark.parametrize("given", ["1", "3"])
def test_another_format_says_so(given, tmp_path, monkeypatch):
    resume = made(tmp_path)
    tensors, known = files.read(tmp_path / "state.safetensors")
    monkeypatch.setattr(sealed, "FORMAT", given)
    files.write(tmp_path / "state.safetensors", tensors, known)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=f"has format {given}, and this .* reads format 2"):
        resume()


def test_a_file_without_a_format_number_says_so(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "draws"
    save_file({"x": torch.zeros(2)}, path, {"particlevi": json.dumps({})})
    with pytest.raises(ValueError, match="has format 1"):
        pvi.load(path)


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    theirs = [tmp_path / name for name in ("notes.tmp", ".hidden.tmp", "state.safetensors.tmp")]
    ours = tmp_path / ".state.safetensors-0123abcd.particlevi-tmp"
    for path in (*theirs, ours):
        path.write_text("x")
    made(tmp_path)
    assert not ours.exists()
    assert all(path.read_text() == "x" for path in theirs)


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(tmp_path / "x", {"x": torch.zeros(2)}, {})
    assert not list(tmp_path.iterdir())
