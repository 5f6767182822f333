"""Twenty seeds of ten hard targets with bad starts: right, or said not to be?

    python benchmarks/robustness.py [--targets funnel bimodal] [--seeds 0 20] [--log FILE]

Nothing is given but the potential, 16 chains and, in three seeds of four, bad starting points:
far (uniform in +-1000 times the law's own width at widest), all at one far point, or all within
1e-6 of each other. Every law has independent draws: a run is *right* if the share of its draws
below each of five quantiles of each quantity agrees with theirs, by .05 or by |z| < 5 and .15. A
run *says so* if it warns, or if ``diagnose`` finds something. What is neither is silently wrong,
and there should be none. Runs end at ESS 400 and R-hat 1.01, or after 3000 steps.

Parts of the study run apart: each run is a line of JSON in the log, and one that is there already
is not made again.
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

import particlevi as pvi
from particlevi.diagnostics import arviz

F64 = torch.float64
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
STARTS = ("default", "far", "one far point", "one point")


class Law(NamedTuple):
    """A density with independent draws.

    Attributes:
        density: ``[S, D] -> [S]``, up to a constant.
        size: D.
        draw: ``(number, generator) -> [number, D]``.
        width: the largest scale of the law.
        quantities: ``[..., D] -> [..., K]``, what is looked at.
        positive: starts must be positive.
    """

    density: Callable[[Tensor], Tensor]
    size: int
    draw: Callable[[int, torch.Generator], Tensor]
    width: float = 1.0
    quantities: Callable[[Tensor], Tensor] = lambda x: x
    positive: bool = False


def normal(number: int, size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(number, size, generator=generator, dtype=F64)


def scales() -> Law:
    """Correlated, with scales from 1e-3 to 1e3."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(normal(6, 6, generator)).Q
    inner = torch.linalg.cholesky(
        rotation @ torch.logspace(-1, 1, 6, dtype=F64).diag() @ rotation.T
    )
    root = torch.logspace(-3, 3, 6, dtype=F64).unsqueeze(1) * inner
    inverse = torch.linalg.inv(root)
    return Law(
        lambda x: -0.5 * (x @ inverse.T).square().sum(-1),
        6,
        lambda n, g: normal(n, 6, g) @ root.T,
        1e3,
        lambda x: torch.cat([x, x @ inverse.T], -1),
    )


def regression() -> Law:
    """Raw columns with scales from 1e-3 to 1e3, noise unknown: normal and inverse gamma."""
    generator = torch.Generator().manual_seed(1)
    x = normal(60, 4, generator) * torch.tensor([1e-3, 0.1, 10.0, 1e3], dtype=F64)
    truth = torch.tensor([2e2, -5.0, 0.05, 1e-3], dtype=F64)
    y = x @ truth + 0.5 * normal(60, 1, generator)[:, 0]
    precision = x.T @ x + 1e-6 * torch.eye(4, dtype=F64)
    mean = torch.linalg.solve(precision, x.T @ y)
    shape, rate = 2.0 + 30, 0.5 + 0.5 * (y @ y - mean @ precision @ mean)
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))

    def density(theta: Tensor) -> Tensor:
        beta, log_sigma = theta[:, :4], theta[:, 4]
        variance = (2 * log_sigma).exp()
        inner = ((beta - mean) @ precision * (beta - mean)).sum(-1)
        return -(rate + 0.5 * inner) / variance - (2 * shape + 4) * log_sigma

    def draw(number: int, g: torch.Generator) -> Tensor:
        gamma = torch._standard_gamma(torch.full((number,), shape, dtype=F64), generator=g)
        sigma = (rate / gamma).sqrt()
        beta = mean + sigma.unsqueeze(1) * (normal(number, 4, g) @ factor.T)
        return torch.cat([beta, sigma.log().unsqueeze(1)], 1)

    return Law(density, 5, draw)


def student() -> Law:
    """Independent, three degrees of freedom."""

    def draw(number: int, g: torch.Generator) -> Tensor:
        shape = torch.full((number, 4), 1.5, dtype=F64)
        return normal(number, 4, g) / (torch._standard_gamma(shape, generator=g) / 1.5).sqrt()

    return Law(lambda x: -2 * torch.log1p(x.square() / 3).sum(-1), 4, draw)


