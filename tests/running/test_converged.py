"""When a run has drawn enough."""

from types import SimpleNamespace

import pytest
import torch

import particlevi as pvi
from particlevi.diagnostics import arviz

PARTS = 12


@pytest.fixture(scope="module")
def values():
    """Chains that mix at twelve speeds, ``[4, 3000, 12]``."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 3000, PARTS, generator=generator, dtype=torch.float64)
    keep = torch.linspace(0.5, 0.95, PARTS, dtype=torch.float64)
    moved = [noise[:, 0]]
    for t in range(1, noise.shape[1]):
        moved.append(keep * moved[-1] + (1 - keep**2).sqrt() * noise[:, t])
    return torch.stack(moved, 1)


def look_at(values, now):
    draws = pvi.Draws.from_tensor(values[:, :now])
    return SimpleNamespace(
        num_draws_before=now - 1, num_draws=now, draws=lambda: draws, data=None, potential=None
    )


def looks(values, counts, until):
    """The number of draws at which the run ends."""
    return next((now for now in counts if until(look_at(values, now))), None)


COUNTS = [round(1.2**k) for k in range(9, 44)]


@pytest.mark.parametrize(("ess", "rhat"), [(150, 1.05), (20, 1.03), (200, 1.2)])
def test_looking_first_where_it_was_worst_ends_at_the_same_draw(values, ess, rhat):
    counts = [now for now in COUNTS if now <= values.shape[1]]
    remembering = pvi.running.converged(ess=ess, rhat=rhat)
    forgetful = [now for now in counts if pvi.running.converged(ess, rhat)(look_at(values, now))]
    assert looks(values, counts, remembering) == forgetful[0]


def test_a_run_far_from_its_target_is_looked_at_in_two_coordinates(values, monkeypatch):
    sizes = []
    seen = arviz.rhat

    def counted(values):
        sizes.append(values.shape[-1])
        return seen(values)

    monkeypatch.setattr(arviz, "rhat", counted)
    until = pvi.running.converged(ess=1e6)
    looks(values, COUNTS[:10], until)
    assert sizes[0] == PARTS and max(sizes[1:]) <= 2


def test_a_rule_used_in_two_runs_forgets_coordinates_that_the_second_lacks(values):
    until = pvi.running.converged(ess=1e6)
    looks(values, COUNTS[:10], until)
    fewer = pvi.running.converged(ess=50, rhat=1.1)
    fewer._worst[:] = until._worst
    assert looks(values[..., :1], COUNTS, fewer) == looks(
        values[..., :1], COUNTS, pvi.running.converged(ess=50, rhat=1.1)
    )


def test_it_looks_again_where_the_size_is_smallest_and_where_chains_disagree_most(values):
    """A chain ten times as wide as the others: R-hat sees it, the effective size does not."""
    mixed = values.clone()
    mixed[0, :, 3] *= 10
    until = pvi.running.converged(ess=1e6)
    until(look_at(mixed, COUNTS[-1]))
    assert until._worst == [3, PARTS - 1]


@pytest.mark.parametrize("of", ["parameters", "projections"])
def test_of_a_model_with_outputs_it_looks_at_what_is_asked_for(of):
    net = torch.nn.Linear(2, 1)
    potential = pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=10)
    data = torch.randn(10, 2), torch.randn(10, 1)
    rule = pvi.running.converged(50, rhat=1.5, of=of)
    draws = pvi.sample(potential, data, num_particles=4, monitor=rule, progress=False)
    assert f"of {of}," in draws.attrs["ended_by"]
