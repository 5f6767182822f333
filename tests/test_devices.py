"""Nothing mixes devices. Meta tensors have a device and no values: most mixed operations raise.

A state, a batch and noise are made on the CPU and moved. The sampler belongs to a potential on
meta, so that every tensor it brings along must be there too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import particlevi as pvi
from particlevi.data import Place, as_data
from particlevi.gradients import _partition
from particlevi.gradients.full import full_gradient
from particlevi.kernels import grouped
from particlevi.potentials.potential import ModelPotential
from particlevi.samplers import optimizer as optimizers
from particlevi.streams import ParticleStreams
from particlevi.tuning.stability import curvature_at
from particlevi.typing import Batch
from tests import registry
from tests.registry import ESTIMATORS, SAMPLERS, Problem

F64 = torch.float64
META = torch.device("meta")
# The early end of its training looks at values.
OPTIONS = {"nvgd": {"num_inner_steps": 2, "validation_fraction": 0.0}}


def moved(tree: Any, device: torch.device | str = META) -> Any:
    return pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, tree)


def on_meta(tree: Any) -> bool:
    return all(x.device == META for x in pytree.tree_leaves(tree) if isinstance(x, Tensor))


def density(device: torch.device | str) -> Problem:
    precision = torch.eye(3, dtype=F64, device=device)
    potential = pvi.from_log_density(
        lambda theta: -0.5 * theta @ (precision @ theta), 3, dtype=F64, device=device
    )
    return Problem("density", potential, None, torch.zeros(3, dtype=F64, device=device))


def module(device: torch.device | str) -> Problem:
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(device, F64)
    potential = pvi.from_module(net, pvi.Gaussian(scale=0.5), pvi.Normal(1.0), num_data=20)
    data = moved(registry.module(F64).data, device)
    return Problem("module", potential, data, torch.zeros(26, dtype=F64, device=device))


def bank(problem: Problem) -> pvi.gradients.history:
    entries = torch.randn(3, len(problem.center), dtype=F64)
    return pvi.gradients.history(capacity=5, thin=1, initial=entries)


@pytest.fixture
def numbered(monkeypatch):
    """Group numbers stay on the CPU, because their values are read; what is made of them moves."""
    device = ["cpu"]
    members, begin = grouped._members, _partition.Partition.__init__

    def start(self, groups):
        begin(self, groups)
        self.groups = self.groups.to(device[0])

    monkeypatch.setattr(
        ModelPotential, "groups", lambda self, rule, seed=0: self.layout.groups(rule, seed)
    )
    monkeypatch.setattr(
        grouped, "_members", lambda groups: tuple(x.to(device[0]) for x in members(groups))
    )
    monkeypatch.setattr(_partition.Partition, "__init__", start)
    monkeypatch.setattr(registry, "_history", bank)

    def at(where):
        device[0] = where

    return at


def test_group_numbers_are_where_the_particles_are():
    for make in (density, module):
        potential = make(META).potential
        assert potential.groups("tensor").device == META
        assert potential.groups(potential.layout.groups("parameter")).device == META


def test_kernels_see_group_numbers_where_the_particles_are():
    seen = []

    class Curious(pvi.kernels.rbf):
        def bind(self, space):
            seen.append(space.groups("tensor").device)
            return self

    pvi.svgd(density(META).potential, kernel=Curious())
    assert seen == [META]


CASES = [
    (sampler, estimator, problem)
    for sampler in SAMPLERS
    for estimator in (ESTIMATORS if sampler in ("sgld", "sghmc", "svgd") else ["minibatch"])
    for problem in ("density", "module")
    if not (problem == "density" and ESTIMATORS[estimator].needs_data)
    and not (problem == "module" and SAMPLERS[sampler].all_data)
]


@pytest.mark.parametrize(("sampler", "estimator", "problem"), CASES)
def test_a_step_stays_on_its_device(sampler, estimator, problem, numbered, monkeypatch):
    make, case = {"density": density, "module": module}[problem], SAMPLERS[sampler]
    options = OPTIONS.get(sampler, case.options)
    here = make("cpu")
    one = case.factory(ESTIMATORS[estimator].make(here), **options)
    streams = ParticleStreams(0)
    state = one.init(here.potential.init(4), streams)
    noise = one.draw_noise(state, streams)
    batch = registry.batch_of(here, None if one.interacting else 4)
    controls = {"step_size": torch.tensor(case.step_size, dtype=F64)} | {
        name: torch.tensor(float(schedule(0)), dtype=F64)
        for name, schedule in one.schedules.items()
    }
    numbered("meta")
    monkeypatch.setattr(optimizers, "check_rows", lambda make, like: None)
    if sampler == "psghmc":
        count = len(here.potential.layout.shapes)
        monkeypatch.setattr(torch, "bincount", lambda groups: groups.new_empty(count))
        monkeypatch.setattr(
            ModelPotential, "groups", lambda self, rule: self.layout.groups(rule).to(self.device)
        )
    there = make(META)
    other = case.factory(ESTIMATORS[estimator].make(there), **options)
    after = other.step(*moved((state, batch, noise, controls)))
    assert on_meta(after)


def test_a_step_of_mixed_devices_fails():
    """The test above can fail."""
    there = density(META)
    shift = torch.ones(3, dtype=F64)
    mixed = pvi.from_log_density(lambda theta: -(theta - shift).square().sum(), 3, dtype=F64)
    state = moved(pvi.sgld(mixed).init(torch.zeros(2, 3, dtype=F64), ParticleStreams(0)))
    noise = torch.empty(2, 3, dtype=F64, device=META)
    controls = {name: torch.tensor(0.1, device=META) for name in ("step_size", "temperature")}
    assert on_meta(pvi.sgld(there.potential).step(state, None, noise, controls))
    with pytest.raises((RuntimeError, ValueError), match="meta"):
        pvi.sgld(mixed).step(state, None, noise, controls)


def test_data_are_placed_once_and_stay():
    place = Place(META, F64, num_data=20)
    data = as_data(registry.module(torch.float32).data, place)
    assert on_meta([batch.data for batch in data.chunks(7)])
    assert on_meta(data.take(torch.tensor([3, 1])).data)
    for batching in ("replacement", "subset", "epoch"):
        source = data.batches(num_particles=3, batch_size=4, batching=batching)
        batch = source.next(ParticleStreams(0))
        assert on_meta(batch.data) and batch.data[0].dtype == F64
    loader = [registry.module(torch.float32).data]
    assert on_meta([batch.data for batch in as_data(loader, place).chunks(7)])


@pytest.mark.parametrize("make", [density, module])
def test_gradients_and_curvature_on_all_data(make):
    problem = make(META)
    points = torch.empty(2, problem.potential.num_params, dtype=F64, device=META)
    assert on_meta(full_gradient(problem.potential, points, problem.data, 7))
    batch = None if problem.data is None else Batch(problem.data)
    assert on_meta(curvature_at(problem.potential, points, batch, batch))


@pytest.mark.parametrize("kernel", ["rbf", "imq", "linear"])
def test_kernels_and_discrepancies(kernel):
    x, y = (torch.empty(n, 3, dtype=F64, device=META) for n in (5, 7))
    chosen = registry.KERNELS[kernel]
    assert on_meta((chosen(x, y), chosen.direction(x, torch.empty_like(x))))