def funnel(size: int, scale: float) -> Law:
    """Neal's."""

    def density(x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        inner = -0.5 * rest.square().sum(-1) * (-v).exp()
        return -0.5 * (v / scale).square() + inner - 0.5 * (size - 1) * v

    def draw(number: int, g: torch.Generator) -> Tensor:
        z = normal(number, size, g)
        v = scale * z[:, :1]
        return torch.cat([v, (0.5 * v).exp() * z[:, 1:]], 1)

    return Law(density, size, draw)


def modes(share: float, distance: float, width: float) -> Law:
    """``share N(0, I) + (1 - share) N(distance, width^2 I)`` in two dimensions."""

    def density(x: Tensor) -> Tensor:
        one = math.log(share) - 0.5 * x.square().sum(-1)
        other = -0.5 * ((x - distance) / width).square().sum(-1) - 2 * math.log(width)
        return torch.logaddexp(one, math.log(1 - share) + other)

    def draw(number: int, g: torch.Generator) -> Tensor:
        z = normal(number, 2, g)
        first = torch.rand(number, 1, generator=g, dtype=F64) < share
        return torch.where(first, z, distance + width * z)

    return Law(density, 2, draw)


def banana() -> Law:
    """Rosenbrock's."""

    def draw(number: int, g: torch.Generator) -> Tensor:
        z = normal(number, 2, g)
        x = 1 + z[:, :1]
        return torch.cat([x, x.square() + 0.1 * z[:, 1:]], 1)

    def density(x: Tensor) -> Tensor:
        return -0.5 * (100 * (x[:, 1] - x[:, 0].square()).square() + (1 - x[:, 0]).square())

    return Law(density, 2, draw)


def half_line() -> Law:
    """Gamma variates as they are: NaN below zero."""
    rate = torch.tensor([1e-2, 1.0, 1e2], dtype=F64)

    def draw(number: int, g: torch.Generator) -> Tensor:
        return torch._standard_gamma(torch.full((number, 3), 3.0, dtype=F64), generator=g) / rate

    return Law(lambda x: (2 * x.log() - rate * x).sum(-1), 3, draw, positive=True)


def large() -> Law:
    """600 dimensions, scales from 1e-2 to 1e2: sampled without a Metropolis test."""
    scale = torch.logspace(-2, 2, 600, dtype=F64)
    return Law(
        lambda x: -0.5 * (x / scale).square().sum(-1),
        600,
        lambda n, g: scale * normal(n, 600, g),
        1e2,
        lambda x: torch.cat([x[..., ::60], (x / scale).square().sum(-1, keepdim=True)], -1),
    )


LAWS: dict[str, Callable[[], Law]] = {
    "scales": scales,
    "regression": regression,
    "student": student,
    "funnel": lambda: funnel(3, 1.5),
    "deep funnel": lambda: funnel(10, 3.0),
    "two modes": lambda: modes(0.5, 8.0, 1.0),
    "narrow mode": lambda: modes(0.5, 3.0, 0.3),
    "banana": banana,
    "half line": half_line,
    "large": large,
}


def start(law: Law, seed: int, chains: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(seed)
    kind = STARTS[seed % 4]
    if kind == "default":
        return None if not law.positive else normal(chains, law.size, generator).abs()
    points = 1e3 * law.width * (2 * torch.rand(chains, law.size, generator=generator) - 1)
    if kind == "one far point":
        points = points[:1].repeat(chains, 1)
    if kind == "one point":
        points = 1e-6 * points / law.width / 1e3
    return (points.abs() if law.positive else points).double()


def judge(law: Law, draws: pvi.Draws, truth: Tensor) -> tuple[float, float]:
    """Of the shares below quantiles, the largest |z| of differences above .05, and the largest."""
    found, exact = law.quantities(draws.particles), law.quantities(truth)
    worst, size = 0.0, 0.0
    for level in LEVELS:
        below = (found <= exact.quantile(level, dim=0)).double()
        difference = below.mean((0, 1)) - level
        ess = np.maximum(np.nan_to_num(arviz.ess(below.numpy(), method="mean"), nan=1.0), 1.0)
        ess = np.minimum(ess, below.shape[0] * below.shape[1])
        error = math.sqrt(level * (1 - level)) * torch.tensor(1 / ess + 1 / len(truth)).sqrt()
        z = (difference / error).abs()
        size = max(size, float(difference.abs().max()))
        worst = max(worst, float((z * (difference.abs() > 0.05)).max()))
    return worst, size


def one(name: str, seed: int, chains: int = 16) -> dict[str, Any]:
    law = LAWS[name]()
    truth = law.draw(20000, torch.Generator().manual_seed(1000 + seed))
    potential = pvi.from_log_density(law.density, law.size, vectorized=True, dtype=F64)
    until = [pvi.running.converged(), pvi.running.Every(3000, lambda look: "3000 steps")]
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        initial = start(law, seed, chains)
        given = {"num_particles": chains} if initial is None else {"initial": initial}
        try:
            draws = pvi.sample(potential, seed=seed, progress=False, monitor=until, **given)
        except Exception as error:  # a refusal says so
            return {"target": name, "seed": seed, "right": False, "says": [repr(error)[:200]]}
    kinds = [f.kind for f in draws.diagnose(verbose=False).findings]
    z, size = judge(law, draws, truth)
    return {
        "target": name,
        "seed": seed,
        "start": STARTS[seed % 4],
        "right": z < 5 and size < 0.15,
        "says": [str(w.message)[:120] for w in told] + kinds,
        "z": z,
        "size": size,
        "ended_by": draws.attrs["ended_by"],
        "sampler": draws.attrs["sampler"],
        "rhat": float(np.nanmax(draws.rhat())),
        "ess": float(np.nanmin(draws.ess())),
        "steps": draws.num_steps,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="*", default=list(LAWS))
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 20), metavar=("FROM", "TO"))
    parser.add_argument("--log", type=Path, default=Path("robustness.jsonl"))
    options = parser.parse_args()
    lines = options.log.read_text().splitlines() if options.log.exists() else []
    done = {(row["target"], row["seed"]): row for row in map(json.loads, lines)}
    for seed in range(*options.seeds):
        for name in options.targets:
            if (name, seed) not in done:
                done[name, seed] = one(name, seed)
                with options.log.open("a") as log:
                    log.write(json.dumps(done[name, seed]) + "\n")
    silent = 0
    for name in LAWS:
        rows = [row for (target, _), row in done.items() if target == name]
        right = sum(row["right"] for row in rows)
        quiet = [row["seed"] for row in rows if not row["right"] and not row["says"]]
        false = sum(row["right"] and bool(row["says"]) for row in rows)
        silent += len(quiet)
        print(
            f"{name:12} {len(rows):3} runs, {right:3} right ({false} of them warned), "
            f"silently wrong: {quiet or 'none'}"
        )
    print(f"{len(done)} runs, {silent} silently wrong")


if __name__ == "__main__":
    main()
