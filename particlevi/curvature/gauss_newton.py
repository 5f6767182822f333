"""The generalised Gauss-Newton matrix of a potential, by its products.

With outputs ``o(theta)`` and ``l = -log p(y | o)``, it is ``sum_k J_k' (d^2 l / do^2) J_k`` plus
the Hessian of minus the log prior: the Hessian without the curvature of the outputs. It has no
negative direction where ``l`` is convex in the outputs and the prior is log-concave.

Reference: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent",
2002; Martens, "New insights and perspectives on the natural gradient method", 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi._checks import check_is
from particlevi.curvature.hessian import Energy, hessian_product
from particlevi.curvature.second_order import second_order
from particlevi.data import DataLike, as_data, as_particles
from particlevi.potentials.likelihoods import log_prob
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import Batch

__all__ = ["gauss_newton_product"]


def gauss_newton_product(
    potential: ModelPotential,
    position: Tensor,
    vector: Tensor,
    data: DataLike,
    *,
    chunk_size: int = 1024,
) -> Tensor:
    """``G v [D]`` in float64 on all the data.

    A likelihood's own parameters, such as a learned scale, count as further outputs.

    Args:
        potential: from a module.
        position: ``theta [D]``.
        vector: ``v [D]``.
        data: as given to ``sample``.
        chunk_size: data evaluated at once.

    Raises:
        ValueError: a potential that is not from a module, data or shapes that do not fit.
    """
    check_is("potential", potential, ModelPotential, "a potential, as from_module makes")
    likelihood = potential.likelihood
    if likelihood is None:
        raise ValueError(
            "The Gauss-Newton matrix needs the outputs of a module: this potential was made from "
            "a density or a Pyro model. Take hessian_product."
        )
    for name, value in (("position", position), ("vector", vector)):
        if not isinstance(value, Tensor) or value.shape != (potential.num_params,):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} must be a tensor [{potential.num_params}], got {got}.")
    held = as_data(data, potential).held()
    (theta,) = as_particles(position.unsqueeze(0), potential, potential.num_params)
    direction = vector.detach().to(theta)
    prior = Energy(lambda: [lambda leaf: -potential.log_prior(leaf[None])[0]], theta)
    total = hessian_product(prior, direction)
    for batch in held.chunks(chunk_size):
        inputs, targets = Batch(batch.data[:-1]), batch.data[-1]

        def outputs(point: Tensor, inputs: Batch = inputs) -> Tensor:
            return potential.outputs(point[None], inputs)

        def loss(out: Tensor, point: Tensor, targets: Tensor = targets) -> Tensor:
            own = potential.likelihood_parameters(point[None])
            return -log_prob(likelihood, out, targets, own, False).sum()

        with second_order():
            value, push = torch.func.jvp(outputs, (theta,), (direction,))[:2]
            slopes = torch.func.grad(loss, argnums=(0, 1))
            inner, own = torch.func.jvp(slopes, (value, theta), (push, direction))[1]
            pull = torch.func.vjp(outputs, theta)[1]
            total += (pull(inner)[0] + own).detach()
    return total
