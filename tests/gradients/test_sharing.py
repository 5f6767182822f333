"""An evaluation that several processes make in parts is the whole one."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.gradients.sharing import by_data, by_particles
from particlevi.typing import Batch, Gradient

P, D, N, B = 4, 2, 30, 6
F64 = torch.float64
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=GENERATOR, dtype=F64)
PARTICLES = torch.randn(P, D, generator=GENERATOR, dtype=F64)
PARTS = [range(0, 1), range(1, 1), range(1, 4)]
DATA_PARTS = [range(0, 2), range(2, 2), range(2, B)]


@pytest.fixture
def evaluate():
    target = pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        lambda theta, x: -(x - theta).square().square().sum(-1),
        num_params=D,
        num_data=N,
        dtype=F64,
    )
    estimator = pvi.gradients.minibatch(target)

    def found(particles, batch):
        return estimator((), particles, batch, ())

    return found


BATCHES = {
    "shared": Batch(X[:B]),
    "of each": Batch(X[: P * B].view(P, B, D), per_particle=True),
    "of a loader": Batch(X[:B], scale=torch.tensor(3.5, dtype=F64)),
}


def collected(shares):
    """What every process hands over, before anything is put together."""
    told = []

    def keep(tensors):
        told.append(list(tensors))
        return list(tensors)

    shares(keep)
    return told


@pytest.mark.parametrize("name", BATCHES)
def test_parts_of_a_batch_add_up_to_the_whole(name, evaluate):
    batch = BATCHES[name]
    told = collected(
        lambda add: [by_data(evaluate, PARTICLES, batch, mine, add) for mine in DATA_PARTS]
    )
    total = Gradient(*(sum(parts) for parts in zip(*told, strict=True)))
    torch.testing.assert_close(total, evaluate(PARTICLES, batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BATCHES)
def test_parts_of_the_particles_make_up_all_of_them(name, evaluate):
    batch = BATCHES[name]
    told = collected(
        lambda gather: [by_particles(evaluate, PARTICLES, batch, mine, gather) for mine in PARTS]
    )
    whole = Gradient(*(torch.cat(parts) for parts in zip(*told, strict=True)))
    torch.testing.assert_close(whole, evaluate(PARTICLES, batch), rtol=1e-12, atol=1e-12)


def test_who_has_no_particles_hands_over_none_of_one_parameter_either():
    (told,) = collected(
        lambda gather: by_particles(None, torch.zeros(3, 1), None, range(3, 3), gather)
    )
    assert [tuple(part.shape) for part in told] == [(0, 1), (0,)]


def test_who_has_no_data_hands_over_zeros(evaluate):
    (told,) = collected(
        lambda add: by_data(evaluate, PARTICLES, BATCHES["shared"], range(2, 2), add)
    )
    assert [tuple(part.shape) for part in told] == [(P, D), (P,)]
    assert not any(part.any() for part in told)
