"""A step is its equation, and what it reports belongs to the point that its documentation says.

Stationary laws do not see the sign of a noise, nor where a statistic is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import particlevi as pvi
from particlevi.streams import ParticleStreams
from particlevi.typing import Progress

H, T, FRICTION, P, D = 0.1, 0.7, 1.3, 3, 2
C = math.exp(-FRICTION * H)
OPTIONS = {"friction": FRICTION, "temperature": T}


def energy(x: Tensor) -> Tensor:
    """No quadratic, and not symmetric about the origin."""
    return 0.25 * x.pow(4).sum(-1) + x[..., 0] * x[..., 1] + x.sum(-1)


def gradient(x: Tensor) -> Tensor:
    return x**3 + x.flip(-1) + 1


TARGET = pvi.from_log_density(lambda x: -energy(x), D, vectorized=True, dtype=torch.float64)


@dataclass(eq=False)
class Path:
    """Particles on their way by an equation: positions, what goes with them, where they start.

    ``seen`` is where the potential of the last step is reported.
    """

    x: Tensor
    p: Tensor | None
    memory: Any
    seen: Tensor | None = None
    friction: Tensor | None = None


def sgld(path, xi):
    path.seen = path.x
    path.x = path.x - H * gradient(path.x) + math.sqrt(2 * H * T) * xi


def leimkuhler_matthews(path, xi):
    path.seen = path.x
    before = path.memory.noise if path.p is None else path.p
    path.x = path.x - H * gradient(path.x) + math.sqrt(H * T / 2) * (before + xi)
    path.p = xi


def sgd(path, _):
    path.seen = path.x
    path.p = gradient(path.x) + (0 if path.p is None else 0.9 * path.p)
    path.x = path.x - H * path.p


def baoab(path, xi):
    if path.seen is not None:
        path.p = path.p - 0.5 * H * gradient(path.x)
    path.x = path.x + 0.5 * H * path.p
    path.p = C * path.p + math.sqrt(T * (1 - C**2)) * xi
    path.x = path.x + 0.5 * H * path.p
    path.p = path.p - 0.5 * H * gradient(path.x)
    path.seen = path.x


def obabo(path, xi):
    c = math.exp(-0.5 * FRICTION * H)
    begun = path.seen is not None
    path.p = c * path.p + math.sqrt(T * (1 - c**2)) * xi[0]
    path.p = path.p - (0.5 * H * gradient(path.x) if begun else 0)
    path.x = path.x + H * path.p
    path.p = path.p - 0.5 * H * gradient(path.x)
    path.p = c * path.p + math.sqrt(T * (1 - c**2)) * xi[1]
    path.seen = path.x


def baoa(path, xi):
    path.seen = path.x
    path.p = path.p - H * gradient(path.x)
    path.x = path.x + 0.5 * H * path.p
    path.p = C * path.p + math.sqrt(T * (1 - C**2)) * xi
    path.x = path.x + 0.5 * H * path.p


def euler(path, xi):
    path.seen = path.x
    a = FRICTION * H
    return (1 - a) * path.p - H * gradient(path.x) + math.sqrt(2 * a * T) * xi


def symplectic(path, xi):
    path.p = euler(path, xi)
    path.x = path.x + H * path.p


def explicit(path, xi):
    old, path.p = path.p, euler(path, xi)
    path.x = path.x + H * old


def sgnht(path, xi):
    path.seen = path.x
    friction = path.memory.thermostat if path.friction is None else path.friction
    p = path.p - H * gradient(path.x)
    x = path.x + 0.5 * H * p
    friction = friction + 0.5 * H * (p.square().mean(-1) - T)
    c = (-friction * H).exp()
    spread = (FRICTION * T * (1 - c**2) / friction).sqrt()
    path.p = c.unsqueeze(-1) * p + spread.unsqueeze(-1) * xi
    path.friction = friction + 0.5 * H * (path.p.square().mean(-1) - T)
    path.x = x + 0.5 * H * path.p


def psgld(path, xi):
    path.seen = path.x
    g = gradient(path.x)
    path.p = g.square() if path.p is None else 0.9 * path.p + 0.1 * g.square()
    scale = 1 / (0.2 + path.p.sqrt())
    path.x = path.x - H * scale * g + (2 * H * T * scale).sqrt() * xi


METHODS = {
    "sgld": (pvi.sgld(TARGET, T), sgld),
    "leimkuhler_matthews": (pvi.leimkuhler_matthews(TARGET, T), leimkuhler_matthews),
    "sgd": (pvi.sgd(TARGET, momentum=0.9), sgd),
    "baoab": (pvi.baoab(TARGET, **OPTIONS), baoab),
    "obabo": (pvi.obabo(TARGET, **OPTIONS), obabo),
    "sghmc": (pvi.sghmc(TARGET, **OPTIONS), baoa),
    "sghmc symplectic": (pvi.sghmc(TARGET, **OPTIONS, integrator="symplectic"), symplectic),
    "sghmc explicit": (pvi.sghmc(TARGET, **OPTIONS, integrator="explicit"), explicit),
    "sgnht": (pvi.sgnht(TARGET, diffusion=FRICTION, temperature=T), sgnht),
    "psgld": (pvi.psgld(TARGET, T, decay=0.9, regularisation=0.2), psgld),
}


@pytest.fixture(params=METHODS)
def steps(request):
    """Three steps of a sampler and of its equation: ``(position, info, x, seen, p)`` after each."""
    sampler, equation = METHODS[request.param]
    streams = ParticleStreams(0)
    start = torch.linspace(-1, 1.5, P * D, dtype=torch.float64).view(P, D)
    state = sampler.init(start.clone(), streams)
    path, found = Path(start, getattr(state.memory, "momentum", None), state.memory), []
    controls = {"step_size": H, "temperature": T}
    controls = {name: torch.tensor(value, dtype=torch.float64) for name, value in controls.items()}
    for k in range(3):
        noise = sampler.draw_noise(state, streams)
        state, info = sampler.step(state, None, noise, controls)
        state = sampler.record(state, Progress(k + 1, 5, 10))
        equation(path, noise[0])
        found.append((state.position, info, path.x, path.seen, path.p))
    return found


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_positions_are_those_of_the_equation(steps):
    for position, _, x, _, _ in steps:
        close(position, x)


def test_the_potential_is_that_of_the_point_where_the_gradient_was_taken(steps):
    for _, info, _, seen, _ in steps:
        close(info.potential, energy(seen))


def test_the_configurational_temperature_is_that_of_the_same_point(steps):
    for _, info, _, seen, _ in steps:
        close(info.configurational_temperature, (seen * gradient(seen)).mean(-1))


def test_the_kinetic_temperature_is_that_of_the_momenta_after_the_step(steps):
    for _, info, _, _, p in steps:
        if hasattr(info, "kinetic_temperature"):
            close(info.kinetic_temperature, p.square().mean(-1))
