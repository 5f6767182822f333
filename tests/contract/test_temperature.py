"""The variance is linear in the temperature, for every sampler that has one, without Monte Carlo.

On a Gaussian at the origin, a step at the temperature T from ``sqrt(T) theta`` is ``sqrt(T)`` times
the step at 1 from theta with the same noise, if all else that has a scale is scaled with it. Then
so is the whole path, and every second moment is T times that at 1. The samplers' laws at 1 are in
``tests/stationarity``. ``sgnht`` is not of this kind, since its thermostat moves at a rate of its
own: its temperatures are in ``tests/samplers/test_sgnht.py``.
"""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import particlevi as pvi
from tests.registry import PROBLEMS, SAMPLERS


def parameters(name):
    return inspect.signature(SAMPLERS[name].factory).parameters


TEMPERED = [n for n in SAMPLERS if {"temperature", "temperatures"} & set(parameters(n))]
HOMOGENEOUS = [n for n in TEMPERED if n != "sgnht"]


def at_temperature(name, T, target):
    """The sampler with all its scales, and its step size."""
    case = SAMPLERS[name]
    options, step_size = dict(case.options), case.step_size
    if "temperatures" in options:
        options["temperatures"] = [T * each for each in options["temperatures"]]
    else:
        options["temperature"] = T
    if isinstance(options.get("gradient_noise"), float):
        options["gradient_noise"] *= T
    if case.factory is pvi.psgld:
        # G = 1 / (regularisation + sqrt(V)) is in units of 1 / gradient.
        options["regularisation"] = 0.1 * math.sqrt(T)
        step_size *= math.sqrt(T)
    if case.factory is pvi.psghmc:
        options["regularisation"] = 1e-3 * T
    if case.factory is pvi.repulsive_langevin:
        options["kernel"] = pvi.kernels.rbf(2.0 * T)
    return case.factory(target, **options), 10 * step_size


@pytest.mark.parametrize("T", [0.01, 0.3, 4.0])
@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_paths_scale_with_the_root_of_the_temperature(name, T):
    target = PROBLEMS["density"](torch.float64).potential
    start = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def path(temperature):
        sampler, step_size = at_temperature(name, temperature, target)
        return pvi.sample(
            sampler,
            step_size=step_size,
            initial=math.sqrt(temperature) * start,
            num_warmup=20,
            num_draws=60,
            store=pvi.storage.InMemory(warmup=True),
            progress=False,
        )

    hot, unit = path(T), path(1.0)
    assert unit.particles.std() > 0.05
    for a, b in [(hot.warmup, unit.warmup), (hot.particles, unit.particles)]:
        torch.testing.assert_close(a, math.sqrt(T) * b, rtol=1e-9, atol=1e-9)
    for stat in {"kinetic_temperature", "configurational_temperature"} & set(unit.stats):
        torch.testing.assert_close(hot.stats[stat], T * unit.stats[stat], rtol=1e-9, atol=1e-9)


def test_the_thermostat_is_the_only_exception():
    assert set(TEMPERED) - set(HOMOGENEOUS) == {"sgnht"}
