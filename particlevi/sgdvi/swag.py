"""Gaussian posterior approximations from SGD's iterates: SWAG and averages of iterates.

Both take the draws of a run of ``sgd`` and return draws, so that predictions, effective sample
sizes and comparisons work as for any sampler.

Reference: Maddox, Garipov, Izmailov, Vetrov and Wilson, "A simple baseline for Bayesian uncertainty
in deep learning", 2019; Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate
Bayesian inference", 2017.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int, check_seed
from particlevi.draws import Draws
from particlevi.typing import Facts

__all__ = ["iterate_average", "swag"]


def swag(
    draws: Draws, num_draws: int = 30, *, rank: int = 20, scale: float = 0.5, seed: int = 0
) -> Draws:
    """Draws from ``Normal(m, scale (diag(s^2) + D D' / (K - 1)))`` around each chain's mean.

    ``m`` and ``s^2`` are mean and variance over all of a chain's draws; ``D`` holds the deviations
    of its last K from ``m``. With ``scale = 0.5`` this is the SWAG of the paper, with its factors
    ``1/sqrt(2)`` and ``1/sqrt(2 (K - 1))``. (The authors' code takes deviations from the running
    mean, which makes them smaller, and divides by K - 1 even when fewer are kept.)

    Batch normalisation needs no update: ``from_module`` freezes its statistics.

    Source: Maddox, Garipov, Izmailov, Vetrov and Wilson 2019.

    Args:
        draws: of ``sgd`` at a constant rate, one per epoch or so.
        num_draws: from the Gaussian of each chain.
        rank: K; all draws of a chain if it has fewer.
        scale: of the covariance.
        seed: of the draws.

    Raises:
        ValueError: interacting particles, fewer than 3 draws per chain, or only a part of the
            parameters kept.

    >>> import particlevi as pvi
    >>> normal = pvi.from_log_density(lambda theta: -0.5 * theta.square().sum(), num_params=2)
    >>> run = pvi.sample(
    ...     pvi.sgld(normal), step_size=0.5, num_particles=3, num_draws=50, progress=False
    ... )
    >>> swag(run, num_draws=40).particles.shape
    torch.Size([3, 40, 2])
    """
    _check(draws, at_least=3)
    check_positive_int("num_draws", num_draws)
    check_positive_int("rank", rank, minimum=2)
    check_positive("scale", scale)
    check_seed("seed", seed)
    values = draws.particles.double()
    mean = values.mean(1, keepdim=True)
    deviation = values - mean
    diagonal = deviation.square().mean(1, keepdim=True).sqrt()
    columns = deviation[:, -rank:]
    kept = columns.shape[1]
    generator = torch.Generator().manual_seed(int(seed))
    chains, _, size = values.shape

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    around = diagonal * noise(chains, num_draws, size)
    around += noise(chains, num_draws, kept) @ columns / math.sqrt(kept - 1)
    settings = {"rank": kept, "scale": scale, "swag_seed": seed}
    sampled = _again(draws, mean + math.sqrt(scale) * around, "swag", settings)
    return replace(sampled, facts=Facts(kind="independent"))


def iterate_average(draws: Draws, window: int) -> Draws:
    """Averages of ``window`` successive draws, each a draw of its own.

    Averages over one epoch, with C close to the Hessian and a rate such that a window is many
    times the run's memory, have the posterior's covariance; with other C, ``(1/(T b)) F^-1 C F^-1``
    for windows of T steps.

    Source: Mandt, Hoffman and Blei 2017.

    Args:
        draws: of ``sgd`` at a constant rate, every step kept (or thinned evenly).
        window: draws per average; an epoch is ``N / b`` steps.

    Raises:
        ValueError: interacting particles, or fewer draws than a window.
    """
    check_positive_int("window", window)
    _check(draws, at_least=window)
    values = draws.particles
    count = values.shape[1] // window
    averages = values[:, values.shape[1] - count * window :].double()
    averages = averages.unflatten(1, (count, window)).mean(2)
    return _again(draws, averages, "iterate average", {"window": window})


def _check(draws: Draws, at_least: int) -> None:
    if not isinstance(draws, Draws):
        raise TypeError(f"This takes the Draws of a run of sgd, got {type(draws).__name__}.")
    if draws.interacting:
        raise ValueError("These particles interact, so they are no trajectories of SGD.")
    if not draws.complete:
        raise ValueError("Only a part of the parameters was kept: run again without keep=.")
    if draws.particles.shape[1] < at_least:
        raise ValueError(
            f"This takes at least {at_least} draws per chain, got {draws.particles.shape[1]}."
        )


def _again(draws: Draws, particles: Tensor, name: str, settings: dict[str, Any]) -> Draws:
    """The draws with other particles; statistics per draw no longer apply."""
    return replace(
        draws,
        particles=particles.to(draws.particles.dtype),
        stats={},
        warmup=None,
        warmup_stats={},
        end=None,
        attrs={**draws.attrs, "sampler": name, "from": draws.attrs.get("sampler"), **settings},
    )
