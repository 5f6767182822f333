"""Minibatches: each way of batching has its law, exactly."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import is_tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import particlevi as pvi
from particlevi.data import as_data, indices
from particlevi.streams import ParticleStreams


def source(method, size, particles=3, num=12, shared=False):
    potential = pvi.from_log_likelihood(
        lambda t: -(t.sum() ** 2), lambda t, x: -(t - x).square(), 1, num
    )
    return as_data(torch.arange(float(num)), potential).batches(
        batch_size=size, num_particles=particles, shared=shared, batching=method
    )


def test_an_epoch_is_a_permutation_for_every_particle():
    made, streams = source("epoch", 4), ParticleStreams(0)
    epochs = []
    for _ in range(3):
        seen = torch.cat([made.next(streams).data for _ in range(3)], dim=1)
        assert torch.equal(seen.sort(dim=1).values, torch.arange(12.0).expand(3, -1))
        epochs.append(seen)
    assert not torch.equal(epochs[0][0], epochs[0][1])
    assert not torch.equal(epochs[0], epochs[1])


def test_an_epoch_leaves_out_what_does_not_fill_a_batch():
    made, streams = source("epoch", 5), ParticleStreams(0)
    seen = torch.cat([made.next(streams).data for _ in range(2)], dim=1)
    assert all(len(row.unique()) == 10 for row in seen)
    made.next(streams)
    assert made.cursor == 5


def test_a_subset_holds_no_datum_twice():
    made, streams = source("subset", 8), ParticleStreams(0)
    for _ in range(20):
        assert all(len(row.unique()) == 8 for row in made.next(streams).data)


@pytest.mark.parametrize("method", ["replacement", "subset", "epoch"])
def test_every_datum_is_as_likely(method):
    """Counts of 12 data in 3 x 4000 batches of 4: each has mean 4000, and none is off by 5 sd."""
    made, streams = source(method, 4), ParticleStreams(0)
    drawn = torch.stack([made.next(streams).data for _ in range(4000)]).long()
    counts = torch.bincount(drawn.flatten(), minlength=12)
    assert counts.sum() == 48_000
    assert (counts - 4000).abs().max() < 5 * 4000**0.5
    first = torch.bincount(drawn[..., 0].flatten(), minlength=12)
    assert (first - 1000).abs().max() < 5 * 1000**0.5


def test_shared_and_own_batches_have_their_shapes():
    streams = ParticleStreams(0)
    own = source("replacement", 4).next(streams)
    assert own.per_particle
    assert own.data.shape == (3, 4)
    shared = source("replacement", 4, shared=True).next(streams)
    assert not shared.per_particle
    assert shared.data.shape == (4,)


def test_a_full_subset_is_the_data():
    made = source("subset", 12)
    assert torch.equal(made.next(ParticleStreams(0)).data, torch.arange(12.0))


def test_shuffling_in_blocks_is_still_shuffling(monkeypatch):
    monkeypatch.setattr(indices, "_SHUFFLED_AT_ONCE", 12)
    made, streams = source("epoch", 6, particles=5), ParticleStreams(0)
    seen = torch.cat([made.next(streams).data for _ in range(2)], dim=1)
    assert torch.equal(seen.sort(dim=1).values, torch.arange(12.0).expand(5, -1))
    assert len({tuple(row.tolist()) for row in seen}) == 5


def test_chains_see_different_data_unless_they_share():
    data = torch.randn(50, generator=torch.Generator().manual_seed(0))
    potential = pvi.from_log_likelihood(
        lambda t: -0.5 * t.sum() ** 2, lambda t, x: -0.5 * (t - x).square(), 1, 50
    )
    options = {"initial": torch.zeros(2, 1), "num_draws": 3, "batch_size": 5, "progress": False}
    own = pvi.sample(pvi.sgd(potential), data, step_size=1e-3, **options).particles
    shared = pvi.sample(
        pvi.sgd(potential),
        data,
        step_size=1e-3,
        batching=pvi.data.Minibatches(shared=True),
        **options,
    ).particles
    assert not torch.equal(own[0], own[1])
    assert torch.equal(shared[0], shared[1])


def test_a_run_takes_data_that_were_prepared():
    data = torch.randn(50, generator=torch.Generator().manual_seed(0))
    potential = pvi.from_log_likelihood(
        lambda t: -0.5 * t.sum() ** 2, lambda t, x: -0.5 * (t - x).square(), 1, 50
    )
    options = {
        "initial": torch.zeros(2, 1),
        "num_draws": 3,
        "batch_size": 5,
        "progress": False,
        "step_size": 1e-3,
        "batching": pvi.data.Minibatches("subset", shared=False),
    }
    prepared = pvi.sample(pvi.sgld(potential), as_data(data, potential), **options)
    raw = pvi.sample(pvi.sgld(potential), data, **options)
    assert torch.equal(prepared.particles, raw.particles)


@pytest.mark.parametrize("method", ["replacement", "subset", "epoch"])
def test_batches_of_a_particle_do_not_depend_on_the_others(method):
    """From streams that belong to particles: 2 and 3 alone see what they see among five."""
    together, streams = source(method, 4, particles=5), ParticleStreams(0)
    alone, own = source(method, 4, particles=2), ParticleStreams(0, first=2)
    for _ in range(7):
        assert torch.equal(alone.next(own).data, together.next(streams).data[2:4])


@pytest.mark.parametrize("method", ["replacement", "subset", "epoch"])
def test_shared_batches_take_from_the_shared_stream(method):
    """So they do not depend on how many particles there are."""
    many, streams = source(method, 4, particles=5, shared=True), ParticleStreams(0)
    few, own = source(method, 4, particles=1, shared=True), ParticleStreams(0, first=3)
    for _ in range(7):
        batch = many.next(streams).data
        assert batch.shape == (4,)
        assert torch.equal(batch, few.next(own).data)


@pytest.mark.parametrize("method", ["replacement", "subset", "epoch"])
def test_orders_and_integers_from_streams_are_uniform(method):
    made, streams = source(method, 4), ParticleStreams(0)
    drawn = torch.stack([made.next(streams).data for _ in range(1000)]).long()
    counts = torch.bincount(drawn.flatten(), minlength=12)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5


LAWS = [
    ({"batch_size": None, "method": "replacement"}, "all", True, 12),
    ({"batch_size": 12, "method": "replacement"}, "independent", False, 12),
    ({"batch_size": 4, "method": "replacement"}, "independent", False, 4),
    ({"batch_size": 12, "method": "subset"}, "all", True, 12),
    ({"batch_size": 4, "method": "subset"}, "subset", False, 4),
    ({"batch_size": 12, "method": "epoch"}, "all", True, 12),
    ({"batch_size": 4, "method": "epoch"}, "epoch", False, 4),
]


@pytest.mark.parametrize(("options", "law", "shared", "size"), LAWS)
def test_each_source_declares_its_law(options, law, shared, size):
    """A bootstrap of N from N data is no complete batch."""
    made = source(options["method"], options["batch_size"])
    assert (made.law, made.shared, made.batch_size) == (law, shared, size)
    assert made.num_data == 12
    batch = made.next(ParticleStreams(0))
    assert batch.law == law and batch.scale is None
    assert source(options["method"], options["batch_size"], shared=True).shared


@pytest.mark.parametrize("method", ["replacement", "subset", "epoch"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("size", "width"), [(500, 40), (10, 1)])
def test_planned_memory_is_what_a_batch_takes(method, shared, size, width):
    """The allocations of one draw and the batch before it, within a factor 1.5."""
    num, particles = 20_000, 10
    potential = pvi.from_log_likelihood(
        lambda t: -(t.sum() ** 2), lambda t, x: -(t - x).square().sum(-1), 1, num
    )
    made = as_data(torch.zeros(num, width), potential).batches(
        batch_size=size, num_particles=particles, shared=shared, batching=method
    )
    streams = ParticleStreams(0)
    before = made.next(streams)
    made.restore({"order": torch.empty(0, 0).long(), "cursor": torch.tensor(num)})
    with Meter() as meter:
        streams = ParticleStreams(1)
        after = made.next(streams)
    held = before.data.nbytes
    peak = held + meter.most
    assert after.data.nbytes == held
    planned = made.batch_nbytes(particles) + made.nbytes()
    assert peak / 1.5 <= planned <= 1.5 * peak


class Meter(TorchDispatchMode):
    """The most memory that tensors made inside took at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.most = {}, 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        found = operation(*arguments, **(options or {}))
        given = {x.untyped_storage()._cdata for x in pytree.tree_leaves(arguments) if is_tensor(x)}
        for tensor in filter(is_tensor, pytree.tree_leaves(found)):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in given and key not in self.live:
                self.live[key] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, key, None)
        self.most = max(self.most, sum(self.live.values()))
        return found
