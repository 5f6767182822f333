"""One potential in many threads: each run is what it is alone."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import particlevi as pvi
from particlevi.potentials.random import global_seed
from particlevi.potentials.shells import Shells
from particlevi.streams import ParticleStreams

THREADS = 6
N = 24
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).sin()


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))


def potential(dropout):
    return pvi.from_module(net(), pvi.Gaussian(0.3), pvi.Normal(1.0), N, dropout=dropout)


def run(target, seed):
    return pvi.sample(
        pvi.sghmc(target),
        (X, Y),
        batch_size=8,
        step_size=0.01,
        num_particles=3,
        num_draws=40,
        seed=seed,
        progress=False,
    ).particles


def in_threads(function, count=THREADS):
    """Results of ``function(i)``, all begun at one time."""
    gate = threading.Barrier(count)

    def begin(i):
        gate.wait()
        return function(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_runs_in_threads_are_those_of_runs_alone():
    target = potential("off")
    alone = [run(target, seed) for seed in range(THREADS)]
    for single, threaded in zip(alone, in_threads(lambda i: run(target, i)), strict=True):
        assert torch.equal(single, threaded)
    assert torch.equal(run(target, 0), alone[0])


def test_a_module_that_is_looped_over_runs_in_threads():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRU(1, 4, batch_first=True)
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.cell(x.unsqueeze(-1))[0][:, -1])

    target = pvi.from_module(Recurrent(), pvi.Gaussian(0.3), pvi.Normal(1.0), N)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [run(target, seed) for seed in range(2)]
    for single, threaded in zip(alone, in_threads(lambda i: run(target, i), 2), strict=True):
        assert torch.equal(single, threaded)


def test_masks_in_threads_are_those_of_runs_alone():
    target = potential("sample")
    alone = [run(target, seed) for seed in range(3)]
    for single, threaded in zip(alone, in_threads(lambda i: run(target, i), 3), strict=True):
        assert torch.equal(single, threaded)


def test_starts_in_threads_are_those_of_runs_alone():
    target = potential("off")

    def starts(seed):
        return [
            target.init(20, ParticleStreams(seed), method)
            for method in ("fresh", "prior", "jittered")
        ]

    alone = [starts(seed) for seed in range(THREADS)]
    for single, threaded in zip(alone, in_threads(starts), strict=True):
        for a, b in zip(single, threaded, strict=True):
            assert torch.equal(a, b)


def test_shells_share_tensors_and_nothing_else():
    module = net()
    shells = Shells(module)
    found = in_threads(lambda _: shells.here(), 3)
    assert len({id(each) for each in found}) == 3 and module not in found
    for shell in found:
        pairs = zip(shell.parameters(), module.parameters(), strict=True)
        assert all(own is original for own, original in pairs)
    assert shells.here() is shells.here()


def test_the_global_generator_is_left_as_it_was():
    target = potential("sample")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    in_threads(lambda i: run(target, i), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_within_a_run_leaves_the_outer_ones_stream():
    with global_seed(3):
        expected = torch.rand(4)
    with global_seed(3):
        with global_seed(4):
            torch.rand(2)
        assert torch.equal(torch.rand(4), expected)


def test_runs_that_read_loaders_of_their_own_are_those_of_runs_alone():
    target = potential("sample")

    def read(seed):
        order = torch.Generator().manual_seed(seed)
        loader = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True, generator=order)
        return pvi.sample(
            pvi.sgld(target), loader, step_size=1e-3, num_particles=2, num_draws=30, seed=seed,
            progress=False,
        ).particles  # fmt: skip

    alone = [read(seed) for seed in range(3)]
    for single, threaded in zip(alone, in_threads(read, 3), strict=True):
        assert torch.equal(single, threaded)
