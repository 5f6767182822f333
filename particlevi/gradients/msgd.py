"""Multiplicative SGD: noise of a chosen class, by weights on the losses of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_positive_int
from particlevi.gradients._evaluate import joined, value_and_grad
from particlevi.potentials.chunks import chunks
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential
from particlevi.typing import JSON, Batch, Gradient, Progress, Streams

__all__ = ["NoiseClass", "msgd"]

NoiseClass = Literal[
    "sgd",
    "fisher",
    "cov",
    "bernoulli",
    "sparse_fisher",
    "sparse_cov",
    "minibatch_fisher",
    "minibatch_cov",
    "none",
]
"""Which weights the losses are given: see ``msgd``."""


class State(NamedTuple):
    """How many particles there are, in an empty tensor ``[P, 0]``."""

    rows: Tensor


@dataclass(frozen=True, eq=False)
class msgd:
    """``g(theta) = -grad log p(theta) - (N/n) sum_k m_k grad log p(x_k | theta)``, random ``m``.

    The n data of a step get weights ``m [n]`` of mean one, drawn anew for every particle and step.
    Their law chooses the covariance of the noise. With ``g_k`` the gradient of datum k, ``C`` the
    covariance of the ``g_k`` over the data (divisor N) and ``F`` their second moment, the gradient
    of the mean loss, ``g / N``, has the covariance of the last column:

    ==================== ========================================== ================================
    noise                weights                                    covariance
    ==================== ========================================== ================================
    ``sgd``              N/b on a random subset of b, else 0        ``(C/b) (N - b)/(N - 1)``
    ``fisher``           ``1 + s e_k``, ``s^2 = N/b``               ``F/b``
    ``cov``              ``1 + s (e_k - mean e)``, ``s^2 = N/b``    ``C/b``
    ``bernoulli``        N/b with probability b/N, else 0           ``(F/b) (1 - b/N)``
    ``sparse_fisher``    ``1 + s e_k`` on a random subset of r,     ``F/b``
                         else 1; ``s^2 = N^2/(b r)``
    ``sparse_cov``       the same, e centred in the subset          ``(C/b) (r - 1)/r N/(N - 1)``
    ``minibatch_fisher`` ``1 + s e_k`` on a minibatch of n,         ``Cov + (s^2/n) F``
                         ``s^2 = n/b - 1``
    ``minibatch_cov``    the same, e centred in ghost batches of G  ``Cov + (s^2/n) (G - 1)/G c C``
    ``none``             1                                          0
    ==================== ========================================== ================================

    ``e_k`` are independent standard normal. In the minibatch forms ``Cov`` is the covariance of the
    minibatch's own mean gradient (``C/n`` for independent data), and ``c`` is 1 for independent
    data and ``N/(N - 1)`` for subsets. All other forms weight all the data, so a step costs a
    gradient on all of them: leave out ``batch_size`` of ``sample``. ``F`` is not centred: far from
    a minimum its noise rescales the mean gradient too, by a factor of standard deviation
    ``1/sqrt(b)``.

    The potential that is reported is that of weights 1. Weights may be negative, so that a
    weighted loss would say nothing.

    Source: Wu, Hu, Xiong, Huan, Braverman and Zhu, "On the noisy gradient descent that generalizes
    as SGD", 2020.

    Args:
        potential: a potential with data, and without dropout.
        noise: the class of noise.
        batch_size: b, the batch size whose noise is wanted; without meaning for ``"none"``.
        subset_size: r, of the sparse forms; b if absent, and at least 2.
        ghost_size: G, of ``minibatch_cov``; the whole minibatch if absent. It must divide it.

    Raises:
        ValueError: an unknown noise, a density without data, a random potential, ``batch_size``
            missing or above N, sizes of another form, a subset below 2 for ``sparse_cov``; at the
            first step a batch that the form cannot weight.

    Examples:
        >>> import particlevi as pvi
        >>> x = torch.randn(20, generator=torch.Generator().manual_seed(0))
        >>> model = pvi.from_log_likelihood(
        ...     lambda theta: -0.5 * theta.square().sum(),
        ...     lambda theta, x: -0.5 * (x - theta[0]) ** 2,
        ...     num_params=1,
        ...     num_data=20,
        ... )
        >>> draws = pvi.sample(
        ...     pvi.sgd(pvi.msgd(model, "fisher", batch_size=5)), x, step_size=0.01,
        ...     num_particles=2, num_draws=10, progress=False,
        ... )
    """

    potential: ModelPotential
    noise: NoiseClass
    batch_size: int | None = None
    subset_size: int | None = None
    ghost_size: int | None = None
    name: str = field(default="msgd", init=False)
    gradients: int = field(default=1, init=False)
    interacting: bool = field(default=False, init=False)
    records: bool = field(default=False, init=False)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Its arguments, for the record."""
        return {
            "noise": self.noise,
            "batch_size": self.batch_size,
            "subset_size": self.subset_size,
            "ghost_size": self.ghost_size,
        }

    @property
    def conservative(self) -> bool:
        """Only without noise: else the potential has weights 1 and the gradient has not."""
        return self.noise == "none"

    @property
    def num_data(self) -> int:
        """N."""
        assert self.potential.num_data is not None
        return self.potential.num_data

    def __post_init__(self) -> None:
        check_choice("noise", self.noise, get_args(NoiseClass))
        object.__setattr__(self, "potential", as_potential(self.potential))
        _check_potential(self.potential)
        if self.batch_size is None and self.noise != "none":
            raise ValueError(
                f"noise={self.noise!r} needs batch_size, the batch size whose noise is wanted."
            )
        for name, owners in (("subset_size", "sparse_"), ("ghost_size", "minibatch_cov")):
            if getattr(self, name) is not None and not self.noise.startswith(owners):
                raise ValueError(f"{name} has no meaning for noise={self.noise!r}: leave it out.")
        if self.noise.startswith("sparse_") and self.subset_size is None:
            assert self.batch_size is not None
            object.__setattr__(self, "subset_size", max(2, int(self.batch_size)))
        least = {"subset_size": 2 if self.noise == "sparse_cov" else 1, "ghost_size": 2}
        for name in ("batch_size", "subset_size", "ghost_size"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name), least.get(name, 1))
                object.__setattr__(self, name, int(getattr(self, name)))
                if getattr(self, name) > self.num_data:
                    raise ValueError(
                        f"{name} must be at most num_data={self.num_data}, "
                        f"got {getattr(self, name)}."
                    )

    def init(self, particles: Tensor, streams: Streams) -> State:
        """Nothing to remember."""
        return State(particles[:, :0].clone())

    def draw_noise(self, state: State, streams: Streams) -> Tensor:
        """Weights ``[P, N]``; of the minibatch forms the normal numbers that they are made of."""
        shape, dtype = (len(state.rows), self.num_data), state.rows.dtype
        if self.noise == "none":
            return state.rows
        n, b = self.num_data, self.batch_size
        assert b is not None
        if self.noise == "sgd":
            return _subset(streams.uniform(shape, torch.float64), b).to(dtype) * (n / b)
        if self.noise == "bernoulli":
            return (streams.uniform(shape, torch.float64) < b / n).to(dtype) * (n / b)
        normal = streams.normal(shape, dtype)
        if self.noise == "fisher":
            return 1 + math.sqrt(n / b) * normal
        if self.noise == "cov":
            return 1 + math.sqrt(n / b) * (normal - normal.mean(1, keepdim=True))
        if self.noise.startswith("minibatch_"):
            return normal
        r = self.subset_size
        assert r is not None
        chosen = _subset(streams.uniform(shape, torch.float64), r).to(dtype)
        if self.noise == "sparse_cov":
            normal = normal - (chosen * normal).sum(1, keepdim=True) / r
        return 1 + n / math.sqrt(b * r) * chosen * normal

    def weights(self, noise: Tensor, size: int) -> Tensor:
        """Weights ``[P, n]`` of the n data of a step, from what ``draw_noise`` gave."""
        if self.noise == "none":
            return noise.new_ones(len(noise), size)
        if not self.noise.startswith("minibatch_"):
            return noise
        assert self.batch_size is not None
        normal = noise[:, :size]
        if self.noise == "minibatch_cov":
            ghosts = normal.reshape(len(normal), -1, self.ghost_size or size)
            normal = (ghosts - ghosts.mean(2, keepdim=True)).flatten(1)
        return 1 + math.sqrt(size / self.batch_size - 1) * normal

    def _check_size(self, size: int) -> None:
        if not self.noise.startswith("minibatch_"):
            if size != self.num_data:
                raise ValueError(
                    f"noise={self.noise!r} weights all num_data={self.num_data} data, got a batch "
                    f"of {size}: leave out batch_size of sample, or take a minibatch form."
                )
            return
        assert self.batch_size is not None
        if size < self.batch_size:
            raise ValueError(
                f"noise={self.noise!r} adds noise to a minibatch to give that of a smaller one: "
                f"its batch_size={self.batch_size} must be at most the {size} data of a step."
            )
        if self.ghost_size is not None and size % self.ghost_size:
            raise ValueError(
                f"The {size} data of a step do not split into ghost batches of "
                f"ghost_size={self.ghost_size}: take a divisor of {size}."
            )

    def __call__(
        self, state: State, particles: Tensor, batch: Batch | None, noise: Tensor
    ) -> Gradient:
        """The gradient at ``particles [P, D]``."""
        parts, start = [], 0
        for points, own in chunks(particles, batch, self.potential.chunk_size):
            rows = noise[start : start + len(points)]
            start += len(points)

            def energy(points: Tensor, own: Batch | None, rows: Tensor = rows) -> Tensor:
                return self._energy(points, own, rows)

            parts.append(value_and_grad(energy, points, own))
        return joined(parts)

    def _energy(self, particles: Tensor, batch: Batch | None, noise: Tensor) -> Tensor:
        """The energy ``[P]`` with weights 1, whose gradient is that of the weighted one."""
        values = self.potential.log_likelihood(particles, batch)
        self._check_size(values.shape[1])
        weights = self.weights(noise, values.shape[1])
        scale = self.potential.scale(values.shape[1], batch)
        weighted = -scale * (weights * values).sum(1)
        plain = -scale * values.detach().sum(1)
        prior = self.potential.log_prior(particles)
        return plain - prior + (weighted - weighted.detach())

    def record(self, state: State, particles: Tensor, progress: Progress) -> State:
        """Nothing to remember."""
        return state

    def nbytes(self, num_particles: int) -> int:
        """Memory of the weights of one step."""
        return num_particles * self.num_data * self.potential.dtype.itemsize


def _check_potential(potential: ModelPotential) -> None:
    if potential.log_likelihood_fn is None or potential.num_data is None:
        raise ValueError("msgd needs a potential with data, got one without.")
    if potential.random:
        raise ValueError(
            "msgd needs the same loss at every evaluation, got a potential that is drawn anew "
            "(dropout): take the module in eval mode."
        )


def _subset(uniform: Tensor, size: int) -> Tensor:
    """A random choice of ``size`` columns per row, ``[P, N]`` booleans."""
    chosen = torch.zeros_like(uniform, dtype=torch.bool)
    return chosen.scatter(1, uniform.argsort(1)[:, :size], True)
