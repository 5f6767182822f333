"""Gradients until the worst second moment is right, on targets of inference_gym.

    python benchmarks/inference_gym.py FOLDER [--targets ...] [--chains 4] [--seeds 3] [--log FILE]

``pvi.sample(potential, num_particles=P)`` and nothing else. The error is that of Hoffman and
Sountsov: the largest over parameters of ``(mean x_i^2 - E x_i^2)^2 / Var x_i^2``, over all draws of
all chains, and the run ends when it is below .01, the error of a hundred independent draws.
Gradients are those of all chains; those of the start and the warm-up are counted, and told apart.
Published figures, results of the repository ``reubenharry/sampler-benchmarks``, leave the tuning
out, which its tables give apart. ``Var x_i^2`` is that of a normal law of the reference's moments.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

import particlevi as pvi

F64 = torch.float64
PUBLISHED = {
    "item response": (19020, 40073, 71758),
    "brownian motion": (8834, 18110, 33462),
    "stochastic volatility": (318704, 402531, 1329027),
}
"""Best unadjusted microcanonical, adjusted, NUTS, after their tuning."""
TUNING = {"item response": 40000, "brownian motion": 40000, "stochastic volatility": 44446}
"""Gradients of the tuning of the first of them."""


class Target(NamedTuple):
    """A density on unconstrained coordinates, and its reference.

    Attributes:
        log_density: ``[P, D] -> [P]``.
        size: D.
        quantities: ``[..., D] -> [..., K]``, what the reference is of.
        mean, std: of the quantities, ``[K]``.
    """

    log_density: Callable[[Tensor], Tensor]
    size: int
    quantities: Callable[[Tensor], Tensor]
    mean: Tensor
    std: Tensor


def normal(x: Tensor, mean: Any, scale: Any) -> Tensor:
    scale = torch.as_tensor(scale, dtype=F64)
    return -0.5 * ((x - mean) / scale).square() - scale.log()


def reference(folder: Path, name: str, *parts: str) -> tuple[Tensor, Tensor]:
    known = json.loads((folder / f"{name}.json").read_text())
    found = []
    for key in ("mean", "std"):
        rows = [torch.tensor(known[part][key], dtype=F64).reshape(-1) for part in parts]
        found.append(torch.cat(rows))
    return found[0], found[1]


def item_response(folder: Path) -> Target:
    """Ability less difficulty is the logit of a right answer."""
    data = np.load(folder / "inference_gym_data.npz")
    student, question = (
        torch.tensor(data[f"irt_{name}_ids"]).long() for name in ("student", "question")
    )
    sign = 2.0 * torch.tensor(data["irt_correct"]).to(F64) - 1

    def log_density(x: Tensor) -> Tensor:
        a, c, q = x[:, :1], x[:, 1:401], x[:, 401:]
        logits = a + c[:, student] - q[:, question]
        prior = normal(a, 0.75, 1.0).sum(-1) - 0.5 * (c.square().sum(-1) + q.square().sum(-1))
        return prior + logsigmoid(sign * logits).sum(-1)

    names = "mean_student_ability", "centered_student_ability", "question_difficulty"
    moments = reference(folder, "synthetic_item_response_theory", *names)
    return Target(log_density, 501, lambda x: x, *moments)


def brownian_motion(folder: Path) -> Target:
    """A random walk with a gap in its observations and both scales unknown."""
    data = np.load(folder / "inference_gym_data.npz")
    y = torch.tensor(data["brownian_observed_locs"]).to(F64)
    seen = ~torch.isnan(y)

    def log_density(x: Tensor) -> Tensor:
        log_q, log_r, path = x[:, 0], x[:, 1], x[:, 2:]
        steps = torch.cat([path[:, :1], path.diff(dim=1)], 1)
        walk = normal(steps, 0.0, log_q.exp().unsqueeze(1)).sum(-1)
        fit = normal(y[seen], path[:, seen], log_r.exp().unsqueeze(1)).sum(-1)
        return walk + fit + normal(log_q, 0.0, 2.0) + normal(log_r, 0.0, 2.0)

    name = "brownian_motion_unknown_scales_missing_middle_observations"
    parts = "innovation_noise_scale", "observation_noise_scale", "locs"
    return Target(
        log_density,
        32,
        lambda x: torch.cat([x[..., :2].exp(), x[..., 2:]], -1),
        *reference(folder, name, *parts),
    )


def autoregression(shock: Tensor, share: Tensor) -> Tensor:
    """``h_t = share h_(t-1) + shock_t`` for shocks ``[..., T]``, by doubling."""
    found, power, lag = shock, share, 1
    while lag < shock.shape[-1]:
        before = torch.nn.functional.pad(found[..., :-lag], (lag, 0))
        found, power, lag = found + power * before, power.square(), 2 * lag
    return found


def volatilities(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Persistence, mean, scale ``[..., 1]`` and log volatilities, from coordinates."""
    p, m, s, shock = 2 * x[..., :1].sigmoid() - 1, x[..., 1:2], x[..., 2:3].exp(), x[..., 3:]
    first = shock[..., :1] / (1 - p.square()).sqrt()
    return p, m, s, m + s * autoregression(torch.cat([first, shock[..., 1:]], -1), p)


