"""Random numbers that belong to particles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import particlevi as pvi
from particlevi.streams import ParticleStreams
from tests import registry
from tests.registry import SAMPLERS

KINDS = {
    "normal": lambda streams, num: streams.normal((num, 5)),
    "double": lambda streams, num: streams.normal((num, 3), torch.float64),
    "uniform": lambda streams, num: streams.uniform((num,)),
    "integers": lambda streams, num: streams.integers(1000, (num, 4, 2)),
    "large": lambda streams, num: streams.normal((num, 5000)),
    "gamma": lambda streams, num: streams.gamma(1.5, (num, 2)),
}


def drawn(streams: ParticleStreams, num: int, calls: int = 3) -> list[Tensor]:
    """A few calls of every kind, by turns."""
    return [draw(streams, num) for _ in range(calls) for draw in KINDS.values()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("num", [1, 2, 6])
def test_a_row_depends_on_its_particle_alone(num):
    everyone = drawn(ParticleStreams(3), 7)
    some = drawn(ParticleStreams(3), num)
    last = drawn(ParticleStreams(3, first=7 - num), num)
    assert same([values[:num] for values in everyone], some)
    assert same([values[-num:] for values in everyone], last)


def test_seeds_and_purposes_and_particles_differ():
    streams = [ParticleStreams(0), ParticleStreams(1), ParticleStreams(0, "start")]
    rows = [row for each in streams for row in (*each.normal((3, 50)), each.shared.normal((50,)))]
    correlations = torch.corrcoef(torch.stack(rows)).fill_diagonal_(0)
    assert correlations.abs().max() < 0.6


def test_no_two_particles_share_a_seed():
    streams = ParticleStreams(5)
    seeds = {each.initial_seed() for each in streams._of_particles(20_000)}
    assert len(seeds) == 20_000


def test_numbers_given_out_are_not_written_over():
    streams = ParticleStreams(0)
    first = streams.normal((2, 3))
    before = first.clone()
    for _ in range(5000):
        streams.normal((2, 3))
    assert torch.equal(first, before)


@pytest.mark.parametrize("calls", [0, 1, 5])
def test_streams_go_on_from_their_state(calls):
    streams = ParticleStreams(2)
    drawn(streams, 4, calls)
    if calls:
        streams.shared.uniform((3,))
    saved = {name: value.clone() for name, value in streams.state().items()}
    expected = [*drawn(streams, 4, 4), streams.shared.uniform((3,))]
    again = ParticleStreams(2)
    drawn(again, 4, 7)
    again.restore(saved)
    second = {name: value.clone() for name, value in again.state().items()}
    assert second.keys() == saved.keys()
    assert same([*drawn(again, 4, 4), again.shared.uniform((3,))], expected)


def test_the_first_state_is_the_beginning_again():
    streams = ParticleStreams(2)
    begin = streams.state()
    first = streams.shared.uniform((3,))
    streams.restore(begin)
    assert torch.equal(streams.shared.uniform((3,)), first)


def test_laws():
    streams = ParticleStreams(0)
    normal = torch.stack([streams.normal((40, 7)) for _ in range(1000)]).double().flatten()
    uniform = torch.stack([streams.uniform((40, 7)) for _ in range(1000)]).double().flatten()
    integers = torch.stack([streams.integers(10, (40, 7)) for _ in range(1000)]).flatten()
    gamma = torch.stack([streams.gamma(2.5, (40, 7)) for _ in range(200)]).flatten()
    count = normal.numel()
    assert abs(normal.mean()) < 5 / count**0.5
    assert abs(normal.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs(uniform.mean() - 0.5) < 5 * (1 / 12 / count) ** 0.5
    expected = count / 10
    excess = ((integers.bincount(minlength=10) - expected) ** 2 / expected).sum()
    assert excess < 9 + 5 * 18**0.5
    assert abs(gamma.mean() - 2.5) < 5 * (2.5 / gamma.numel()) ** 0.5


CASES = [
    ("sgld", "density", {}),
    ("hmc", "density", {}),
    ("sghmc", "function", {"batch_size": 4}),
    ("obabo", "module", {"batch_size": 4, "batching": "epoch"}),
    ("psgld", "module", {"batch_size": 4, "batching": "subset"}),
    ("mclmc", "function", {}),
]


@pytest.mark.parametrize(("sampler", "problem", "options"), CASES)
def test_other_particles_do_not_change_what_one_does(sampler, problem, options):
    made = registry.PROBLEMS[problem](torch.float64)
    case = SAMPLERS[sampler]
    options = {"step_size": case.step_size, "num_draws": 12, "progress": False, **options}
    few, many = (
        pvi.sample(case(made.potential), made.data, num_particles=num, **options) for num in (2, 5)
    )
    assert torch.equal(few.particles, many.particles[:2])
