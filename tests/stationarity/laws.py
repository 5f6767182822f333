"""Exact laws of a sampler's step, found without Monte Carlo.

On a quadratic potential a step is affine in (position, memory, noise). Its matrices are read off
the sampler's own ``step`` at basis points, the discrete Lyapunov equation gives the stationary
covariance, and the closed forms below, which know nothing of the code, tell what it must be.
On a one-dimensional potential of any shape, the stationary density comes from the transition
matrix on a grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

import particlevi as pvi
from particlevi.potentials.potential import ModelPotential
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch, Controls, Gradient, Progress, Sampler, SamplerState

Array = np.ndarray[Any, Any]


def quadratic(hessian: Array, mean: Array | None = None) -> ModelPotential:
    """``U = (theta - mean)' H (theta - mean) / 2`` in double precision."""
    matrix = torch.as_tensor(hessian, dtype=torch.float64)
    center = torch.zeros(len(matrix), dtype=torch.float64)
    if mean is not None:
        center = torch.as_tensor(mean, dtype=torch.float64)

    def log_density(theta: Tensor) -> Tensor:
        away = theta - center
        return -0.5 * ((away @ matrix) * away).sum(-1)

    return pvi.from_log_density(log_density, len(matrix), vectorized=True, dtype=torch.float64)


def random_hessian(size: int, smallest: float, largest: float, seed: int) -> Array:
    """A correlated Hessian with eigenvalues spread from ``smallest`` to ``largest``."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    hessian: Array = (q * np.geomspace(smallest, largest, size)) @ q.T
    return 0.5 * (hessian + hessian.T)


class Rows(NamedTuple):
    """An empty tensor ``[P, 0]`` that tells how many particles there are."""

    like: Tensor


@dataclass(frozen=True, eq=False)
class NoisyGradient:
    """The exact gradient plus ``s`` times standard normal noise: a stochastic-gradient stand-in."""

    potential: ModelPotential
    s: float
    name: str = "noisy_gradient"
    settings: dict[str, Any] = field(default_factory=dict)
    gradients: int = 1
    conservative: bool = False
    interacting: bool = False

    def init(self, particles: Tensor, streams: ParticleStreams) -> Rows:
        return Rows(particles[:, :0].clone())

    def draw_noise(self, state: Rows, streams: ParticleStreams) -> Tensor:
        shape = (len(state.like), self.potential.num_params)
        return streams.normal(shape, self.potential.dtype)

    def __call__(
        self, state: Rows, particles: Tensor, batch: Batch | None, noise: Tensor
    ) -> Gradient:
        gradient, energy = pvi.gradients.minibatch(self.potential)(state, particles, batch, ())
        return Gradient(gradient + self.s * noise, energy)

    def record(self, state: Rows, particles: Tensor, progress: Progress) -> Rows:
        return state

    def nbytes(self, num_particles: int) -> int:
        return 0


def controls_of(sampler: Sampler, step_size: float) -> Controls:
    """What the loop hands to the first step."""
    values = {"step_size": step_size}
    values |= {name: schedule(0) for name, schedule in sampler.schedules.items()}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


class Affine(NamedTuple):
    """``z' = A z + B xi + b`` with ``z`` the position and then the named parts of the memory."""

    a: Array
    b: Array
    offset: Array


def affine_step(
    sampler: Sampler,
    step_size: float,
    varying: tuple[str, ...] = (),
    memory: Any = None,
    warmed_up: bool = False,
) -> Affine:
    """The matrices of one step, from the step itself at basis points, all in one call.

    Args:
        sampler: on a ``quadratic`` potential.
        step_size: h.
        varying: fields of the memory ``[P, D]`` that belong to the chain's state.
        memory: values of the other fields for one particle, if not those of ``init``.
        warmed_up: let the sampler record the end of the warm-up first.
    """
    size = sampler.potential.num_params
    streams = ParticleStreams(0)
    probe = sampler.init(torch.zeros(1, size, dtype=torch.float64), streams)
    parts, structure = tree_flatten(sampler.draw_noise(probe, streams))
    sizes = [size if part.shape == (1, size) else 0 for part in parts]
    state_size = size * (1 + len(varying))
    total = state_size + sum(sizes)
    rng = np.random.default_rng(1)
    inputs = np.concatenate([np.zeros((1, total)), np.eye(total), rng.normal(size=(3, total))])
    points = torch.from_numpy(inputs)
    rows = len(points)

    state = sampler.init(points[:, :size].contiguous(), streams)
    if memory is not None:
        expanded = [part.expand(rows, -1) if part.ndim == 2 else part for part in memory]
        state = state._replace(memory=type(memory)(*expanded))
    if warmed_up:
        state = sampler.record(state, Progress(10, 10, 20))
    moved = {name: points[:, size * (k + 1) : size * (k + 2)] for k, name in enumerate(varying)}
    state = SamplerState(state.position, state.memory._replace(**moved), state.estimator)
    columns = points[:, state_size:].split(sizes, dim=1)
    noise = tree_unflatten(
        [col if col.shape[1] else part for col, part in zip(columns, parts, strict=True)], structure
    )
    after, _ = sampler.step(state, None, noise, controls_of(sampler, step_size))
    outputs = torch.cat(
        [after.position, *(getattr(after.memory, name) for name in varying)], dim=1
    ).numpy()
    offset = outputs[0]
    matrix = (outputs[1 : total + 1] - offset).T
    predicted = inputs[total + 1 :] @ matrix.T + offset
    np.testing.assert_allclose(outputs[total + 1 :], predicted, rtol=1e-10, atol=1e-10)
    return Affine(matrix[:, :state_size], matrix[:, state_size:], offset)