def stochastic_volatility(folder: Path) -> Target:
    """Log volatilities of 2516 days as an autoregression, in terms of its shocks."""
    prices = torch.tensor(np.load(folder / "inference_gym_data.npz")["sp500_closing_prices"])
    returns = prices.to(F64).log().diff()
    returns = returns - returns.mean()

    def log_density(x: Tensor) -> Tensor:
        share, shock = x[:, 0], x[:, 3:]
        _, m, s, h = volatilities(x)
        prior = 20 * logsigmoid(share) + 1.5 * logsigmoid(-share) + x[:, 2]
        prior = prior - torch.log1p((m[:, 0] / 5).square()) - torch.log1p((s[:, 0] / 2).square())
        fit = -0.5 * returns.square() * (-h).exp() - 0.5 * h
        return prior - 0.5 * shock.square().sum(-1) + fit.sum(-1)

    parts = (
        "persistence_of_volatility",
        "mean_log_volatility",
        "white_noise_shock_scale",
        "log_volatility",
    )

    def quantities(x: Tensor) -> Tensor:
        return torch.cat(volatilities(x), -1)

    moments = reference(folder, "stochastic_volatility_log_sp500", *parts)
    return Target(log_density, 2519, quantities, *moments)


TARGETS = {
    "brownian motion": brownian_motion,
    "item response": item_response,
    "stochastic volatility": stochastic_volatility,
}


def error(target: Target, particles: Tensor) -> float:
    """The largest squared error of a second moment, in units of the variance of the square."""
    found = target.quantities(particles).square().mean((0, 1))
    expected = target.mean.square() + target.std.square()
    variance = 2 * target.std**4 + 4 * target.mean.square() * target.std.square()
    return float(((found - expected).square() / variance).max())


def one(name: str, folder: Path, chains: int, seed: int) -> dict[str, Any]:
    target = TARGETS[name](folder)
    potential = pvi.from_log_density(target.log_density, target.size, vectorized=True, dtype=F64)

    def good(look: pvi.running.Look) -> str | None:
        if look.num_draws < 4:
            return None
        return "the error" if error(target, look.draws().particles) < 0.01 else None

    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = pvi.sample(
            potential,
            num_particles=chains,
            num_draws=20000 if target.size < 1000 else 12000,
            seed=seed,
            monitor=pvi.running.Every(20, good),
            progress=False,
        )
    step = chains * draws.attrs["gradients_per_step"]
    start = draws.attrs["tuning"]["start_gradients"]
    warm = draws.attrs["num_warmup"] * step
    return {
        "target": name,
        "seed": seed,
        "chains": chains,
        "sampler": draws.attrs["sampler"],
        "reached": draws.attrs["ended_by"] == "the error",
        "start": start,
        "warm-up": warm,
        "after": draws.num_steps * step - warm,
        "total": start + draws.num_steps * step,
        "error": error(target, draws.particles),
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--log", type=Path, default=Path("inference_gym.jsonl"))
    options = parser.parse_args()
    for name in options.targets:
        rows = []
        for seed in range(options.seeds):
            rows.append(one(name, options.folder, options.chains, seed))
            with options.log.open("a") as log:
                log.write(json.dumps(rows[-1]) + "\n")
        reached = all(row["reached"] for row in rows)
        total, after = (
            float(np.median([row[key] for row in rows])) if reached else math.nan
            for key in ("total", "after")
        )
        print(
            f"{name:22} {rows[0]['sampler']:16} gradients {total:.0f}, after the warm-up "
            f"{after:.0f}; published unadjusted, adjusted, NUTS, all after the tuning: "
            f"{PUBLISHED[name]}, tuning of the first {TUNING[name]}"
        )


if __name__ == "__main__":
    main()
