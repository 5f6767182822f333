"""Posteriors of posteriordb as plain densities on the real line, and how to read its files.

Each model is a log density of unconstrained parameters ``[P, D]``, Jacobians included, and the map
from those to the quantities that posteriordb reports, in its order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Model:
    """A posterior.

    Attributes:
        log_density: particles ``[P, D]`` to ``[P]``.
        start: one point ``[D]`` from which an optimiser finds the mode.
        quantities: particles ``[..., D]`` to what posteriordb reports, ``[..., K]``.
        scale: rough scales ``[D]`` around the start, where the mode is no guide.
    """

    log_density: LogDensity
    start: Tensor
    quantities: Callable[[Tensor], Tensor]
    scale: Tensor | None = None


def normal(x: Tensor, mean: Any, scale: Any) -> Tensor:
    scale = torch.as_tensor(scale, dtype=x.dtype)
    return -0.5 * ((x - mean) / scale) ** 2 - scale.log()


def half_cauchy(log_x: Tensor, scale: float) -> Tensor:
    """Log density of ``log x`` for half-Cauchy x."""
    return -torch.log1p((log_x.exp() / scale) ** 2) + log_x


def flat(log_x: Tensor) -> Tensor:
    """Log density of ``log x`` for flat x."""
    return log_x


def half_normal(log_x: Tensor, scale: float) -> Tensor:
    return -0.5 * (log_x.exp() / scale) ** 2 + log_x


def regression(x: Tensor, y: Tensor, sigma: LogDensity, beta: LogDensity | None = None) -> Model:
    """``y ~ N(x beta, sigma)`` with priors of ``log sigma`` and, unless flat, of beta."""
    width = x.shape[1]

    def log_density(u: Tensor) -> Tensor:
        weights, log_sigma = u[:, :width], u[:, width]
        likelihood = normal(y, weights @ x.T, log_sigma.exp().unsqueeze(1)).sum(1)
        prior = sigma(log_sigma)
        return likelihood + prior + (0.0 if beta is None else beta(weights).sum(1))

    solution = torch.linalg.lstsq(x, y.unsqueeze(1)).solution.flatten()
    residual = (y - x @ solution).std().log().view(1)

    def quantities(u: Tensor) -> Tensor:
        return torch.cat([u[..., :width], u[..., width:].exp()], dim=-1)

    return Model(log_density, torch.cat([solution, residual]), quantities)


def eight_schools(y: Tensor, sigma: Tensor) -> Model:
    """Non-centred: ``u = (theta~, mu, log tau)``."""

    def theta(u: Tensor) -> Tensor:
        return u[..., 8:9] + u[..., 9:].exp() * u[..., :8]

    def log_density(u: Tensor) -> Tensor:
        prior = normal(u[:, :8], 0.0, 1.0).sum(1) + normal(u[:, 8], 0.0, 5.0)
        return prior + half_cauchy(u[:, 9], 5.0) + normal(y, theta(u), sigma).sum(1)

    def quantities(u: Tensor) -> Tensor:
        return torch.cat([theta(u), u[..., 8:9], u[..., 9:].exp()], dim=-1)

    start = torch.zeros(10, dtype=torch.float64)
    return Model(log_density, start, quantities, torch.tensor([1.0] * 8 + [3.3, 1.2]).double())


def gauss_mix(y: Tensor) -> Model:
    """``u = (mu_1, log(mu_2 - mu_1), log sigma_1, log sigma_2, logit theta)``."""

    def parts(u: Tensor) -> tuple[Tensor, ...]:
        first = u[..., 0]
        return first, first + u[..., 1].exp(), u[..., 2].exp(), u[..., 3].exp(), u[..., 4]

    def log_density(u: Tensor) -> Tensor:
        first, second, s1, s2, logit = (part.unsqueeze(1) for part in parts(u))
        log_share = torch.nn.functional.logsigmoid
        a = normal(y, first, s1) + log_share(logit)
        b = normal(y, second, s2) + log_share(-logit)
        prior = normal(first, 0.0, 2.0) + normal(second, 0.0, 2.0) + u[:, 1:2]
        prior = prior + half_normal(u[:, 2:3], 2.0) + half_normal(u[:, 3:4], 2.0)
        prior = prior + 5 * (log_share(logit) + log_share(-logit))
        return torch.logaddexp(a, b).sum(1) + prior.squeeze(1)

    def quantities(u: Tensor) -> Tensor:
        first, second, s1, s2, logit = parts(u)
        return torch.stack([first, second, s1, s2, logit.sigmoid()], dim=-1)

    start = torch.tensor([-2.5, 1.7, 0.0, 0.0, 0.4], dtype=torch.float64)
    return Model(log_density, start, quantities)


class Files:
    """The folder with ``<data>-<model>.npz`` (reference draws) and ``<data>.data.json``."""

    def __init__(self, folder: Path):
        self.folder = folder

    def data(self, name: str) -> dict[str, Tensor]:
        loaded = json.loads((self.folder / f"{name}.data.json").read_text())
        return {key: torch.tensor(value, dtype=torch.float64) for key, value in loaded.items()}

    def draws(self, name: str) -> np.ndarray[Any, Any]:
        """Reference draws ``[chain, draw, K]``."""
        with np.load(self.folder / f"{name}.npz") as archive:
            return np.asarray(archive["draws"], dtype=np.float64)


class MadeUp:
    """Random numbers in the place of every column, to compare densities without the files."""

    def data(self, name: str) -> Mapping[str, Tensor]:
        return _MadeUpColumns()


class _MadeUpColumns(dict[str, Tensor]):
    def __missing__(self, key: str) -> Tensor:
        generator = torch.Generator().manual_seed(sum(key.encode()))
        shape = {"X": (200, 5), "sigma": (8,)}.get(key, () if key[:2] in ("pm", "ps") else (200,))
        self[key] = 0.5 + torch.rand(shape, generator=generator, dtype=torch.float64)
        return self[key]


def _columns(*parts: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(parts[-1]), *parts], dim=1)


CAUCHY, NORMAL = ("half_cauchy", 2.5), ("half_normal", 10.0)
SIGMA: dict[str, tuple[str, float]] = {
    "arK-arK": CAUCHY,
    "kidiq-kidscore_momhs": CAUCHY,
    "kidiq-kidscore_momiq": CAUCHY,
    "kidiq-kidscore_momhsiq": CAUCHY,
    "sblri-blr": NORMAL,
    "sblrc-blr": NORMAL,
}
"""Priors of sigma by kind and scale, of the regressions in which it is not flat."""


def beta_prior(name: str, d: Mapping[str, Tensor]) -> tuple[Any, Any] | None:
    """Mean and scale of the normal prior of beta, None if it is flat."""
    if name in ("arK-arK", "sblri-blr", "sblrc-blr"):
        return 0.0, 10.0
    if name == "kilpisjarvi_mod-kilpisjarvi":
        mean, scale = ([d[f"{p}alpha"], d[f"{p}beta"]] for p in ("pmu", "ps"))
        return torch.stack(mean), torch.stack(scale)
    return None


def data_of(name: str, files: Any) -> Mapping[str, Tensor]:
    """The data set of a posterior."""
    found: Mapping[str, Tensor] = files.data(name.split("-", maxsplit=1)[0])
    return found


def make(name: str, files: Any) -> Model:
    """A posterior by its name in posteriordb."""
    d = data_of(name, files)
    if name == "eight_schools-eight_schools_noncentered":
        return eight_schools(d["y"][:8], d["sigma"])
    if name == "low_dim_gauss_mix-low_dim_gauss_mix":
        return gauss_mix(d["y"])
    kind, scale = SIGMA.get(name, ("flat", 0.0))
    sigma = {
        "flat": flat,
        "half_cauchy": lambda s: half_cauchy(s, scale),
        "half_normal": lambda s: half_normal(s, scale),
    }[kind]
    prior = beta_prior(name, d)
    beta = None if prior is None else lambda b: normal(b, *prior)
    return regression(*design(name, d), sigma, beta)


def design(name: str, d: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Columns ``[N, K]`` and response ``[N]`` of a regression."""
    if name == "arK-arK":
        return _columns(*(d["y"][5 - k : 200 - k] for k in range(1, 6))), d["y"][5:]
    if name == "earnings-earn_height":
        return _columns(d["height"]), d["earn"]
    if name == "earnings-logearn_height_male":
        return _columns(d["height"], d["male"]), d["earn"].log()
    if name == "earnings-logearn_interaction":
        return _columns(d["height"], d["male"], d["height"] * d["male"]), d["earn"].log()
    if name == "kidiq-kidscore_momhs":
        return _columns(d["mom_hs"]), d["kid_score"]
    if name == "kidiq-kidscore_momiq":
        return _columns(d["mom_iq"]), d["kid_score"]
    if name == "kidiq-kidscore_momhsiq":
        return _columns(d["mom_hs"], d["mom_iq"]), d["kid_score"]
    if name == "kidiq_with_mom_work-kidscore_interaction_z":
        hs, iq = ((v - v.mean()) / (2 * v.std(correction=1)) for v in (d["mom_hs"], d["mom_iq"]))
        return _columns(hs, iq, hs * iq), d["kid_score"]
    if name == "kilpisjarvi_mod-kilpisjarvi":
        return _columns(d["x"]), d["y"]
    if name == "nes1972-nes":
        ages = [(d["age_discrete"] == k).double() for k in (2, 3, 4)]
        rest = [d["educ1"], d["gender"], d["income"]]
        return _columns(d["real_ideo"], d["race_adj"], *ages, *rest), d["partyid7"]
    if name in ("sblri-blr", "sblrc-blr"):
        return d["X"], d["y"]
    return _mesquite(name, d)


