"""Anything at all as data, options and particles: an error of ours or a right answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import particlevi as pvi
from particlevi.data import Place, as_data, as_particles
from particlevi.streams import ParticleStreams
from tests.test_any_input import NUMBERS, anything, ours_or_right, tensors

N = 12
PLACE = Place(torch.device("cpu"), torch.float64)
X = torch.arange(float(N))
MODEL = pvi.from_log_likelihood(
    lambda theta: -theta.square().sum(), lambda theta, x: -(theta - x).square(), 1, N
)
ODD = st.sampled_from(
    [
        [], (), {}, [()], [{}], [None], [[1.0]], {"x": X, "y": None}, "text", b"x", object(), int,
        torch.float32, 1j, Ellipsis, iter([1]), np.array("a"), np.array([None] * N),
        np.zeros(N, dtype=[("a", float)]), np.zeros(N, dtype="datetime64[s]"),
        np.zeros(N, dtype=np.longdouble), np.ma.masked_array(np.zeros(N), np.zeros(N) > 1),
        pd.DataFrame({"a": range(N)}), pd.DataFrame({"a": ["x"] * N}), pd.DataFrame(),
        pd.Series(range(N)), X.to_sparse(), torch.zeros(N, device="meta"), torch.Generator(),
        DataLoader(X, 5), DataLoader([], 4), DataLoader(["a"] * N, 4), DataLoader([{"a": 1.0}] * N),
        [(X[:5],), (X[5:],)], [X[:5], X[5:]],
    ]
)  # fmt: skip
ANYTHING = st.one_of(ODD, NUMBERS, tensors())
OPTIONS = st.sampled_from(["num_particles", "batch_size", "shared", "batching"])


@anything
@given(st.one_of(ANYTHING, st.tuples(ANYTHING, ANYTHING)), st.one_of(st.just(4), ANYTHING))
def test_data_of_anything(given, size):
    data = ours_or_right(lambda: as_data(given, PLACE, complete=False))
    if data is None:
        return
    chunks = ours_or_right(lambda: list(data.chunks(size)))
    if chunks is not None:
        leaves = [torch.utils._pytree.tree_leaves(chunk.data)[0] for chunk in chunks]
        assert sum(len(leaf) for leaf in leaves) == data.num_data
        assert all(leaf.device == PLACE.device for leaf in leaves)


@anything
@given(st.booleans(), st.dictionaries(OPTIONS, ANYTHING, max_size=3))
def test_batches_with_anything(loader, options):
    data = as_data(DataLoader(X, 5) if loader else X, MODEL)
    source = ours_or_right(lambda: data.batches(**{"num_particles": 3, **options}))
    if source is not None:
        batch = source.next(ParticleStreams(0))
        size = batch.data.shape[1 if batch.per_particle else 0]
        assert size == source.batch_size and batch.per_particle != source.shared


@anything
@given(ANYTHING, ANYTHING)
def test_rows_and_particles_of_anything(given, count):
    data = as_data(DataLoader(X, 5), MODEL)
    batch = ours_or_right(lambda: data.take(given))
    if batch is not None:
        assert torch.equal(batch.data, X[given])
    first = ours_or_right(lambda: data.first(count))
    if first is not None:
        assert torch.equal(first.data, X[: int(count)])
    points = ours_or_right(lambda: as_particles(given, MODEL, 1))
    if points is not None:
        assert points.shape[1] == 1 and points.dtype == MODEL.dtype


@anything
@given(
    st.one_of(st.just(X), ANYTHING),
    st.dictionaries(
        st.sampled_from(["at", "batch_size", "temperature", "friction"]), ANYTHING, max_size=2
    ),
)
def test_step_sizes_from_anything(given, options):
    found = ours_or_right(lambda: pvi.suggest_step_size(MODEL, given, verbose=False, **options))
    if found is not None:
        assert found.overdamped > 0 and found.curvature > 0
    points = options.get("at", torch.zeros(2, 1))
    sampler = pvi.sgld(MODEL)
    ours_or_right(lambda: pvi.tuning.check_stability(sampler, 1e-3, given, at=points))
    size = options.get("batch_size", 4)
    noise = ours_or_right(
        lambda: pvi.noise.gradient_variance(MODEL, points, given, batch_size=size, num_batches=2)
    )
    assert noise is None or noise.shape == (1,)
