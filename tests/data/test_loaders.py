"""Loaders: over an epoch every datum counts once, or the loader is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import particlevi as pvi
from particlevi.data import as_data
from particlevi.data.tensors import length_of
from particlevi.gradients.full import full_gradient
from particlevi.potentials.protocol import as_potential
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

F64 = torch.float64
N = 33
X = torch.zeros(N, dtype=F64)
X[-1] = 33.0
STREAMS = ParticleStreams(0)


def mean_model(num=N, chunk_size=None):
    """Unit noise and a unit normal prior: precision N + 1, mean sum(x) / (N + 1)."""
    return pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        lambda theta, x: -0.5 * ((x[0] if isinstance(x, tuple) else x) - theta).square(),
        num_params=1,
        num_data=num,
        dtype=F64,
        chunk_size=chunk_size,
    )


class Stream(IterableDataset):
    """A data set without numbers: ``rows`` of the data in order."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


class Uneven:
    """A sampler of batches of unequal sizes."""

    def __iter__(self):
        return iter([list(range(5)), list(range(5, 30)), [30], [31, 32]])

    def __len__(self):
        return 4


LOADERS = {
    "fixed order": lambda: DataLoader(X, batch_size=32),
    "shuffled": lambda: DataLoader(X, batch_size=32, shuffle=True),
    "sizes that fit": lambda: DataLoader(X, batch_size=11),
    "uneven": lambda: DataLoader(X, batch_sampler=Uneven()),
    "list": lambda: [(X[:2],), (X[2:30],), (X[30:],)],
    "stream": lambda: DataLoader(Stream(X), batch_size=10),
    "batches made by the data set": lambda: DataLoader(X.view(3, 11), batch_size=None),
    "subset": lambda: DataLoader(
        torch.cat([X, X + 100]), batch_size=10, sampler=SubsetRandomSampler(range(N))
    ),
}


def epoch_of(loader, potential, epochs=1):
    source = as_data(loader, potential).batches(num_particles=2)
    batches = [source.next(STREAMS)]
    while source.seen < source.epoch.num_seen or epochs > 1:
        epochs -= source.seen == source.epoch.num_seen
        batches.append(source.next(STREAMS))
    return source, batches


@pytest.mark.parametrize("name", LOADERS)
def test_the_mean_gradient_over_an_epoch_is_that_of_all_data(name):
    """Algebraically, in any order: the energies of an epoch's batches average to the whole."""
    potential = mean_model()
    points = torch.tensor([[0.3], [-2.0]], dtype=F64)
    source, batches = epoch_of(LOADERS[name](), potential)
    assert source.law == "loader" and source.shared and source.num_data == N
    assert sum(length_of(batch.data) for batch in batches) == N
    energies = torch.stack([potential(points, batch) for batch in batches]).mean(0)
    whole = potential(points, next(as_data(X, potential).chunks(N)))
    torch.testing.assert_close(energies, whole, rtol=1e-12, atol=1e-12)


ESTIMATORS = {
    "minibatch": pvi.gradients.minibatch,
    "control variate": lambda p: pvi.control_variate(p, X, torch.ones(1, dtype=F64)),
    "structured": lambda p: pvi.structured(
        p, "parameter", history=pvi.gradients.history(initial=torch.zeros(1, 1, dtype=F64))
    ),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_weights_a_loaders_batches_alike(name):
    potential = mean_model()
    estimator = ESTIMATORS[name](potential)
    points = torch.tensor([[0.3], [-2.0]], dtype=F64)
    state = estimator.init(points, STREAMS)
    noise = estimator.draw_noise(state, STREAMS)
    _, batches = epoch_of(LOADERS["fixed order"](), potential)
    found = torch.stack([estimator(state, points, b, noise).gradient for b in batches]).mean(0)
    whole = 34 * points - 33
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-12)