def _mesquite(name: str, d: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    d1, d2, canopy, total = d["diam1"], d["diam2"], d["canopy_height"], d["total_height"]
    if name == "mesquite-mesquite":
        return _columns(d1, d2, canopy, total, d["density"], d["group"]), d["weight"]
    response = d["weight"].log()
    if name == "mesquite-logmesquite":
        logged = [v.log() for v in (d1, d2, canopy, total, d["density"])]
        return _columns(*logged, d["group"]), response
    volume, area, shape = (d1 * d2 * canopy).log(), (d1 * d2).log(), (d1 / d2).log()
    return _columns(volume, area, shape, total.log(), d["group"]), response


NAMES = [
    "arK-arK",
    "earnings-earn_height",
    "earnings-logearn_height_male",
    "earnings-logearn_interaction",
    "eight_schools-eight_schools_noncentered",
    "kidiq-kidscore_momhs",
    "kidiq-kidscore_momiq",
    "kidiq-kidscore_momhsiq",
    "kidiq_with_mom_work-kidscore_interaction_z",
    "kilpisjarvi_mod-kilpisjarvi",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "mesquite-mesquite",
    "mesquite-logmesquite",
    "mesquite-logmesquite_logvash",
    "nes1972-nes",
    "sblrc-blr",
    "sblri-blr",
]
"""Those of the database whose densities are cheap and smooth on the real line."""
