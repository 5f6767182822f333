"""Every form of data becomes one type, checked and placed once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import particlevi as pvi
from particlevi.data import Data, Place, as_data, as_particles
from particlevi.gradients.full import full_gradient
from particlevi.streams import ParticleStreams
from tests import registry

N = 20
F64 = torch.float64
PLACE = Place(torch.device("cpu"), F64, num_data=N)
X, Y = registry.module(F64).data


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def frame(values):
    return pd.DataFrame(values, columns=[f"c{i}" for i in range(values.shape[1])])


FORMS = {
    "tensors": (X, Y),
    "list": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "frames": (frame(X.numpy()), frame(Y.numpy())),
    "batches": [(X[:9], Y[:9]), (X[9:], Y[9:])],
    "loader": DataLoader(TensorDataset(X, Y), batch_size=9),
    "shuffled": DataLoader(TensorDataset(X, Y), batch_size=9, shuffle=True, drop_last=True),
    "stream": DataLoader(Stream(), batch_size=9),
    "workers": DataLoader(TensorDataset(X, Y), batch_size=9, shuffle=True, num_workers=1),
}


def joined(batches):
    parts = [batch.data for batch in batches]
    return tuple(torch.cat(leaves) for leaves in zip(*parts, strict=True))


@pytest.mark.parametrize("size", [1, 6, 20, 100])
@pytest.mark.parametrize("form", [name for name in FORMS if name != "workers"])
def test_chunks_hold_every_datum_once_in_order(form, size):
    data = as_data(FORMS[form], PLACE)
    assert data.num_data == N
    chunks = list(data.chunks(size))
    assert max(len(batch.data[0]) for batch in chunks) <= size
    for got, wanted in zip(joined(chunks), (X, Y), strict=True):
        assert torch.equal(got, wanted)


def test_chunks_of_a_loader_with_workers():
    assert torch.equal(joined(as_data(FORMS["workers"], PLACE).chunks(7))[0], X)


@pytest.mark.parametrize("form", [name for name in FORMS if name != "workers"])
def test_single_data_and_all_of_them(form):
    data = as_data(FORMS[form], PLACE)
    rows = torch.tensor([17, 3, 4])
    assert torch.equal(data.take(rows).data[0], X[rows])
    assert torch.equal(data.first(2).data[1], Y[:2])
    assert torch.equal(data.whole().data[0], X) and data.whole().law == "all"
    held = data.held()
    assert torch.equal(held.whole().data[1], Y) and held.random_access
    assert data.held(max_bytes=10) is data


def test_it_passes_through_unchanged():
    data = as_data((X, Y), PLACE)
    assert as_data(data, PLACE) is data
    with pytest.raises(ValueError, match=r"float64 on cpu, but torch\.float32"):
        as_data(data, Place(torch.device("cpu"), torch.float32, N))
    with pytest.raises(ValueError, match="num_data=21, got 20 data"):
        as_data(data, Place(torch.device("cpu"), F64, 21))
    assert as_data(data, Place(torch.device("cpu"), F64, 21), complete=False) is data


def test_a_density_has_data_of_no_chunks():
    density = pvi.from_log_density(lambda theta: -theta.square().sum(), 2)
    data = as_data(None, density)
    assert list(data.chunks(5)) == [] and data.num_data == 0
    assert data.batches(num_particles=3).law == "none"
    assert as_data(data, density).num_data == 0


def test_floats_take_the_dtype_and_other_numbers_keep_theirs():
    place = Place(torch.device("cpu"), torch.float32, 3)
    given = (np.arange(3.0), np.arange(3), np.array([True, False, True]), torch.ones(3).bfloat16())
    kinds = [leaf.dtype for leaf in as_data(given, place).whole().data]
    assert kinds == [torch.float32, torch.int64, torch.bool, torch.float32]


def test_wide_unsigned_integers_are_exact():
    place = Place(torch.device("cpu"), F64, 2)
    data = as_data(np.array([0, 2**31 + 1], dtype=np.uint32), place)
    assert data.whole().data.tolist() == [0, 2**31 + 1]
    with pytest.raises(ValueError, match=r"below 2\*\*63"):
        as_data(np.array([0, 2**63], dtype=np.uint64), place)


def test_data_made_in_inference_mode_have_gradients():
    with torch.inference_mode():
        x, y = X + 0, Y + 0
    potential = registry.module(F64).potential
    points = potential.init(2)
    found = full_gradient(potential, points, (x, y)).gradient
    assert torch.equal(found, full_gradient(potential, points, (X, Y)).gradient)


def refused(data, error, match, place=PLACE):
    with pytest.raises(error, match=match):
        as_data(data, place)


def test_masked_arrays_are_refused():
    masked = np.ma.masked_array(X.numpy(), X.numpy() > 1)
    refused((masked, Y), TypeError, "without a mask, got a MaskedArray.*impute")
    refused([(masked, Y)], TypeError, "without a mask")
    with pytest.warns(UserWarning, match="prototype"):
        tensor = torch.masked.masked_tensor(X, X < 1)
    refused((tensor, Y), TypeError, "got a MaskedTensor")


def test_frames_name_the_columns_that_are_no_numbers():
    table = pd.DataFrame({"age": np.arange(N), "name": ["a"] * N})
    refused((table, Y), TypeError, r"DataFrame with columns \{'name': .*encode them")
    missing = pd.DataFrame({"age": pd.array([None] + [1] * (N - 1), dtype="Int64")})
    refused((missing, Y), (TypeError, ValueError), "impute")
    refused((pd.Series([np.nan] + [1.0] * (N - 1)), Y), ValueError, "finite, got 1 NaN")


def test_values_too_large_for_the_dtype_are_refused():
    place = Place(torch.device("cpu"), torch.float16, 2)
    refused(np.array([1.0, 1e6]), ValueError, r"in float16, .* got 1 NaN or inf.*Scale", place)
    refused(np.array([1.0, np.inf]), ValueError, r"data must be finite|data\[0\] must be", place)


NESTED = torch.nested.nested_tensor([X[0], X[1]], layout=torch.jagged)


@pytest.mark.parametrize("item", [None, 3, "text", object(), X.to_sparse(), X * 1j, NESTED])
def test_odd_leaves_are_named(item):
    refused((X, item), TypeError, "dense tensors or arrays of real numbers, got")


def test_particles_are_checked_and_placed():
    place = Place(torch.device("cpu"), F64)
    found = as_particles(torch.zeros(2, 3, requires_grad=True), place, 3)
    assert found.dtype == F64 and not found.requires_grad
    with pytest.raises(ValueError, match=r"at must have shape \[P, 3\]"):
        as_particles(torch.zeros(3), place, 3, "at")


@pytest.mark.parametrize("form", ["frames", "batches", "loader", "shuffled", "stream"])
def test_all_that_takes_data_takes_every_form(form):
    """The same numbers as from tensors, where the order of the data plays no part."""
    potential = registry.module(F64).potential
    points = potential.init(2)

    def numbers(data):
        gradient = full_gradient(potential, points, data, 7)
        suggested = pvi.suggest_step_size(potential, data, at=points, verbose=False)
        checked = pvi.tuning.check_stability(pvi.sgld(potential), 1e-6, data, at=points)
        anchored = pvi.control_variate(potential, data, points[0])
        center = anchored.init(points, ParticleStreams(0))
        return (
            gradient.gradient,
            gradient.potential,
            torch.tensor([suggested.curvature, checked.curvature]),
            center.gradient,
        )

    for got, wanted in zip(numbers(FORMS[form]), numbers((X, Y)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


def test_random_streams_outside_are_left_alone():
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, k):
            return X[k] + torch.randn(3, dtype=F64) + np.random.normal()

    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(Noisy(), batch_size=6, shuffle=True, generator=generator)
    data = as_data(loader, PLACE)
    before = torch.get_rng_state(), generator.get_state(), np.random.get_state()[1].copy()
    first = [batch.data for batch in data.chunks(8)]
    data.batches(num_particles=2)
    after = torch.get_rng_state(), generator.get_state(), np.random.get_state()[1].copy()
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert (before[2] == after[2]).all()
    assert torch.equal(torch.cat(first), torch.cat([batch.data for batch in data.chunks(8)]))


def test_fingerprints_tell_data_apart():
    prints = {name: as_data(form, PLACE).fingerprint() for name, form in FORMS.items()}
    assert prints["tensors"] == prints["arrays"] == prints["frames"] == prints["list"]
    loader = DataLoader(TensorDataset(X, Y), batch_size=9)
    assert as_data(loader, PLACE).fingerprint() == prints["loader"]
    others = [
        DataLoader(TensorDataset(X.flip(0), Y), batch_size=9),
        DataLoader(TensorDataset(X, Y), batch_size=9, shuffle=True),
        DataLoader(TensorDataset(X, Y), batch_size=5),
    ]
    assert all(as_data(other, PLACE).fingerprint() != prints["loader"] for other in others)


def test_the_type_is_abstract():
    assert isinstance(as_data((X, Y), PLACE), Data)
    with pytest.raises(TypeError, match="abstract"):
        Data()
