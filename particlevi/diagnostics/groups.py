"""Draws by group of parameters: how they mix, how far they depend, and how to recombine them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_flag, check_positive_int, check_seed
from particlevi.diagnostics import convergence
from particlevi.drawset import DrawSet, check_draws
from particlevi.gradients._partition import Partition
from particlevi.potentials.layout import Groups, Layout

__all__ = ["GroupDiagnostics", "group_diagnostics", "group_numbers", "recombine"]

Set = TypeVar("Set", bound=DrawSet)

_MOST_COORDINATES = 4000
_MOST_SHOWN = 20


class GroupDiagnostics(NamedTuple):
    """Diagnostics of draws by group.

    Attributes:
        ess: effective sample size of the mean, median over the group's weights, ``[M]``.
        iac: integrated autocorrelation time in draws, median over the group's weights, ``[M]``.
        ess_per_weight: ``[K]``.
        iac_per_weight: ``[K]``.
        cross_correlation: root mean square correlation between weights of two groups ``[M, M]``;
            on the diagonal between different weights of one, nan for a group of one. Draws worth
            n independent ones show about ``1 / sqrt(n)`` where there is none.
        drift: ``[M]``, distance between the means of the first and the second half of each chain,
            in standard deviations of the draws, root mean square over chains and weights. In
            a stationary chain it is about ``2 / sqrt(ESS of one chain)``; more says that the mean
            of the history, on which the law that is sampled depends, still moves.
    """

    ess: Tensor
    iac: Tensor
    ess_per_weight: Tensor
    iac_per_weight: Tensor
    cross_correlation: Tensor
    drift: Tensor

    def __repr__(self) -> str:
        lines = ["group       ESS       IAC   drift"]
        every = list(zip(self.ess.tolist(), self.iac.tolist(), self.drift.tolist(), strict=True))
        for group, (ess, iac, drift) in enumerate(every[:_MOST_SHOWN]):
            lines.append(f"{group:5d} {ess:9.1f} {iac:9.1f} {drift:7.3f}")
        if len(every) > _MOST_SHOWN:
            lines.append(f"  ... {len(every) - _MOST_SHOWN} more groups")
        if len(every) > 1:
            apart = ~torch.eye(len(every), dtype=torch.bool)
            most = float(self.cross_correlation[apart].max())
            lines.append(f"correlation between weights of two groups: at most {most:.3f}")
        return "\n".join(lines)


def group_diagnostics(draws: DrawSet, groups: Groups | None = None) -> GroupDiagnostics:
    """ESS, autocorrelation time, cross-group correlation and drift of draws, by group.

    The integrated autocorrelation time is ``1 + 2 sum_k rho_k``, truncated by Geyer's initial
    monotone sequence as ArviZ does it, and ``ESS = P T / IAC``.

    Args:
        draws: of a run of chains.
        groups: a rule or group numbers; those of the run's structured estimator if absent.

    Raises:
        ValueError: no groups are known, interacting particles, or fewer than 4 draws.

    >>> import particlevi as pvi
    >>> normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=2)
    >>> draws = pvi.sample(
    ...     pvi.sgld(normal), step_size=0.5, num_particles=20, num_draws=500, progress=False
    ... )
    >>> by_group = group_diagnostics(draws, "parameter")
    >>> [round(t) for t in by_group.iac.tolist()]  # (1 + a) / (1 - a) with a = 1 - 0.5
    [3, 3]
    """
    numbers = group_numbers(draws, groups)
    num_groups = int(numbers.max()) + 1
    chains, length, _ = draws.particles.shape
    ess = torch.as_tensor(convergence.ess(draws, method="mean"))
    iac = chains * length / ess
    return GroupDiagnostics(
        ess=_by_group(ess, numbers, num_groups, np.nanmedian),
        iac=_by_group(iac, numbers, num_groups, np.nanmedian),
        ess_per_weight=ess,
        iac_per_weight=iac,
        cross_correlation=_cross_correlation(draws.particles, numbers, num_groups),
        drift=_by_group(_squared_drift(draws.particles), numbers, num_groups, np.mean).sqrt(),
    )


def _by_group(
    values: Tensor, numbers: Tensor, num_groups: int, summary: Callable[..., Any]
) -> Tensor:
    return torch.stack(
        [torch.as_tensor(summary(values[numbers == m].numpy())) for m in range(num_groups)]
    )


def _squared_drift(particles: Tensor) -> Tensor:
    """``[K]``, mean over chains."""
    half = particles.shape[1] // 2
    values = particles.double()
    shift = values[:, -half:].mean(1) - values[:, :half].mean(1)
    variance = values.flatten(0, 1).var(0)
    return shift.square().mean(0) / variance.clamp(min=torch.finfo(torch.float64).tiny)


def _cross_correlation(particles: Tensor, numbers: Tensor, num_groups: int) -> Tensor:
    """Of at most some thousand weights, evenly spaced within each group."""
    most = max(1, _MOST_COORDINATES // num_groups)
    chosen = []
    for m in range(num_groups):
        members = (numbers == m).nonzero().flatten()
        every = torch.linspace(0, len(members) - 1, min(most, len(members))).round().long()
        chosen.append(members[every])
    columns = torch.cat(chosen)
    correlation = torch.corrcoef(particles.flatten(0, 1)[:, columns].double().T)
    correlation = correlation.reshape(len(columns), len(columns)).nan_to_num()
    squares = correlation.square().fill_diagonal_(0)
    member = torch.nn.functional.one_hot(numbers[columns], num_groups).double()
    counts = member.sum(0)
    pairs = torch.outer(counts, counts) - counts.diag()
    return ((member.T @ squares @ member) / pairs).sqrt()


def group_numbers(draws: DrawSet, rule: Groups | None) -> Tensor:
    """Group numbers of the kept parameters, ``[K]``.

    Raises:
        ValueError: no rule is given and the run had none, or outputs were kept.
    """
    check_draws(draws)
    if draws.output_shape is not None or draws.kept:
        raise ValueError(
            "These draws are not of parameters alone, and only those have groups: keep them, or "
            'take draws.only("parameters").'
        )
    if rule is None:
        if draws.groups is None:
            raise ValueError("Pass groups: the run had no structured estimator.")
        rule = draws.groups
    numbers = Layout(draws.shapes).groups(rule)
    return numbers if draws.coordinates is None else numbers[draws.coordinates]


def recombine(draws: Set, num: int, groups: Groups | None, pooled: bool | None, seed: int) -> Set:
    """See ``Draws.recombine``."""
    check_draws(draws)
    check_positive_int("num", num)
    check_seed("seed", seed)
    partition = Partition(group_numbers(draws, groups))
    if pooled is not None:
        check_flag("pooled", pooled)
    if pooled is None:
        pooled = draws.pooled
    rows = draws.flat()
    chains = 1 if pooled or draws.interacting else len(draws.particles)
    length = len(rows) // chains
    generator = torch.Generator().manual_seed(int(seed))
    chain = torch.randint(chains, (num, 1), generator=generator)
    index = torch.randint(length, (num, partition.num_groups), generator=generator)
    return replace(
        draws,
        particles=partition.gather(rows, chain * length + index).unsqueeze(0),
        stats={},
        warmup=None,
        warmup_stats={},
        chains=[],
        facts=replace(draws.facts, kind="independent"),
        end=None,
        attrs={**draws.attrs, "recombined": num},
    )
