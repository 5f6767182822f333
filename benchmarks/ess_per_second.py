"""Effective sample size per second beside posteriors and blackjax.

    python benchmarks/ess_per_second.py --data ../shared/data        # about 8 minutes on 2 cores
    python benchmarks/ess_per_second.py --write docs/langevin.md
    python benchmarks/ess_per_second.py --check                      # conventions, on a Gaussian

Equal work: one model, prior, minibatch size, step size and friction, and the same number of chains
and gradients for all; every chain starts at a draw of the reference posterior. ESS is ArviZ's bulk
ESS, the smallest over the functionals; seconds are those of the sampling, minibatches and storage
included, compilation not. Repetitions have seeds of their own and are interleaved.

A chain that is wrong can still move fast: means and standard deviations of all functionals are
compared with a long run of full-batch HMC, which is compared with published values where there are
some. With minibatches all libraries share the bias of the gradient noise.

Models: logistic regression on German credit (25 parameters), and a net with one hidden layer on
Boston housing (13-50-1, 751 parameters), from ``--data`` or the environment variable
``PARTICLEVI_DATA``; without them scikit-learn's breast cancer and diabetes. The net is judged by
its outputs, its log posterior and the norms of its tensors: its hidden units can be exchanged.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _page import write
from _peers import LIBRARIES, Method, Model, Run
from torch import Tensor

import particlevi as pvi
from particlevi.diagnostics import arviz

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Row:
    """A method, its minibatches and its work: ``num_draws * thin`` steps."""

    title: str
    method: Method
    batch_size: int | None
    num_draws: int
    thin: int
    libraries: tuple[str, ...] = tuple(LIBRARIES)
    cooler: Method | None = None
    """For blackjax, whose SGHMC keeps a minibatch for ten steps and so is heated ten times more."""

    def runs(self, model: Model) -> dict[str, Run]:
        made = {
            name: LIBRARIES[name](model, self.method, self.batch_size) for name in self.libraries
        }
        if self.cooler is not None:
            run = LIBRARIES["blackjax"](model, self.cooler, self.batch_size)
            made[f"blackjax, h = {self.cooler.step_size:g}"] = run
        return made


@dataclass(frozen=True, eq=False)
class Task:
    """A posterior, what is asked of it, and how it is sampled."""

    name: str
    model: Model
    functionals: Callable[[Tensor], Array]
    reference: tuple[Method, int]
    rows: list[Row]
    published: Array | None = None
    start: Tensor = field(default_factory=lambda: torch.empty(0))


def log_posterior(model: Model, particles: Tensor) -> Tensor:
    """Of draws ``[P, T, D]``, up to a constant, in pieces that fit."""
    potential, flat = model.potential(), particles.flatten(0, 1)
    with torch.no_grad():
        parts = [potential(part, pvi.typing.Batch((model.x, model.y))) for part in flat.split(200)]
    return -torch.cat(parts).view(particles.shape[:2])


def credit(folder: Path) -> Task:
    path = folder / "classification" / "german_credit_numeric.npz"
    published = None
    if path.exists():
        raw, name = np.load(path), "logistic regression, German credit"
        x, y = raw["x"], raw["y"]
        truth = folder / "inference_gym" / "german_credit_numeric_logistic_regression.json"
        if truth.exists():
            found = json.loads(truth.read_text())["value"]
            published = np.array([found[k] for k in ("mean", "std", "mean_standard_error")])
    else:
        from sklearn.datasets import load_breast_cancer

        loaded, name = load_breast_cancer(), "logistic regression, breast cancer"
        x, y = loaded.data, loaded.target
    x = torch.as_tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    y = torch.as_tensor(y, dtype=torch.float32).unsqueeze(1)
    model = Model(x, y, (x.shape[1], 1), noise=None)

    def functionals(particles: Tensor) -> Array:
        logits = particles[..., :-1] @ x[::50].T + particles[..., -1:]
        parts = [particles, log_posterior(model, particles).unsqueeze(-1), logits.sigmoid()]
        return torch.cat(parts, dim=-1).double().numpy()

    rows = [
        Row("SGLD, batch 100", Method("sgld", 1e-4), 100, 200, 20),
        Row(
            "SGHMC (Euler), batch 100",
            Method("euler", 0.005, 50.0),
            100,
            200,
            20,
            cooler=Method("euler", 0.001, 0.01),
        ),
        Row(
            "BAOA, all data",
            Method("baoa", 0.05, 10.0),
            None,
            200,
            10,
            ("particlevi", "posteriors"),
        ),
        Row(
            "HMC, all data", Method("hmc", 0.05, steps=6), None, 200, 1, ("particlevi", "blackjax")
        ),
    ]
    return Task(name, model, functionals, (Method("hmc", 0.05, steps=6), 1000), rows, published)


def net(folder: Path) -> Task:
    path = folder / "uci_regression" / "bostonHousing.npz"
    if path.exists():
        raw, name = np.load(path), "net 13-50-1, Boston housing"
        rows, held = raw["train_idx"][0], raw["test_idx"][0]
        inputs, targets = raw["x"], raw["y"]
    else:
        from sklearn.datasets import load_diabetes

        raw, name = load_diabetes(), "net 10-50-1, diabetes"
        order = np.random.default_rng(0).permutation(len(raw.data))
        rows, held = order[44:], order[:44]
        inputs, targets = raw.data, raw.target
    rows, held = rows.astype(np.int64), held.astype(np.int64)
    x = (inputs - inputs[rows].mean(0)) / inputs[rows].std(0)
    y = (targets - targets[rows].mean()) / targets[rows].std()
    x, y = (torch.as_tensor(a, dtype=torch.float32) for a in (x, y[:, None]))
    model = Model(x[rows], y[rows], (x.shape[1], 50, 1), noise=0.5, prior_scale=0.2)
    potential, probes = model.potential(), x[held[:20]]

    def functionals(particles: Tensor) -> Array:
        with torch.no_grad():
            parts = [potential.outputs(p, pvi.typing.Batch(probes))[..., 0] for p in particles]
        norms = [part.square().sum(-1) for part in particles.split(potential.layout.sizes, dim=-1)]
        norms.append(log_posterior(model, particles))
        return torch.cat([torch.stack(parts), torch.stack(norms, dim=-1)], -1).double().numpy()

    table = [
        Row("SGLD, batch 32", Method("sgld", 4e-5), 32, 200, 30),
        Row(
            "SGHMC (Euler), batch 32",
            Method("euler", 0.004, 100.0),
            32,
            200,
            30,
            cooler=Method("euler", 0.0008, 0.01),
        ),
        Row(
            "BAOA, batch 32", Method("baoa", 0.003, 40.0), 32, 200, 30, ("particlevi", "posteriors")
        ),
    ]
    return Task(name, model, functionals, (Method("hmc", 0.012, steps=40), 200), table)


TASKS = {"credit": credit, "net": net}


class Reference:
    """Means, standard deviations and Monte-Carlo errors of a task's functionals, by HMC."""

    def __init__(self, task: Task, chains: int):
        method, num_draws = task.reference
        start = pvi.sample(
            pvi.sghmc(task.model.potential(), 50.0),
            data=(task.model.x, task.model.y),
            batch_size=100,
            step_size=0.25 * method.step_size,
            num_particles=chains,
            num_draws=1,
            thin=2000,
            progress=False,
        ).particles[:, -1]
        run = LIBRARIES["particlevi"](task.model, method, None)
        draws, seconds = run(start, num_draws + num_draws // 4, 1, 0)
        self.draws = draws[:, num_draws // 4 :]
        self.start = self.draws[:, -1].clone()
        values = task.functionals(self.draws)
        self.mean, self.sd = values.mean((0, 1)), values.std((0, 1))
        self.error = arviz.mcse(values)
        print(
            f"\n{task.name}: reference by HMC, {num_draws} draws of {chains} chains in "
            f"{seconds:.0f} s, ESS at least {np.min(arviz.ess(values)):.0f}, "
            f"R-hat at most {np.max(arviz.rhat(values)):.3f}"
        )
        if task.published is not None:
            mean, sd, error = task.published
            own = slice(0, len(mean))
            z = (self.mean[own] - mean) / np.hypot(self.error[own], error)
            ratio = self.sd[own] / sd
            print(
                f"against the published values: |z| of means at most {abs(z).max():.1f}, "
                f"ratio of standard deviations {ratio.min():.3f} to {ratio.max():.3f}"
            )


def measure(task: Task, row: Row, reference: Reference, repetitions: int) -> dict[str, Any]:
    """Per library: ESS per second and gradients per second per repetition, and its errors."""
    runs = row.runs(task.model)
    for run in runs.values():
        run(reference.start, row.num_draws, row.thin, 0)
    rates: dict[str, list[float]] = {name: [] for name in runs}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    pooled: dict[str, list[Array]] = {name: [] for name in runs}
    work = len(reference.start) * row.num_draws * row.thin * row.method.gradients
    for seed in range(1, repetitions + 1):
        for name, run in runs.items():
            draws, seconds = run(reference.start, row.num_draws, row.thin, seed)
            values = task.functionals(draws)
            rates[name].append(float(np.min(arviz.ess(values))) / seconds)
            speeds[name].append(work / seconds)
            pooled[name].append(values[:, row.num_draws // 4 :])
    found = {}
    for name in runs:
        values = np.concatenate(pooled[name])
        away = values.mean((0, 1)) - reference.mean
        z = away / np.hypot(arviz.mcse(values), reference.error)
        ratio = values.std((0, 1)) / reference.sd
        found[name] = {
            "ess": rates[name],
            "gradients": speeds[name],
            "z": float(abs(z).max()),
            "mean": float(abs(away / reference.sd).max()),
            "sd": (float(ratio.min()), float(ratio.max())),
        }
    return found


def spread(values: list[float], form: str = "{:.1f}") -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{form.format(middle)} [{form.format(low)}, {form.format(high)}]"


def off(row: dict[str, Any]) -> float:
    """The largest relative error of a standard deviation."""
    return max(abs(ratio - 1) for ratio in row["sd"])


HEAD = (
    "| sampler | library | ESS per second | gradients per second | mean off by (sd) | |z| | "
    "sd, relative |\n|---|---|---|---|---|---|---|"
).replace("|z|", "\\|z\\|")


def report(results: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """The table, and the ratio to the better peer of each repetition.

    What is off by more than twice as much, plus a tenth in standard deviations or 0.2 in means, is
    shown but no peer: it moves faster because it samples something wider.
    """
    lines, ratios = [HEAD], ["| sampler | particlevi / better peer |", "|---|---|"]
    for title, found in results.items():
        for name, row in found.items():
            low, high = row["sd"]
            lines.append(
                f"| {title} | {name} | {spread(row['ess'])} "
                f"| {statistics.median(row['gradients']):,.0f} | {row['mean']:.2f} "
                f"| {row['z']:.1f} | {low:.2f} to {high:.2f} |"
            )
        own = found["particlevi"]
        peers = {
            name: row["ess"]
            for name, row in found.items()
            if name != "particlevi"
            and off(row) <= 2 * off(own) + 0.1
            and row["mean"] <= 2 * own["mean"] + 0.2
        }
        if not peers:
            ratios.append(f"| {title} | no peer is as near to the posterior |")
            continue
        better = max(peers, key=lambda n: statistics.median(peers[n]))
        pairs = zip(found["particlevi"]["ess"], peers[better], strict=True)
        cell = spread([a / b for a, b in pairs], "{:.2f}")
        ratios.append(f"| {title} | {cell} ({better}) |")
    return "\n".join(lines), "\n".join(ratios)


def check() -> None:
    """Stationary variances on a Gaussian with one curvature, beside each method's exact law."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.cat([torch.ones(60, 1), torch.randn(60, 4)], dim=1))[0]
    model = Model(basis[:, 1:] * 60**0.5, torch.randn(60, 1), (4, 1), noise=1.0)
    curvature = 61.0
    a, e = 0.5, 0.05**2 * curvature
    laws = {
        Method("sgld", 0.01): 1 / (1 - 0.005 * curvature),
        Method("euler", 0.05, 10.0): 2 * a * (2 - a + e) / ((a - e) * (4 - 2 * a + e)),
        Method("baoa", 0.1, 5.0): 1.0,
        Method("hmc", 0.1): 1.0,
    }
    for method, law in laws.items():
        for name, library in LIBRARIES.items():
            if (name, method.name) in {("posteriors", "hmc"), ("blackjax", "baoa")}:
                continue
            draws, _ = library(model, method, None)(torch.zeros(400, 5), 200, 10, 0)
            kept = draws[:, 20:]
            found = float((kept - kept.mean((0, 1))).square().mean()) * curvature
            print(f"{method.name:6} {name:11} variance {found:.4f}, law {law:.4f}", flush=True)
    print("The law of euler is that of momenta which last; blackjax draws new ones every 10 steps.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("PARTICLEVI_DATA", "../shared/data"))
    parser.add_argument("--only", choices=list(TASKS))
    parser.add_argument("--chains", type=int, default=20)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch threads; all cores if absent")
    parser.add_argument("--write", type=Path, help="a page with a section ess_per_second")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.check:
        check()
        raise SystemExit
    began, page = time.perf_counter(), []
    for key in [options.only] if options.only else list(TASKS):
        task = TASKS[key](Path(options.data))
        reference = Reference(task, options.chains)
        results = {}
        for row in task.rows:
            results[row.title] = measure(task, row, reference, options.repetitions)
            print(report({row.title: results[row.title]})[0], flush=True)
        page += [f"**{task.name}**", *report(results)]
    text = "\n\n".join(page)
    print(f"\n{text}\n\n{time.perf_counter() - began:.0f} s")
    if options.write:
        write(options.write, {"ess_per_second": text})
