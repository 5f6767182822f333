"""The posteriors of ``models.py`` as Pyro models, in the same unconstrained coordinates."""

from __future__ import annotations

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import particlevi as pvi
from tests.reference import models
from tests.reference.models import Model

ZERO = torch.zeros((), dtype=torch.float64)
FLAT_SIGMA = dist.HalfNormal(ZERO + 1.0).mask(False)


def flat(width: int) -> Any:
    return dist.Normal(ZERO, 1.0).expand([width]).to_event(1).mask(False)


def regression(x: Tensor, y: Tensor, beta_prior: Any, sigma_prior: Any) -> None:
    beta = pyro.sample("beta", beta_prior)
    sigma = pyro.sample("sigma", sigma_prior)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    tilde = pyro.sample("tilde", dist.Normal(ZERO, 1.0).expand([8]).to_event(1))
    mu = pyro.sample("mu", dist.Normal(ZERO, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(ZERO + 5.0))
    theta = pyro.deterministic("theta", mu.unsqueeze(-1) + tau.unsqueeze(-1) * tilde)
    pyro.sample("y", dist.Normal(theta, sigma).to_event(1), obs=y)


def gauss_mix(y: Tensor) -> None:
    first = pyro.sample("first", dist.Normal(ZERO, 2.0))
    second = pyro.deterministic("second", first + pyro.sample("gap", FLAT_SIGMA))
    pyro.factor("prior", dist.Normal(ZERO, 2.0).log_prob(second))
    sigma = pyro.sample("sigma", dist.HalfNormal(ZERO + 2.0).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(ZERO + 5.0, ZERO + 5.0))
    shares = dist.Categorical(torch.stack([theta, 1 - theta], dim=-1))
    parts = dist.Normal(torch.stack([first, second], dim=-1), sigma)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(shares, parts), obs=y)


def make(name: str, files: Any) -> Model:
    """A posterior by its name in posteriordb, through ``pvi.from_pyro``."""
    d, batch = models.data_of(name, files), None
    if name == "eight_schools-eight_schools_noncentered":
        model: Any = functools.partial(eight_schools, d["y"][:8], d["sigma"])
        sites = ["theta", "mu", "tau"]
    elif name == "low_dim_gauss_mix-low_dim_gauss_mix":
        model, batch, sites = gauss_mix, (d["y"],), ["first", "second", "sigma", "theta"]
    else:
        batch, sites = models.design(name, d), ["beta", "sigma"]
        model = functools.partial(regression, **priors(name, d, batch[0].shape[1]))
    potential = pvi.from_pyro(model, example_batch=batch)

    def log_density(u: Tensor) -> Tensor:
        return -potential(u, None if batch is None else pvi.typing.Batch(batch))

    def quantities(u: Tensor) -> Tensor:
        found = potential.constrain(u.reshape(-1, u.shape[-1]))
        parts = [found[site].reshape(*u.shape[:-1], -1) for site in sites]
        return torch.cat(parts, dim=-1)

    plain = models.make(name, files)
    return Model(log_density, plain.start, quantities, plain.scale)


def priors(name: str, d: Any, width: int) -> dict[str, Any]:
    kind, scale = models.SIGMA.get(name, ("flat", 0.0))
    scale = torch.tensor(scale, dtype=torch.float64)
    normal = models.beta_prior(name, d)
    beta = flat(width)
    if normal is not None:
        mean, sd = (torch.as_tensor(v, dtype=torch.float64).expand(width) for v in normal)
        beta = dist.Normal(mean, sd).to_event(1)
    sigma = {
        "flat": lambda: FLAT_SIGMA,
        "half_cauchy": lambda: dist.HalfCauchy(scale),
        "half_normal": lambda: dist.HalfNormal(scale),
    }[kind]()
    return {"beta_prior": beta, "sigma_prior": sigma}