class Own:
    """The mean model as an object of a user's own, which knows no weights but N/B."""

    num_params, num_data, dtype = 1, N, F64

    def log_prior(self, particles):
        return -0.5 * particles.square().sum(1)

    def __call__(self, particles, batch=None):
        return -self.log_prior(particles) + N / len(batch.data) * 0.5 * (
            batch.data - particles
        ).square().sum(1)


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "list"])
def test_a_potential_of_ones_own_is_unbiased_over_an_epoch(name):
    potential = as_potential(Own())
    points = torch.tensor([[0.3], [-2.0]], dtype=F64)
    _, batches = epoch_of(LOADERS[name](), potential)
    estimator = pvi.gradients.minibatch(potential)
    found = torch.stack([estimator((), points, b, ()).gradient for b in batches]).mean(0)
    torch.testing.assert_close(found, 34 * points - 33, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        full_gradient(potential, points, X, 10).gradient, 34 * points - 33, rtol=1e-12, atol=1e-12
    )


def test_halves_of_a_weighted_batch_average_to_the_batch():
    potential = mean_model()
    points = torch.tensor([[0.3]], dtype=F64)
    batch = as_data(LOADERS["fixed order"](), potential).batches(num_particles=1).example()

    def estimate(part):
        return pvi.gradients.minibatch(potential)((), points, part, ())

    halves = pvi.gradients.halves.in_halves(estimate, batch, N)
    torch.testing.assert_close(halves.found.gradient, estimate(batch).gradient)


def test_a_short_last_batch_does_not_bend_the_posterior():
    """N = 33, batches of 32: mean .971 +- .171. With N/B it came out as 16.0."""
    potential = mean_model()
    draws = pvi.sample(
        pvi.sgld(potential),
        DataLoader(X, batch_size=32),
        step_size=2e-4,
        initial=torch.ones(400, 1, dtype=F64),
        num_warmup=600,
        num_draws=2,
        thin=300,
        progress=False,
    )
    mean = float(draws.particles.mean())
    # A pass over the epoch adds a bias of order h N sd; here .03 standard deviations.
    assert abs(mean - 33 / 34) < 5 * (1 / 34) ** 0.5 / 800**0.5 + 0.01


def test_an_epoch_shuffled_with_drop_last_is_unbiased_on_average():
    """One datum is left out at random: the mean over many epochs, within 5 standard errors."""
    potential = mean_model()
    loader = DataLoader(X, batch_size=8, shuffle=True, drop_last=True)
    points = torch.zeros(1, 1, dtype=F64)
    torch.manual_seed(0)
    source = as_data(loader, potential).batches(num_particles=1)
    assert source.epoch.scale == pytest.approx(33 / 8)
    estimator = pvi.gradients.minibatch(potential)
    per_epoch = torch.stack(
        [
            torch.stack(
                [estimator((), points, source.next(STREAMS), ()).gradient for _ in range(4)]
            ).mean()
            for _ in range(500)
        ]
    )
    error = float(per_epoch.std()) / math.sqrt(500)
    assert abs(float(per_epoch.mean()) + 33) < 5 * error


def test_one_batch_of_all_the_data_is_exact():
    potential = mean_model()
    for loader in ([(X,)], DataLoader(X, batch_size=40, shuffle=True), DataLoader(X, batch_size=N)):
        source = as_data(loader, potential).batches(num_particles=2)
        assert source.law == "all"
        batch = source.next(STREAMS)
        assert batch.law == "all" and batch.scale is None


def refused(loader, match, num=N):
    with pytest.raises(ValueError, match=match):
        as_data(loader, mean_model(num))


def test_loaders_that_give_data_unequal_weight_are_refused_at_once():
    weights = WeightedRandomSampler(torch.ones(N), N)
    refused(DataLoader(X, batch_size=4, sampler=weights), "WeightedRandomSampler.*shuffle=True")
    refused(
        DataLoader(X, batch_size=4, sampler=DistributedSampler(X, num_replicas=2, rank=0)),
        "DistributedSampler",
    )
    refused(DataLoader(X, batch_size=4, sampler=[0, *range(N)]), "more than once")
    repeated = SubsetRandomSampler([*range(N - 1), 0])
    refused(DataLoader(X, batch_size=4, sampler=repeated), "more than once")
    endless = RandomSampler(X, replacement=True, num_samples=10**9)

    class Endless:
        def __iter__(self):
            return iter([k] for k in endless)

    refused(DataLoader(X, batch_sampler=Endless()), "more than once")


