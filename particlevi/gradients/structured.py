"""Self-averaged energies: groups of parameters see each other through earlier iterates only."""

from __future__ import annotations

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_choice, check_positive, check_positive_int, is_number
from particlevi.gradients._evaluate import joined, value_and_grad, values_and_grads
from particlevi.gradients._partition import Partition
from particlevi.gradients.history import Bank, history
from particlevi.potentials.chunks import chunks
from particlevi.potentials.layout import Groups
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential
from particlevi.typing import JSON, Batch, Gradient, Progress, Streams

__all__ = ["structured", "structured_dropout"]


class _SelfAveraged(ABC):
    """The history, and the evaluation of many composites at once."""

    name: str
    settings: Mapping[str, JSON]
    num_composites: int
    times_kept: float
    """How many of the composites of a step keep a given group, on average."""

    def __init__(self, potential: ModelPotential, groups: Groups, memory: history | None):
        if memory is not None and not isinstance(memory, history):
            raise TypeError(
                "history must be pvi.gradients.history(capacity=..., thin=...), "
                f"got {type(memory).__name__}."
            )
        potential = as_potential(potential)
        self.potential: Any = potential
        self.history: history = history() if memory is None else memory
        start = self.history.initial
        if start is not None and start.shape[1] != potential.num_params:
            raise ValueError(
                f"The history's initial entries must be [S, {potential.num_params}], "
                f"got {list(start.shape)}."
            )
        self.partition: Partition = Partition(potential.groups(groups))
        self.prior_apart: bool = (
            potential.factorised_prior and potential.log_likelihood_fn is not None
        )

    def __repr__(self) -> str:
        return (
            f"{self.name}({self.num_groups} groups, {self.num_composites} composites a step, "
            f"{self.nbytes(1) / 1e6:.3g} MB for one chain)"
        )

    @property
    def groups(self) -> Tensor:
        """Group numbers ``[D]``."""
        return self.partition.groups

    @property
    def pooled(self) -> bool:
        """Whether the history is that of all chains together."""
        return self.history.pooled

    @property
    def num_groups(self) -> int:
        """M."""
        return self.partition.num_groups

    @property
    def gradients(self) -> int:
        """Gradients of the potential on a batch that one estimate takes."""
        return 1 if self._plain() else self.num_composites

    @property
    def conservative(self) -> bool:
        """Only where nothing is replaced: else the potential is a mean, the gradient a sum."""
        return self._plain()

    @property
    def mask_noise(self) -> float:
        """The masks are gradient noise of about this times ``l T``, l the curvature."""
        return 0.0 if self._plain() else self._mask_noise()

    def _mask_noise(self) -> float:
        """As ``mask_noise``, where masks replace something."""
        return 0.0

    @property
    def interacting(self) -> bool:
        """Whether chains draw from each other's past."""
        return self.history.pooled and not self.history.frozen and not self._plain()

    def _common_settings(self, groups: Groups) -> dict[str, JSON]:
        rule: JSON
        if isinstance(groups, Tensor):
            rule = "sha256:" + hashlib.sha256(groups.cpu().numpy().tobytes()).hexdigest()[:16]
        else:
            rule = groups if isinstance(groups, str) else list(groups)
        return {
            "groups": rule,
            "num_groups": self.num_groups,
            "history": dict(self.history.settings),
        }

    def init(self, particles: Tensor, streams: Streams) -> Bank:
        """The bank."""
        return self.history.init(particles)

    def draw_noise(self, state: Bank, streams: Streams) -> tuple[Tensor, Tensor]:
        """Masks of S composites, and the entries ``[P, S, M]`` that they take their values from.

        Masks are ``[P, S, M]``, or ``[1, S, M]`` without randomness. S is 0 for a plain step:
        compiled code tells the two by their shapes.
        """
        num_particles = int(state.num_particles)
        if self._plain() or int(state.seen) == 0:
            nothing = torch.empty(num_particles, 0, 1, device=self.potential.device)
            return nothing, nothing
        masks = self._masks(num_particles, streams)
        return masks, self.history.draw(state, self.num_composites, self.num_groups, streams)

    def __call__(
        self, state: Bank, particles: Tensor, batch: Batch | None, noise: tuple[Tensor, Tensor]
    ) -> Gradient:
        """The gradient at ``particles [P, D]``."""
        masks, entries = noise
        if entries.shape[1] == 0:
            return value_and_grad(self.potential, particles, batch, self.potential.chunk_size)
        mask = self.partition.spread(masks.flatten(0, 1)).view(*masks.shape[:2], -1)
        composites = torch.lerp(self._values(state, entries), particles.unsqueeze(1), mask)
        found, prior = self._evaluate(particles, composites, batch)
        gradient = (mask * found.gradient).sum(1) / self.times_kept
        potential = found.potential.mean(1)
        if prior is None:
            return Gradient(gradient, potential)
        return Gradient(prior.gradient + gradient, prior.potential + potential)

    def record(self, state: Bank, particles: Tensor, progress: Progress) -> Bank:
        """The bank with one more entry, when one is due."""
        return self.history.record(state, particles, progress)

    def nbytes(self, num_particles: int) -> int:
        """Memory of the bank and, at most, of the masks, values and composites of one step."""
        size, dtype = self.potential.num_params, self.potential.dtype
        drawn = 0 if self._plain() else 3 * self.num_composites * num_particles * size
        drawn *= dtype.itemsize
        return self.history.nbytes(num_particles, size, dtype) + int(drawn)

    @abstractmethod
    def _plain(self) -> bool:
        """Whether nothing is ever replaced."""

    @abstractmethod
    def _masks(self, num_particles: int, streams: Streams) -> Tensor:
        """Masks of S composites."""

    def _values(self, state: Bank, entries: Tensor) -> Tensor:
        """Historical values ``[P, S, D]`` from entries ``[P, S, M]``."""
        rows = self.history.rows(state, entries)
        values = self.partition.gather(state.values.flatten(0, 1), rows.flatten(0, 1))
        found: Tensor = values.view(*rows.shape[:2], -1)
        return found.to(self.potential.device, self.potential.dtype)

    def _likelihood_energy(self, particles: Tensor, batch: Batch | None) -> Tensor:
        values: Tensor = self.potential.log_likelihood(particles, batch)
        scale = self.potential.scale(values.shape[1], batch)
        energy: Tensor = -scale * values.sum(1)
        return energy

    def _prior_energy(self, particles: Tensor, batch: Batch | None) -> Tensor:
        values: Tensor = self.potential.log_prior(particles)
        return -values

    def _evaluate(
        self, particles: Tensor, composites: Tensor, batch: Batch | None
    ) -> tuple[Gradient, Gradient | None]:
        """Gradients ``[P, S, D]`` and energies ``[P, S]`` at composites ``[P, S, D]``.

        The second is that of the prior at the particles, where it is taken apart.
        """
        energy = self._likelihood_energy if self.prior_apart else self.potential
        pending: list[Any] = [(self._prior_energy, particles, None)] if self.prior_apart else []
        prior: Gradient | None = None
        parts = []
        for piece, part in self._pieces(composites, batch):
            found = values_and_grads([(energy, piece, part), *pending])
            parts.append(found[0])
            prior = found[1] if pending else prior
            pending = []
        gradient, values = joined(parts)
        return Gradient(gradient.view(composites.shape), values.view(composites.shape[:2])), prior

    def _pieces(
        self, composites: Tensor, batch: Batch | None
    ) -> Iterator[tuple[Tensor, Batch | None]]:
        """As many composites at once as the potential's chunk size allows."""
        limit, times = self.potential.chunk_size, composites.shape[1]
        block = None if limit is None else max(1, limit // times)
        for part, own in chunks(composites, batch, block):
            yield from chunks(part.flatten(0, 1), _repeated(own, times), limit)


def _repeated(batch: Batch | None, times: int) -> Batch | None:
    """The batch of P particles for the ``times`` composites of each."""
    if batch is None or not batch.per_particle or times == 1:
        return batch

    def repeat(leaf: Tensor) -> Tensor:
        return leaf.unsqueeze(1).expand(-1, times, *leaf.shape[1:]).flatten(0, 1)

    return batch._replace(data=pytree.tree_map(repeat, batch.data))


class structured(_SelfAveraged):
    """The gradient of the self-averaged energy ``U_S(theta) = sum_m E_q U(theta_m, q_not_m)``.

    The parameters fall into M groups. Group m sees its own current value and, in place of all
    other groups, values from earlier iterates of the chain, each group's drawn independently; q is
    the law of those values, the product of the groups' histories::

        g_m(theta) = (1/K) sum_k grad_m U(theta_m, values_{k, not m})

    A chain that has settled samples the best factorised approximation of the posterior,
    ``q_m(theta_m) ~ exp(-E_{q_not_m} U / T)``, the minimiser of KL(q || p) among laws in which
    groups are independent (structured mean-field variational inference, with no form assumed
    within a group). On a Gaussian with precision ``Lambda`` that is a Gaussian with precision
    ``blockdiag(Lambda)``: means are right, correlations across groups are gone, and variances are
    narrower than the posterior's. The noise of the draws from q adds to that of the step: under
    ``sgld``, for a group of one parameter, the variance is
    ``(2 T + h s^2) / (l (2 - h l))`` with ``s^2 = Lambda_{m, not m} Cov(q) Lambda_{not m, m} / K``.

    A step costs ``K M`` gradients, evaluated as one batch of ``K M P`` particles. The potential
    that is reported is the mean over the composites. Where the prior is known to factorise (that
    of a module), its gradient is taken once, at theta; otherwise it goes through the composites
    like the likelihood. With one group, and before the history has its first entry, this is the
    plain gradient, bit for bit.

    Source: Alexos, Boyd and Mandt, "Structured stochastic gradient MCMC", 2022.

    Args:
        potential: what is sampled.
        groups: ``"tensor"``, ``"layer"``, ``"neuron"``, ``"parameter"``, ``("random", M)``, or
            group numbers ``LongTensor [D]``.
        num_history: K, independent draws from the history per group and step.
        history: how earlier iterates are remembered; ``pvi.gradients.history()`` if absent.

    Raises:
        ValueError: groups of the wrong length or with gaps, ``num_history`` below 1, a history
            whose entries have another length.

    >>> import particlevi as pvi
    >>> precision = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> normal = pvi.from_log_density(lambda theta: -0.5 * theta @ precision @ theta, num_params=2)
    >>> sampler = pvi.sgld(
    ...     pvi.structured(normal, groups="parameter", history=pvi.gradients.history(pooled=True))
    ... )
    >>> draws = pvi.sample(
    ...     sampler, step_size=0.05, num_particles=500, num_warmup=50, num_draws=25, thin=10,
    ...     progress=False,
    ... )
    >>> abs(torch.corrcoef(draws.flat().T)[0, 1].item()) < 0.02  # -0.5 in the density itself
    True
    """

    name = "structured"

    def __init__(
        self,
        potential: ModelPotential,
        groups: Groups,
        num_history: int = 1,
        history: history | None = None,
    ):
        check_positive_int("num_history", num_history)
        super().__init__(potential, groups, history)
        self.num_history = num_history
        self.num_composites: int = num_history * self.num_groups
        self.times_kept: float = num_history
        self.settings: Mapping[str, JSON] = {
            "num_history": num_history,
            **self._common_settings(groups),
        }

    def _plain(self) -> bool:
        return self.num_groups == 1

    @functools.cached_property
    def one_hot(self) -> Tensor:
        """``[1, S, M]``: composite m keeps group m, K times over."""
        like = {"dtype": self.potential.dtype, "device": self.potential.device}
        return torch.eye(self.num_groups, **like).repeat(self.num_history, 1).unsqueeze(0)

    def _masks(self, num_particles: int, streams: Streams) -> Tensor:
        return self.one_hot


class structured_dropout(_SelfAveraged):
    """The gradient of ``U_Sd(theta) = (1 / E r) E_{r, q} U(r theta + (1 - r) q)``.

    Masks r have one entry per group. In each of L composites per step a group keeps its current
    value with probability ``keep`` and takes one from an earlier iterate otherwise, all draws
    independent::

        g(theta) = (1 / E r) (1/L) sum_l r_l * grad U(r_l theta + (1 - r_l) values_l)

    ``keep`` leads from ``structured`` (towards 0) to the plain gradient (1, bit for bit). On a
    Gaussian with precision ``Lambda`` the law that is sampled has precision
    ``(1 - keep) blockdiag(Lambda) + keep Lambda``. A step costs L gradients, whatever the number
    of groups, evaluated as one batch of ``L P`` particles. The masks are gradient noise, of a
    variance that goes as 1/L: it widens the law at a finite step size, and ``sgld`` on a group of
    curvature l is stable for ``h l < 2 / (1 + (1 - keep) / (keep L))`` only.

    Masks that are not 0 or 1 blend the two values, and then marginals change too: diagonal blocks
    of the precision are multiplied by ``E r^2 / E r`` (2/3 for uniform masks: variances are
    inflated) and the others by ``E r``.

    The potential that is reported is the mean over the composites. A prior that is known to
    factorise (that of a module) is taken once, at theta, with weight one; otherwise it goes
    through the composites like the likelihood. With one group and Bernoulli masks, and before the
    history has its first entry, this is the plain gradient, bit for bit.

    Source: Alexos, Boyd and Mandt, "Structured stochastic gradient MCMC", 2022.

    Args:
        potential: what is sampled.
        groups: as in ``structured``.
        keep: probability in (0, 1] that a group keeps its current value; with Bernoulli masks.
        num_masks: L.
        mask: ``"bernoulli"``, ``"uniform"`` on (0, 1), or ``("beta", a, b)``.
        history: how earlier iterates are remembered; ``pvi.gradients.history()`` if absent.

    Raises:
        ValueError: groups of the wrong length or with gaps, ``keep`` outside (0, 1], missing or
            superfluous, an unknown mask, ``num_masks`` below 1.
    """

    name = "structured_dropout"

    def __init__(
        self,
        potential: ModelPotential,
        groups: Groups,
        keep: float | None = None,
        num_masks: int = 4,
        mask: str | tuple[str, float, float] = "bernoulli",
        history: history | None = None,
    ):
        check_positive_int("num_masks", num_masks)
        self.mask: str | tuple[str, float, float] = _checked_mask(mask, keep)
        self.keep = keep
        super().__init__(potential, groups, history)
        self.num_composites = num_masks
        self.times_kept: float = num_masks * _mean(self.mask, keep)
        self.settings: Mapping[str, JSON] = {
            "keep": keep,
            "num_masks": num_masks,
            "mask": mask if isinstance(mask, str) else list(mask),
            **self._common_settings(groups),
        }

    def _plain(self) -> bool:
        return self.keep is not None and (self.keep == 1 or self.num_groups == 1)

    def _mask_noise(self) -> float:
        """``Var r^2 / (L (E r)^2)``, of a group of one parameter with its history at the mean."""
        second, fourth = (_moment(self.mask, self.keep, k) for k in (2, 4))
        return (fourth - second**2) / (self.num_composites * _mean(self.mask, self.keep) ** 2)

    def _masks(self, num_particles: int, streams: Streams) -> Tensor:
        shape = (num_particles, self.num_composites, self.num_groups)
        dtype = self.potential.dtype
        if isinstance(self.mask, tuple):
            return _beta(*self.mask[1:], shape, streams).to(dtype)
        uniform = streams.uniform(shape, dtype)
        return uniform if self.keep is None else (uniform < self.keep).to(dtype)


def _checked_mask(
    mask: str | tuple[str, float, float], keep: float | None
) -> str | tuple[str, float, float]:
    if isinstance(mask, (tuple, list)):
        if len(mask) != 3 or mask[0] != "beta":
            raise ValueError(f'A mask given as a tuple must be ("beta", a, b), got {mask!r}.')
        check_positive("a of the beta mask", mask[1])
        check_positive("b of the beta mask", mask[2])
        mask = ("beta", mask[1], mask[2])
    else:
        check_choice("mask", mask, ["bernoulli", "uniform", ("beta", "a", "b")])
    if mask != "bernoulli":
        if keep is not None:
            raise ValueError(f"keep belongs to Bernoulli masks: leave it out with mask={mask!r}.")
    elif keep is None or not is_number(keep) or not 0 < keep <= 1:
        raise ValueError(
            "keep must be the probability in (0, 1] that a group keeps its current value, "
            f"got {keep!r}. For the limit 0, use pvi.structured; 1 is the plain gradient."
        )
    return mask


def _mean(mask: str | tuple[str, float, float], keep: float | None) -> float:
    """``E r``."""
    if keep is not None:
        return keep
    return mask[1] / (mask[1] + mask[2]) if isinstance(mask, tuple) else 0.5


def _moment(mask: str | tuple[str, float, float], keep: float | None, power: int) -> float:
    """``E r^power``."""
    if keep is not None:
        return keep
    a, b = mask[1:] if isinstance(mask, tuple) else (1.0, 1.0)
    return math.prod((a + k) / (a + b + k) for k in range(power))


def _beta(a: float, b: float, shape: tuple[int, ...], streams: Streams) -> Tensor:
    """Beta draws in float64, by gamma draws in log space, where small a and b do not underflow."""

    def log_gamma_draw(shape_parameter: float) -> Tensor:
        gamma = streams.gamma(shape_parameter + 1, shape)
        uniform = streams.uniform(shape, torch.float64)
        return gamma.log() + torch.log1p(-uniform) / shape_parameter

    return torch.sigmoid(log_gamma_draw(a) - log_gamma_draw(b))
