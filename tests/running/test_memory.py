"""The memory that is planned before a run is what its tensors take."""

from __future__ import annotations

import itertools
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import particlevi as pvi
from particlevi.running import plan

N = 1000


class Peak(TorchDispatchMode):
    """Counts the bytes of storages made inside, and the most that lived at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.most = 0, 0
        self.known: set[int] = set()

    def _gone(self, key: int, size: int) -> None:
        self.live -= size
        self.known.discard(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.most = max(self.most, self.live)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out


def net(*widths: int) -> Any:
    """A regression net and data for it."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    potential = pvi.from_module(
        nn.Sequential(*layers[:-1]), pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=N
    )
    return potential, (torch.randn(N, widths[0]), torch.randn(N, 1))


def density(size: int) -> Any:
    """A Gaussian without data."""
    return pvi.from_log_density(lambda t: -0.5 * t.square().sum(), size), None


CASES = {
    "a minibatch for each": (pvi.sgld, net, (100, 10, 1), {"num_particles": 50, "batch_size": 300}),
    "a wide net": (pvi.hmc, net, (20, 400, 1), {"num_particles": 4}),
    "a witness": (pvi.nvgd, net, (13, 50, 1), {"num_particles": 100, "batch_size": 32}),
    "a kernel": (pvi.svgd, density, (10,), {"num_particles": 1000}),
    "a kernel in blocks": (pvi.svgd, density, (10,), {"num_particles": 3000}),
    "a kernel with a factor": (pvi.repulsive_langevin, density, (10,), {"num_particles": 400}),
    "a long path": (
        partial(pvi.obabo, metropolis_every=20),
        density,
        (50_000,),
        {"num_particles": 3},
    ),
    "many parameters": (pvi.sghmc, density, (300_000,), {"num_particles": 3}),
    "a small net": (pvi.sgld, net, (13, 50, 1), {"num_particles": 20, "batch_size": 32}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_is_the_peak(name, monkeypatch):
    factory, make, widths, options = CASES[name]
    planned: dict[str, int] = {}
    monkeypatch.setattr(plan, "check_memory", planned.update)
    potential, data = make(*widths)
    sampler = factory(potential)
    with Peak() as peak:
        step_size = 1e-3 if data is None else 1e-6
        pvi.sample(sampler, data, step_size=step_size, num_draws=2, progress=False, **options)
    assert peak.most / 1.5 <= sum(planned.values()) <= 1.5 * peak.most


def test_chunks_are_offered_and_help(monkeypatch):
    potential, data = net(20, 400, 1)
    planned: dict[str, int] = {}
    monkeypatch.setattr(plan, "check_memory", planned.update)
    run = {"step_size": 1e-7, "num_draws": 1, "num_particles": 8, "progress": False}
    pvi.sample(pvi.hmc(potential, num_leapfrog=1), data, **run)
    whole = planned["one evaluation"]
    module = nn.Sequential(nn.Linear(20, 400), nn.Tanh(), nn.Linear(400, 1))
    chunked = pvi.from_module(module, pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=N, chunk_size=2)
    pvi.sample(pvi.hmc(chunked, num_leapfrog=1), data, **run)
    assert planned["one evaluation"] == whole // 4
    monkeypatch.undo()
    monkeypatch.setattr("particlevi.storage.recording.available_memory", lambda: whole)
    with pytest.raises(MemoryError, match=r"one evaluation .*chunk_size"):
        pvi.sample(pvi.hmc(potential, num_leapfrog=1), data, **run)