@pytest.mark.parametrize("given", [RandomSampler, SequentialSampler, SubsetRandomSampler])
def test_a_sampler_made_from_one_of_torchs_is_judged_by_the_numbers_it_gives(given):
    class Own(given):
        def __iter__(self):
            return iter(self.numbers)

    def loader(numbers):
        made = Own(range(N))
        made.numbers = numbers
        return DataLoader(X, batch_size=4, sampler=made)

    refused(loader([0] * N), "more than once")
    refused(loader(range(20)), "num_data")
    assert as_data(loader(range(N - 1, -1, -1)), mean_model()).num_data == N


def test_loaders_that_never_show_some_data_are_refused_at_once():
    match = "never shows the last 1 of 33 data.*drop_last=False, or shuffle=True"
    refused(DataLoader(X, batch_size=8, drop_last=True), match)
    as_data(DataLoader(X, batch_size=11, drop_last=True), mean_model())
    order = list(range(N))
    match = "num_data=33, got 32 data"
    refused(DataLoader(X, batch_size=8, sampler=order, drop_last=True), match)


def test_other_numbers_of_data_are_refused_at_once():
    refused(DataLoader(X[:-1], batch_size=8), "num_data=33, got 32 data")
    refused([(X[:4],), (X[:4],)], "num_data=33, got 8 data")
    refused([(X[:20],), (X[:20],)], "num_data=33, got 40 data")
    subset = SubsetRandomSampler(range(20))
    refused(DataLoader(X, batch_size=8, sampler=subset), "num_data=33, got 20 data")
    as_data(DataLoader(X, batch_size=8, sampler=subset), mean_model(20))


def test_every_batch_of_a_list_is_checked_at_once():
    refused([(X[:20],), (torch.full((13,), math.nan),)], r"a batch\[0\] must be finite")
    with pytest.raises(TypeError, match=r"a batch must be made of .* got None"):
        as_data([(X[:20],), (None,)], mean_model())


def run(loader, potential=None, num_draws=50):
    return pvi.sample(
        pvi.sgld(potential or mean_model()),
        loader,
        step_size=1e-4,
        num_particles=1,
        num_draws=num_draws,
        progress=False,
    )


class Broken(torch.utils.data.Dataset):
    """A data set that raises StopIteration at datum 20."""

    def __len__(self):
        return N

    def __getitem__(self, k):
        if k == 20:
            raise StopIteration
        return X[k]


def without_zeros(items):
    return torch.stack([item for item in items if item != 0] or [items[0]])


ENDING = {
    "fewer": (lambda: DataLoader(Stream(X[:-3]), batch_size=5), "held 30 data"),
    "more": (lambda: DataLoader(Stream(torch.cat([X, X])), batch_size=5), "at least 35 data"),
    "dropped": (lambda: DataLoader(Stream(X), batch_size=8, drop_last=True), "held 32 data"),
    "StopIteration": (lambda: DataLoader(Broken(), batch_size=5), "held 20 data.*StopIteration"),
    "collate": (lambda: DataLoader(X, batch_size=5, collate_fn=without_zeros), "held 7 data"),
}


@pytest.mark.parametrize("name", ENDING)
def test_an_epoch_that_does_not_hold_the_data_ends_the_run(name):
    make, match = ENDING[name]
    with pytest.raises(ValueError, match=f"(?s){match}"):
        run(make())
    with pytest.raises(ValueError, match=r"A pass over the loader gave|held"):
        list(as_data(make(), mean_model()).chunks(10))


def test_a_batch_of_none_is_no_end_of_an_epoch():
    class Holes:
        def __iter__(self):
            return iter([X[:20], None, X[20:]])

    with pytest.raises(TypeError, match=r"a batch must be made of .* got None"):
        run(Holes())


def test_batches_whose_sizes_could_not_be_foreseen_end_the_run():
    class Unforeseen:
        def __iter__(self):
            return iter([X[:20], X[20:23], X[23:]])

    with pytest.raises(ValueError, match=r"3 batches, expected 2 .*batch_sampler"):
        run(Unforeseen())

    class Known(Unforeseen):
        def __len__(self):
            return 3

    run(Known())


