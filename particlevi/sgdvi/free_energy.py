"""The free energy that SGD's ensemble descends.

For an ensemble with density ``rho`` at some time::

    F(rho) = E_rho[Phi] - T H(rho) = T KL(rho || rho_ss) - T log Z

falls along the continuous-time dynamics until ``rho`` is stationary, whether or not there are
loops. For Gaussians (linear dynamics) it is exact; from an ensemble of runs the entropy is
estimated, as that of a Gaussian with the ensemble's covariance, or by nearest neighbours.

Reference: Chaudhari and Soatto, "Stochastic gradient descent performs variational inference,
converges to limit cycles for deep networks", 2018, Theorem 5; Kozachenko and Leonenko, "Sample
estimate of the entropy of a random vector", 1987.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_positive, check_positive_int
from particlevi._shown import Shown
from particlevi.draws import Draws
from particlevi.sgdvi._checks import as_real, check_field
from particlevi.sgdvi.series import as_series
from particlevi.sgdvi.stationary import StationaryLaw

__all__ = ["FreeEnergy", "Moments", "free_energy_along", "gaussian_kl", "moments_along"]


class Moments(NamedTuple):
    """Means ``[T, D]`` and covariances ``[T, D, D]`` of a Gaussian ensemble over time."""

    mean: Tensor
    covariance: Tensor


def gaussian_kl(mean: Tensor, covariance: Tensor, law: StationaryLaw) -> Tensor:
    """``KL(Normal(mean, covariance) || law)`` in nats, ``[...]``.

    ``T`` times it is the free energy above its least value; exact for linear dynamics.

    Args:
        mean: ``[..., D]``.
        covariance: ``[..., D, D]``.
        law: of full rank.

    >>> from particlevi.sgdvi import stationary_law
    >>> law = stationary_law(torch.eye(2), torch.eye(2), learning_rate=0.1, batch_size=5)
    >>> bool(gaussian_kl(law.mean, law.covariance, law).abs() < 1e-12)
    True
    """
    _check_law(law)
    mean, covariance = _moments(law, mean, covariance)
    if law.null_directions.shape[1]:
        raise ValueError(
            f"The law has {law.null_directions.shape[1]} directions without noise, so every other "
            "law is infinitely far from it: restrict the matrices to the others."
        )
    precision = law.potential_hessian / law.temperature
    shift = mean - law.mean
    product = covariance @ precision
    square = ((shift @ precision) * shift).sum(-1)
    trace = product.diagonal(dim1=-2, dim2=-1).sum(-1)
    divergence: Tensor = 0.5 * (square + trace - len(law.mean) - torch.linalg.slogdet(product)[1])
    return divergence


def moments_along(law: StationaryLaw, mean: Tensor, covariance: Tensor, times: Tensor) -> Moments:
    """The moments of a Gaussian ensemble at given times of the linear dynamics, exactly.

    ``m_t = e^(-Ft) m_0``, ``P_t = S + e^(-Ft) (P_0 - S) e^(-F't)``, about the law's mean.

    Args:
        law: from ``stationary_law``.
        mean: at time 0, ``[D]``.
        covariance: at time 0, ``[D, D]``.
        times: ``[T]``; one step of SGD takes ``eta``.
    """
    _check_law(law)
    mean, covariance = _moments(law, mean, covariance, batched=False)
    times = as_real("times", times, "[T]")
    if times.ndim != 1 or (times < 0).any():
        raise ValueError(f"times must be a tensor [T] of at least 0, got {list(times.shape)}.")
    fade = torch.linalg.matrix_exp(-law.hessian * times[:, None, None])
    means = law.mean + (fade @ (mean - law.mean)[:, None])[..., 0]
    excess = fade @ (covariance - law.covariance) @ fade.transpose(-1, -2)
    return Moments(means, law.covariance + excess)


def _check_law(law: StationaryLaw) -> None:
    if not isinstance(law, StationaryLaw):
        raise TypeError(
            f"law must come from stationary_law or exact_law, got {type(law).__name__}."
        )


def _moments(
    law: StationaryLaw, mean: Tensor, covariance: Tensor, batched: bool = True
) -> tuple[Tensor, Tensor]:
    size = len(law.mean)
    m = as_real("mean", mean, f"[..., {size}]")
    c = as_real("covariance", covariance, f"[..., {size}, {size}]")
    fits = m.shape[-1:] == (size,) and c.shape[-2:] == (size, size)
    if batched:
        lead = m.shape[:-1], c.shape[:-2]
        fits = fits and (lead[0] == lead[1] or () in lead)
    else:
        fits = fits and m.ndim == 1 and c.ndim == 2
    if not fits:
        dots = "..., " if batched else ""
        raise ValueError(
            f"mean and covariance must be [{dots}{size}] and [{dots}{size}, {size}], got "
            f"{list(m.shape)} and {list(c.shape)}."
        )
    return m, c


@dataclass(frozen=True, eq=False, repr=False)
class FreeEnergy(Shown):
    """The free energy of an ensemble over time, up to one constant.

    Attributes:
        value: ``E[Phi] - T H [T]``.
        standard_error: by the jackknife over groups of runs, ``[T]``.
        energy: ``E[Phi] [T]``.
        entropy: ``H`` in nats, ``[T]``.
        largest_rise: of ``value`` from one time to the next, in standard errors of the difference;
            below about 3 the run is compatible with a fall.
    """

    value: Tensor
    standard_error: Tensor
    energy: Tensor
    entropy: Tensor
    largest_rise: float


def free_energy_along(
    draws: Draws | Tensor,
    potential: Callable[[Tensor], Tensor],
    temperature: float,
    *,
    entropy: str = "gaussian",
    num_neighbours: int = 4,
    num_groups: int = 20,
) -> FreeEnergy:
    """The free energy at each time of an ensemble of independent runs.

    Args:
        draws: runs from one law of starting points, not yet stationary; ``[P, T, D]``.
        potential: ``Phi``, points ``[..., D]`` to ``[...]``: a known or a fitted one.
        temperature: ``T = eta/(2b)``.
        entropy: ``"gaussian"``: that of a Gaussian with the ensemble's covariance, an upper bound,
            exact for Gaussian ensembles. ``"neighbours"``: by distances to the k-th nearest other
            run, for a few dimensions.
        num_neighbours: k.
        num_groups: of runs, for the jackknife.

    Raises:
        ValueError: too few runs.
    """
    check_positive("temperature", temperature)
    check_choice("entropy", entropy, ["gaussian", "neighbours"])
    check_positive_int("num_neighbours", num_neighbours)
    check_positive_int("num_groups", num_groups, minimum=3)
    series = as_series(draws).transpose(0, 1)
    check_field("potential", potential, series[0], ())
    times, runs, size = series.shape
    if runs < max(3 * size, num_groups, num_neighbours + 2):
        raise ValueError(
            f"The entropy in {size} dimensions takes at least "
            f"{max(3 * size, num_groups, num_neighbours + 2)} runs, got {runs}: project first."
        )
    phi = potential(series).double()

    def values(chosen: Tensor) -> tuple[Tensor, Tensor]:
        part = series[:, chosen]
        if entropy == "gaussian":
            found = _gaussian_entropy(part)
        else:
            found = torch.stack([_neighbour_entropy(p, num_neighbours) for p in part])
        return phi[:, chosen].mean(1), found

    groups = torch.arange(runs) % num_groups
    energy, disorder = values(groups >= 0)
    left_out = [values(groups != k) for k in range(num_groups)]
    again = torch.stack([e - temperature * h for e, h in left_out])

    def spread(replicates: Tensor) -> Tensor:
        return ((num_groups - 1) * replicates.var(0, correction=0)).sqrt()

    value = energy - temperature * disorder
    largest = -math.inf
    if times > 1:
        error = spread(again.diff(dim=1)).clamp(min=torch.finfo(value.dtype).tiny)
        largest = float((value.diff() / error).max())
    return FreeEnergy(
        value=value,
        standard_error=spread(again),
        energy=energy,
        entropy=disorder,
        largest_rise=largest,
    )


def _gaussian_entropy(points: Tensor) -> Tensor:
    """``[T]`` of points ``[T, P, D]``."""
    centered = points - points.mean(1, keepdim=True)
    covariance = centered.transpose(1, 2) @ centered / (points.shape[1] - 1)
    size = points.shape[2]
    constant = size * (1 + math.log(2 * math.pi))
    entropy: Tensor = 0.5 * (constant + torch.linalg.slogdet(covariance)[1])
    return entropy


def _neighbour_entropy(points: Tensor, k: int) -> Tensor:
    """Kozachenko and Leonenko's estimate for points ``[P, D]``."""
    from scipy.spatial import cKDTree
    from scipy.special import digamma, gammaln

    count, size = points.shape
    found = cKDTree(points.numpy()).query(points.numpy(), k=[k + 1])[0]
    ball = 0.5 * size * math.log(math.pi) - gammaln(size / 2 + 1)
    volume = size * torch.from_numpy(found).log().mean() + ball
    entropy: Tensor = volume + digamma(count) - digamma(k)
    return entropy