class Law(NamedTuple):
    """Stationary mean and covariance."""

    mean: Array
    covariance: Array


def stationary(step: Affine) -> Law:
    """The stationary law of ``z' = A z + B xi + b``.

    Raises:
        AssertionError: the step is not stable.
    """
    radius = np.abs(np.linalg.eigvals(step.a)).max()
    assert radius < 1, f"the step is not stable: spectral radius {radius}"
    covariance = solve_discrete_lyapunov(step.a, step.b @ step.b.T, method="direct")
    mean = np.linalg.solve(np.eye(len(step.a)) - step.a, step.offset)
    return Law(mean, covariance)


def spectral_radius(step: Affine) -> float:
    """Below 1 if and only if the step is stable."""
    return float(np.abs(np.linalg.eigvals(step.a)).max())


def of_hessian(hessian: Array, variance: Any) -> Array:
    """``f(H)`` for a closed form ``f(l)`` of the curvature."""
    values, vectors = np.linalg.eigh(hessian)
    return np.asarray((vectors * variance(values)) @ vectors.T)


def law_on_grid(sampler: Sampler, step_size: float, grid: Array, memory: Any = None) -> Array:
    """Stationary density of a one-dimensional sampler whose step is ``m(x) + sd(x) xi``.

    ``m`` and ``sd`` are read off the sampler's own step; the density is the fixed point of the
    transition matrix on the grid (trapezoidal rule, which is spectrally accurate for smooth
    densities that vanish at the ends).
    """
    streams = ParticleStreams(0)
    points = torch.from_numpy(grid).unsqueeze(1)
    state = sampler.init(points, streams)
    if memory is not None:
        state = state._replace(memory=memory)
    noise = sampler.draw_noise(state, streams)
    controls = controls_of(sampler, step_size)

    def at(value: float) -> Array:
        (_, *rest), structure = tree_flatten(noise)
        own = tree_unflatten([torch.full_like(state.position, value), *rest], structure)
        after, _ = sampler.step(state, None, own, controls)
        return np.asarray(after.position.squeeze(1).numpy())

    mean, one, two = at(0.0), at(1.0), at(2.0)
    np.testing.assert_allclose(two - mean, 2 * (one - mean), atol=1e-12)
    sd = np.abs(one - mean)
    width = grid[1] - grid[0]
    assert sd.min() > 1.5 * width, "the grid is too coarse for this step size"
    away = (grid[:, None] - mean[None, :]) / sd[None, :]
    kernel = np.exp(-0.5 * away**2) / (np.sqrt(2 * np.pi) * sd[None, :]) * width
    kernel /= kernel.sum(0)
    values = np.linalg.solve(
        np.vstack([(kernel - np.eye(len(grid)))[:-1], np.ones(len(grid))]),
        np.append(np.zeros(len(grid) - 1), 1.0),
    )
    return np.asarray(values / width)


class Outcome(NamedTuple):
    """One way a step can end: with what probability, and where, from every node of a grid."""

    weight: Any
    point: Array


def invariant_weights(outcomes: list[Outcome], axes: list[Array]) -> Array:
    """The law left invariant by a step on one or two coordinates, as weights of grid nodes.

    Test functions are interpolated by local cubic polynomials, so the error is of fourth order in
    the grid's width.

    Args:
        outcomes: endpoints ``[n, k]`` from the n nodes of the grid, and their probabilities.
        axes: k uniform axes; nodes are in the order of ``np.meshgrid(*axes, indexing="ij")``.
    """
    shape = [len(axis) for axis in axes]
    size = int(np.prod(shape))
    matrix = scipy.sparse.csr_matrix((size, size))
    nodes = np.arange(size)
    for weight, point in outcomes:
        stencils = [_cubic(axis, point[:, k]) for k, axis in enumerate(axes)]
        columns, values = stencils[0]
        for more, factors in stencils[1:]:
            columns = (columns[:, :, None] * len(axes[1]) + more[:, None, :]).reshape(size, -1)
            values = (values[:, :, None] * factors[:, None, :]).reshape(size, -1)
        values = values * np.broadcast_to(weight, size)[:, None]
        rows = np.repeat(nodes, columns.shape[1])
        matrix += scipy.sparse.csr_matrix(
            (values.ravel(), (rows, columns.ravel())), shape=(size, size)
        )
    forward = matrix.T.tocsr()
    law = np.full(size, 1 / size)
    for _ in range(3000):
        new = forward @ law
        new /= new.sum()
        change = np.abs(new - law).sum()
        law = new
        if change < 1e-10:
            return law
    raise AssertionError("no invariant law was reached")


def _cubic(axis: Array, x: Array) -> tuple[Array, Array]:
    """Nodes ``[n, 4]`` around each x and the Lagrange weights of the values there."""
    width = axis[1] - axis[0]
    place = np.clip((x - axis[0]) / width, 0, len(axis) - 1)
    first = np.clip(np.floor(place).astype(int) - 1, 0, len(axis) - 4)
    t = place - first
    weights = [np.prod([(t - j) / (k - j) for j in range(4) if j != k], axis=0) for k in range(4)]
    return first[:, None] + np.arange(4), np.stack(weights, axis=1)


def gauss_hermite(num: int) -> tuple[Array, Array]:
    """Nodes and weights of expectations over a standard normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num)
    return nodes, weights / weights.sum()


def moment(grid: Array, density: Array, function: Any) -> float:
    """``E f(x)``."""
    return float((function(grid) * density).sum() / density.sum())


def order(errors: list[float]) -> list[float]:
    """Observed orders of convergence when the step size is halved each time."""
    return [float(np.log2(abs(a / b))) for a, b in pairwise(errors)]
