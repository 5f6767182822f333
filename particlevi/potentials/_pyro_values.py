"""Values of the latent sites of a Pyro model, through bijections; Pyro is not imported here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Rule", "at_values", "bijection", "from_prior", "uniform"]

Rule: TypeAlias = Callable[[dict[str, Tensor], Any], Tensor]
"""Gives a latent site its value, and notes the unconstrained one under the site's name."""


def bijection(site: Any) -> Any:
    """From the real line to the support of a latent site."""
    support = site["fn"].support
    if support.is_discrete:
        raise ValueError(
            f"The latent site {site['name']!r} is discrete and has no gradient: sum it out by "
            "hand, for example as a mixture distribution. Pyro's enumeration is not supported."
        )
    try:
        return torch.distributions.biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"The latent site {site['name']!r} has the support {support!r}, to which there is no "
            "bijection from the real line: write it as a function of other sites."
        ) from error


def uniform(points: dict[str, Tensor], site: Any) -> Tensor:
    """Unconstrained coordinates uniform on (-2, 2), as in Stan."""
    transform, law = bijection(site), site["fn"]
    try:
        like = law.sample()
    except NotImplementedError:  # an improper prior
        like = torch.empty(law.batch_shape + law.event_shape)
    z = torch.rand(transform.inverse_shape(like.shape), dtype=like.dtype, device=like.device)
    value: Tensor = transform(points.setdefault(site["name"], 4 * z - 2))
    return value


def from_prior(points: dict[str, Tensor], site: Any) -> Tensor:
    """A draw of the prior; unconstrained coordinates that are infinite are drawn uniformly."""
    transform = bijection(site)
    z = transform.inv(site["fn"].sample())
    z = torch.where(z.isfinite(), z, 4 * torch.rand_like(z) - 2)
    value: Tensor = transform(points.setdefault(site["name"], z))
    return value


def at_values(values: dict[str, Tensor], points: dict[str, Tensor], site: Any) -> Tensor:
    """Values that the caller gives on the sites' own supports."""
    transform, value = bijection(site), values[site["name"]]
    z = transform.inv(value)
    if not bool(z.isfinite().all()):
        raise ValueError(
            f"The value of {site['name']!r} is outside the interior of the support "
            f"{site['fn'].support!r}."
        )
    points.setdefault(site["name"], z)
    return value