def test_targets_of_every_batch_are_checked():
    net = torch.nn.Linear(2, 3).double()
    potential = pvi.from_module(net, pvi.Categorical(), pvi.Normal(), num_data=8)
    x, y = torch.ones(8, 2, dtype=F64), torch.arange(8) % 3
    y[6] = 3
    for loader in ([(x[:4], y[:4]), (x[4:], y[4:])], DataLoader(TensorDataset(x, y), batch_size=4)):
        with pytest.raises(ValueError, match="Categorical"):
            run(loader, potential)


def test_an_epoch_goes_on_where_the_checkpoint_was_made():
    """With the count of its data."""
    potential = mean_model()
    loader = DataLoader(X, batch_size=8, shuffle=True)
    source = as_data(loader, potential).batches(num_particles=1)
    for _ in range(3):
        source.next(STREAMS)
    other = as_data(loader, potential).batches(num_particles=1)
    other.restore(source.state())
    assert (other.used, other.seen) == (3, 24)
    for _ in range(2):
        assert torch.equal(other.next(STREAMS).data, source.next(STREAMS).data)
    assert other.seen == N


def test_gradient_variance_of_a_loader():
    """Of shuffled epochs: that of random subsets, (N - B) / (N - 1) times N^2 / B Var(x)."""
    n, b = 60, 10
    x = torch.from_numpy(np.random.default_rng(0).normal(size=n))
    loader = DataLoader(x, batch_size=b, shuffle=True)
    before = torch.get_rng_state()
    found = pvi.noise.gradient_variance(mean_model(n), torch.zeros(2, 1), loader, num_batches=1000)
    assert torch.equal(before, torch.get_rng_state())
    exact = n**2 / b * x.var(correction=0) * (n - b) / (n - 1)
    assert float(found) == pytest.approx(float(exact), rel=5 * (2 / 1000) ** 0.5)
    again = pvi.noise.gradient_variance(mean_model(n), torch.zeros(2, 1), loader, num_batches=1000)
    assert torch.equal(found, again)


def test_suggest_step_size_sees_the_noise_of_a_loader():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=60))
    found = pvi.suggest_step_size(mean_model(60), DataLoader(x, 10, shuffle=True), verbose=False)
    assert found.curvature == pytest.approx(61, rel=1e-6)
    assert found.gradient_noise > 0 and "batches of 10" in found.reason
    exact = pvi.suggest_step_size(mean_model(60), DataLoader(x, 60), verbose=False)
    assert exact.gradient_noise == 0


def test_weights_survive_chunks_of_particles():
    """Also under an estimator that repeats the batch for its composites."""
    index = torch.arange(8).view(4, 2)
    batch = Batch(X[index] + index, True, scale=torch.tensor(5.0, dtype=F64))
    points = torch.arange(4.0, dtype=F64).view(4, 1)
    for name in ("minibatch", "structured"):
        found = []
        for chunk_size in (None, 1):
            potential = mean_model(chunk_size=chunk_size)
            estimator = ESTIMATORS[name](potential)
            state = estimator.init(points, STREAMS)
            noise = estimator.draw_noise(state, ParticleStreams(0))
            found.append(estimator(state, points, batch, noise).gradient)
        exact = points + 5 * (2 * points - batch.data.sum(1, keepdim=True))
        torch.testing.assert_close(found[0], exact)
        torch.testing.assert_close(found[1], exact)


@pytest.mark.parametrize("row", [9, 10, 19, 20])
def test_a_datum_at_the_edge_of_a_batch_is_taken_and_no_batch_is_read_after_it(row):
    read = []

    class Counted(Stream):
        def __iter__(self):
            for value in self.rows:
                read.append(float(value))
                yield value

    values = torch.arange(float(N), dtype=F64)
    data = as_data(DataLoader(Counted(values), batch_size=10), mean_model())
    read.clear()
    assert data.take(torch.tensor([row])).data.tolist() == [row]
    assert len(read) == 10 * (row // 10 + 1)
