"""What every potential must do."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_has, check_is
from particlevi.data import DataLike
from particlevi.data.reading import as_data
from particlevi.gradients.minibatch import as_estimator
from particlevi.streams import ParticleStreams
from particlevi.testing._expect import equal, expect, slopes, unchanged
from particlevi.typing import Batch, Potential

__all__ = ["check_potential"]


def check_potential(potential: Potential, data: DataLike = None, *, particles: Tensor) -> None:
    """Run the contract on a potential: shapes, gradients, minibatches, one particle alone.

    Args:
        potential: what is sampled.
        data: all its data, as they are given to ``sample``; None for a density.
        particles: where it is tried, ``[P, D]``; in double precision gradients are checked
            against differences.

    Raises:
        AssertionError: what is broken.

    Examples:
        >>> import particlevi as pvi
        >>> normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), num_params=2)
        >>> check_potential(normal, particles=torch.randn(5, 2))
    """
    check_has("potential", potential, ["num_params", "num_data", "__call__"], "a potential")
    check_is("particles", particles, torch.Tensor, "a tensor [P, D]")
    expect(
        particles.ndim == 2 and particles.shape[1] == potential.num_params,
        f"particles {list(particles.shape)} are not [P, {potential.num_params}]",
    )
    estimator = as_estimator(cast(Any, potential))
    expect((data is None) == (potential.num_data is None), "num_data is None for a density only")
    batch = None if data is None else as_data(data, estimator.potential).whole()
    expect(bool(torch.isfinite(particles).all()), "particles are not finite")
    energy = unchanged(lambda: potential(particles, batch), (particles, batch), "the potential")
    expect(
        energy.shape == (len(particles),),
        f"energies {list(energy.shape)} are not [P] for P = {len(particles)} particles",
    )
    expect(energy.dtype == particles.dtype, f"energies are {energy.dtype}, not {particles.dtype}")
    expect(bool(torch.isfinite(energy).all()), "an energy is not finite at the particles given")
    exact = particles.dtype == torch.float64
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if exact else {"rtol": 1e-4, "atol": 1e-4}
    alone = torch.cat([potential(one, batch) for one in particles.split(1)])
    equal(energy, alone, "a particle's energy depends on the others", **tolerance)
    streams = ParticleStreams(0)
    state = estimator.init(particles, streams)
    noise = estimator.draw_noise(state, streams)
    gradient = estimator(state, particles, batch, noise).gradient
    expect(bool(torch.isfinite(gradient).all()), "a gradient is not finite at the particles given")
    if exact:
        differences = slopes(lambda at: potential(at, batch), particles)
        scale = float(differences.abs().max())
        equal(gradient, differences, "the gradient is wrong", rtol=1e-5, atol=1e-5 * scale + 1e-7)
    if batch is not None:
        _check_minibatches(potential, particles, batch, energy, tolerance)


def _check_minibatches(
    potential: Potential,
    particles: Tensor,
    batch: Batch,
    energy: Tensor,
    tolerance: dict[str, float],
) -> None:
    size = len(pytree.tree_leaves(batch.data)[0])
    expect(size == potential.num_data, f"num_data is {potential.num_data}, the data are {size}")
    num = len(particles)

    def rows(index: Tensor, per_particle: bool) -> Batch:
        data = pytree.tree_map(lambda leaf: leaf[index.to(leaf.device)], batch.data)
        return Batch(data, per_particle)

    singles = [potential(particles, rows(torch.tensor([n]), False)) for n in range(size)]
    equal(
        torch.stack(singles).mean(0),
        energy,
        "the energy on a minibatch is not unbiased (likelihoods times N / B, the prior once)",
        **tolerance,
    )
    own = torch.arange(num).remainder(size).view(num, 1)
    together = potential(particles, rows(own, True))
    each = torch.stack([singles[n][i] for i, n in enumerate(own[:, 0].tolist())])
    equal(together, each, "minibatches of their own are mixed up between particles", **tolerance)
