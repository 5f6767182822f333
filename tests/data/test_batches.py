"""Minibatches: each way of batching has its law, exactly."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.data import as_data, indices


def source(method, size, particles=3, num=12, shared=False):
    potential = pvi.from_log_likelihood(
        lambda t: -(t.sum() ** 2), lambda t, x: -(t - x).square(), 1, num
    )
    return as_data(torch.arange(float(num)), potential).batches(
        batch_size=size, num_particles=particles, shared=shared, batching=method
    )


def test_an_epoch_is_a_permutation_for_every_particle():
    made, generator = source("epoch", 4), torch.Generator().manual_seed(0)
    epochs = []
    for _ in range(3):
        seen = torch.cat([made.next(generator).data for _ in range(3)], dim=1)
        assert torch.equal(seen.sort(dim=1).values, torch.arange(12.0).expand(3, -1))
        epochs.append(seen)
    assert not torch.equal(epochs[0][0], epochs[0][1])
    assert not torch.equal(epochs[0], epochs[1])


def test_an_epoch_leaves_out_what_does_not_fill_a_batch():
    made, generator = source("epoch", 5), torch.Generator().manual_seed(0)
    seen = torch.cat([made.next(generator).data for _ in range(2)], dim=1)
    assert all(len(row.unique()) == 10 for row in seen)
    made.next(generator)
    assert made.cursor == 5


def test_a_subset_holds_no_datum_twice():
    made, generator = source("subset", 8), torch.Generator().manual_seed(0)
    for _ in range(20):
        assert all(len(row.unique()) == 8 for row in made.next(generator).data)


@pytest.mark.parametrize("method", ["replacement", "subset", "epoch"])
def test_every_datum_is_as_likely(method):
    """Counts of 12 data in 3 x 4000 batches of 4: each has mean 4000, and none is off by 5 sd."""
    made, generator = source(method, 4), torch.Generator().manual_seed(0)
    drawn = torch.stack([made.next(generator).data for _ in range(4000)]).long()
    counts = torch.bincount(drawn.flatten(), minlength=12)
    assert counts.sum() == 48_000
    assert (counts - 4000).abs().max() < 5 * 4000**0.5
    first = torch.bincount(drawn[..., 0].flatten(), minlength=12)
    assert (first - 1000).abs().max() < 5 * 1000**0.5


def test_shared_and_own_batches_have_their_shapes():
    generator = torch.Generator().manual_seed(0)
    own = source("replacement", 4).next(generator)
    assert own.per_particle
    assert own.data.shape == (3, 4)
    shared = source("replacement", 4, shared=True).next(generator)
    assert not shared.per_particle
    assert shared.data.shape == (4,)


def test_a_full_subset_is_the_data():
    made = source("subset", 12)
    assert torch.equal(made.next(torch.Generator()).data, torch.arange(12.0))


def test_shuffling_in_blocks_is_still_shuffling(monkeypatch):
    monkeypatch.setattr(indices, "_SHUFFLED_AT_ONCE", 12)
    made, generator = source("epoch", 6, particles=5), torch.Generator().manual_seed(0)
    seen = torch.cat([made.next(generator).data for _ in range(2)], dim=1)
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
