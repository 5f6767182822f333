"""Structured SG-MCMC beside the plain samplers: what a step costs, and what it buys.

    python benchmarks/structured.py cost --write docs/structured.md
    python benchmarks/structured.py study --seconds 10   # about 12 minutes on 2 cores
    python benchmarks/structured.py study --write docs/structured.md --figures docs/figures

``cost``: a dropout step with L masks against a plain step on L P particles, and a structured step
with M groups against a plain one on M P, through ``pvi.sample``: the drawing of minibatches, masks
and historical values, the step and the recording are all in the time, compilation is not.
Repetitions are interleaved; medians and quartiles of the paired ratios are printed.

``study``: one net on MNIST and one on a UCI regression set, by SGLD, pSGLD and SGHMC, each plain,
structured by layer, and with dropout at three keep rates; the same wall-clock time for every run,
from the same starting points near the mode. A run that loses a chain is left out of the means and
counted in the table. Data are looked for in ``--data`` or the environment
variable ``PARTICLEVI_DATA``; without them scikit-learn's digits and diabetes take their places.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import multiprocessing
import os
import statistics
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _page import write
from torch import Tensor, nn

import particlevi as pvi
from particlevi.diagnostics import arviz
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

CHAINS = 4
NOISE = 0.3
METHODS = ["plain", "structured", "dropout 0.1", "dropout 0.5", "dropout 0.9"]
SAMPLERS = ["sgld", "psgld", "sghmc"]


class Task(NamedTuple):
    """A data set and the potential on it."""

    name: str
    potential: Any
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    batch_size: int
    step_sizes: dict[str, float]
    friction: float
    scale: float
    """Of a target's unit: errors and densities are reported in the data's own."""


def data_folder(given: str | None) -> Path:
    return Path(given or os.environ.get("PARTICLEVI_DATA", "../shared/data"))


def classification(folder: Path, seed: int) -> Task:
    """MNIST: 10 000 training images, 784-20-10."""
    generator = torch.Generator().manual_seed(seed)
    if (folder / "mnist.npz").exists():
        raw, name = np.load(folder / "mnist.npz"), "MNIST"
        x, y = raw["x_train"], raw["y_train"]
        x_test, y_test = raw["x_test"][::5], raw["y_test"][::5]
        chosen = torch.randperm(len(x), generator=generator)[:10_000].numpy()
        x, y, top = x[chosen], y[chosen], 255.0
    else:
        from sklearn.datasets import load_digits

        raw, name, top = load_digits(), "digits", 16.0
        order = torch.randperm(len(raw.data), generator=generator).numpy()
        x, y = raw.data[order[400:]], raw.target[order[400:]]
        x_test, y_test = raw.data[order[:400]], raw.target[order[:400]]

    def tensors(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        pixels = torch.as_tensor(np.asarray(images, dtype=np.float32) / top).flatten(1)
        return (pixels - 0.13) / 0.31, torch.as_tensor(np.asarray(labels, dtype=np.int64))

    train, test = tensors(x, y), tensors(x_test, y_test)
    net = nn.Sequential(nn.Linear(train[0].shape[1], 20), nn.ReLU(), nn.Linear(20, 10))
    prior = pvi.Normal(2.0, fan_in=True)
    potential = pvi.from_module(net, pvi.Categorical(), prior, num_data=len(train[0]))
    steps = {"sgld": 5e-6, "psgld": 1e-7, "sghmc": 1e-3}
    return Task(name, potential, train, test, 100, steps, 200.0, 1.0)


def regression(folder: Path, seed: int) -> Task:
    """Concrete strength: 927 training data, 8-50-1, standardised, noise 0.3 of a target's sd."""
    path = folder / "uci_regression" / "concrete.npz"
    if path.exists():
        raw, name = np.load(path), "concrete"
        train_index, test_index = raw["train_idx"][seed], raw["test_idx"][seed]
        inputs, targets = raw["x"], raw["y"]
    else:
        from sklearn.datasets import load_diabetes

        raw, name = load_diabetes(), "diabetes"
        order = np.random.default_rng(seed).permutation(len(raw.data))
        train_index, test_index = order[44:], order[:44]
        inputs, targets = raw.data, raw.target
    x = torch.as_tensor(inputs, dtype=torch.float32)
    y = torch.as_tensor(targets, dtype=torch.float32).unsqueeze(1)
    rows = torch.as_tensor(train_index.astype(np.int64))
    held = torch.as_tensor(test_index.astype(np.int64))
    mean, sd = x[rows].mean(0), x[rows].std(0)
    middle, unit = y[rows].mean(), y[rows].std()
    x, y = (x - mean) / sd, (y - middle) / unit
    net = nn.Sequential(nn.Linear(x.shape[1], 50), nn.Tanh(), nn.Linear(50, 1))
    prior = pvi.Normal(1.0, fan_in=True)
    potential = pvi.from_module(net, pvi.Gaussian(scale=NOISE), prior, num_data=len(rows))
    steps = {"sgld": 8e-6, "psgld": 1e-6, "sghmc": 2e-3}
    return Task(
        name, potential, (x[rows], y[rows]), (x[held], y[held]), 100, steps, 250.0, float(unit)
    )


TASKS = {"classification": classification, "regression": regression}


def target(potential: Any, method: str, history: pvi.gradients.history) -> Any:
    if method == "plain":
        return potential
    if method == "structured":
        return pvi.structured(potential, "layer", history=history)
    keep = float(method.split()[1])
    return pvi.structured_dropout(potential, "layer", keep, num_masks=4, history=history)


def make_sampler(name: str, task: Task, aim: Any) -> Any:
    options = {"friction": task.friction} if name == "sghmc" else {}
    return getattr(pvi, name)(aim, **options)


@functools.lru_cache(maxsize=1)
def prepared(name: str, folder: str, seed: int, mode_steps: int) -> tuple[Task, Tensor]:
    """The task and its starting points, made once per process and shared by its runs."""
    task = TASKS[name](Path(folder), seed)
    return task, near_the_mode(task, seed, mode_steps)


def near_the_mode(task: Task, seed: int, steps: int) -> Tensor:
    """Adam on the minibatch potential from the module's own initialisation, per chain."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    streams = ParticleStreams(seed)
    particles = task.potential.init(CHAINS, streams).requires_grad_()
    optimizer = torch.optim.Adam([particles], lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(task.train[0]), (task.batch_size,), generator=generator)
        optimizer.zero_grad()
        task.potential(particles, Batch(tuple(leaf[rows] for leaf in task.train))).sum().backward()
        optimizer.step()
    return particles.detach()


# --- the study ---------------------------------------------------------------------------------


def one_run(job: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    task, start = prepared(job["task"], job["data"], job["seed"], job["mode_steps"])
    step = seconds_per_step(job["task"], job["data"], job["sampler"], job["method"])
    steps = max(100, int(job["seconds_asked"] / step))
    warmup = steps // 4
    thin = max(1, (steps - warmup) // job["draws"])
    half = pvi.gradients.history(capacity=200, thin=max(1, steps // 400), after=warmup // 2)
    sampler = make_sampler(job["sampler"], task, target(task.potential, job["method"], half))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(ValueError):  # too short for a history, but it compiles
                run(task, sampler, job["sampler"], start, 0, 1, 5, job["seed"])
            kept = (steps - warmup) // thin
            draws = run(task, sampler, job["sampler"], start, warmup, kept, thin, job["seed"])
        lost = len(draws.diverged)
    except pvi.DivergenceError:
        lost = CHAINS
    row = {**job, "data": task.name, "diverged": lost}
    if lost:
        return row
    return {**row, "steps": steps, **measures(task, draws, thin, job["seed"])}


@functools.cache
def seconds_per_step(name: str, folder: str, sampler: str, method: str) -> float:
    """Measured once per process; the first call compiles."""
    task = TASKS[name](Path(folder), 0)
    memory = pvi.gradients.history(capacity=200)
    made = make_sampler(sampler, task, target(task.potential, method, memory))
    start = 0.01 * task.potential.init(CHAINS, ParticleStreams(0))
    run(task, made, sampler, start, 0, 1, 5, 0)
    few = run(task, made, sampler, start, 0, 1, 200, 0).seconds / 200
    many = 200 + int(1 / few)
    return run(task, made, sampler, start, 0, 1, many, 0).seconds / many


def run(
    task: Task,
    sampler: Any,
    name: str,
    start: Tensor,
    warmup: int,
    num_draws: int,
    thin: int,
    seed: int,
) -> pvi.Draws:
    return pvi.sample(
        sampler,
        task.train,
        step_size=task.step_sizes[name],
        batch_size=task.batch_size,
        initial=start,
        num_warmup=warmup,
        num_draws=num_draws,
        thin=thin,
        seed=seed,
        compile=True,
        progress=False,
    )


def measures(task: Task, draws: pvi.Draws, thin: int, seed: int) -> dict[str, float]:
    """ESS within chains, and the quality of joint and recombined predictions."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randperm(draws.particles.shape[-1], generator=generator)[:300]
    weights = within_chains(draws.particles[..., columns])
    probes = draws.outputs(task.test[0][:20])
    predictions = within_chains(probes.flatten(2))
    total = draws.particles.shape[0] * draws.particles.shape[1]
    found = {
        "seconds": draws.seconds,
        "ess_per_second": float(np.nanmedian(weights)) / draws.seconds,
        "prediction_ess_per_second": float(np.nanmedian(predictions)) / draws.seconds,
        "iac_steps": float(np.nanmedian(total / weights)) * thin,
        "prediction_iac_steps": float(np.nanmedian(total / predictions)) * thin,
        "prediction_r_hat": float(np.nanmedian(arviz.rhat(probes))),
    }
    every = max(1, draws.particles.shape[1] // 25)
    found |= scores(task, draws, every)
    mixed = draws.recombine(len(draws.flat(every)), "layer", seed=seed)
    found["recombined_nll"] = scores(task, mixed, 1)["nll"]
    return found


def within_chains(values: Tensor) -> np.ndarray:
    """ESS ``[K]`` of draws ``[P, T, K]``, chain by chain, summed: how fast a chain forgets itself.

    That of all chains together is about their number where they are in different modes.
    """
    return np.sum([arviz.ess(chain.unsqueeze(0), method="mean") for chain in values], axis=0)


def scores(task: Task, draws: pvi.Draws, thin: int) -> dict[str, float]:
    """Of the averaged predictive, in one pass over the draws."""
    x, y = task.test
    outputs = draws.outputs(x, thin=thin).flatten(0, 1).double()
    if y.ndim == 1:
        log_probs = outputs.log_softmax(-1).logsumexp(0) - math.log(len(outputs))
        confidence, label = log_probs.exp().max(-1)
        right = (label == y).double()
        nll = -float(log_probs.gather(1, y.unsqueeze(1)).mean())
        return {"error": 1 - float(right.mean()), "nll": nll, "ece": ece(confidence, right)}
    law = torch.distributions.Normal(outputs, NOISE)
    log_density = law.log_prob(y.double()).logsumexp(0) - math.log(len(outputs))
    level = law.cdf(y.double()).mean(0).flatten()
    wanted = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    covered = ((level - 0.5).abs().unsqueeze(1) * 2 <= wanted).double().mean(0)
    return {
        "error": float((outputs.mean(0) - y).square().mean().sqrt()) * task.scale,
        "nll": math.log(task.scale) - float(log_density.mean()),
        "ece": float((covered - wanted).abs().mean()),
    }


def ece(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error of the averaged predictive, bins of equal width."""
    which = (confidence * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, which, confidence.double() - right)
    return float(gap.abs().sum() / len(right))


COLUMNS = [
    ("ess_per_second", "ESS/s, weights", 1.0, "{:.2f}"),
    ("prediction_ess_per_second", "ESS/s, predictions", 1.0, "{:.2f}"),
    ("iac_steps", "IAC, weights (steps)", 1.0, "{:.0f}"),
    ("prediction_iac_steps", "IAC, predictions (steps)", 1.0, "{:.0f}"),
    ("prediction_r_hat", "R-hat, predictions", 1.0, "{:.2f}"),
    ("error", "error", 1.0, "{:.3f}"),
    ("nll", "NLL", 1.0, "{:.4f}"),
    ("recombined_nll", "NLL, recombined", 1.0, "{:.4f}"),
    ("ece", "ECE", 100.0, "{:.2f} %"),
    ("steps", "steps", 1.0, "{:.0f}"),
]


def table(results: list[dict[str, Any]]) -> str:
    grouped = defaultdict(list)
    for row in results:
        grouped[row["data"], row["sampler"], row["method"]].append(row)
    lines = []
    for data in dict.fromkeys(row["data"] for row in results):
        error = {"concrete": "RMSE", "diabetes": "RMSE"}.get(data, "test error")
        heads = [error if key == "error" else head for key, head, _, _ in COLUMNS]
        lines += ["", f"**{data}**", "", "| sampler | method | " + " | ".join(heads) + " |"]
        lines.append("|---" * (2 + len(heads)) + "|")
        for (name, sampler, method), rows in grouped.items():
            if name != data:
                continue
            whole = [row for row in rows if not row["diverged"]]
            lost = len(rows) - len(whole)
            what = f"{method} ({lost} of {len(rows)} diverged)" if lost else method
            cells = []
            for key, _, factor, form in COLUMNS:
                cells.append(spread([factor * row[key] for row in whole], form))
            lines.append(f"| {sampler} | {what} | " + " | ".join(cells) + " |")
    first = results[0]
    seeds = len({row["seed"] for row in results})
    lines += [
        "",
        f"Mean ± standard deviation over {seeds} seeds; {first['seconds_asked']:g} seconds of "
        f"sampling per run, {CHAINS} chains, one core each.",
    ]
    return "\n".join(lines).strip()


def verdict(results: list[dict[str, Any]]) -> str:
    """Each run beside the plain sampler's of the same seed and start: mean ± sd over seeds."""
    whole = [row for row in results if not row["diverged"]]
    plain = {
        (row["data"], row["sampler"], row["seed"]): row for row in whole if row["method"] == "plain"
    }
    compared = defaultdict(list)
    for row in whole:
        beside = plain.get((row["data"], row["sampler"], row["seed"]))
        if beside is not None and row is not beside:
            compared[row["data"], row["sampler"], row["method"]].append((row, beside))
    heads = ["ESS/s, weights: ratio", "ESS/s, predictions: ratio", "IAC, predictions: ratio"]
    lines = ["| data | sampler | method | " + " | ".join([*heads, "NLL: difference"]) + " |"]
    lines.append("|---" * (4 + len(heads)) + "|")
    for names, pairs in compared.items():
        cells = []
        for key in ("ess_per_second", "prediction_ess_per_second", "prediction_iac_steps"):
            cells.append(spread([a[key] / b[key] for a, b in pairs], "{:.2f}"))
        cells.append(spread([a["nll"] - b["nll"] for a, b in pairs], "{:+.4f}"))
        lines.append("| " + " | ".join([*names, *cells]) + " |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    """Mean ± standard deviation."""
    text = form.format(statistics.mean(values)) if values else ""
    if len(values) > 1:
        text += " ± " + form.replace("+", "").format(statistics.stdev(values))
    return text


def figure(results: list[dict[str, Any]], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["data"] for row in results))
    drawn, axes = plt.subplots(1, len(names), figsize=(5.5 * len(names), 4.2), squeeze=False)
    colors = dict(zip(METHODS, ["black", "#d1495b", "#edae49", "#66a182", "#2e86ab"], strict=True))
    marks = dict(zip(SAMPLERS, "osD", strict=True))
    for axis, data in zip(axes[0], names, strict=True):
        for row in results:
            if row["data"] == data and not row["diverged"]:
                axis.plot(
                    row["ess_per_second"],
                    row["nll"],
                    marks[row["sampler"]],
                    color=colors[row["method"]],
                    alpha=0.8,
                )
        axis.set(xscale="log", xlabel="ESS per second, median weight", ylabel="NLL", title=data)
    handles = [plt.Line2D([], [], marker="o", ls="", color=c, label=m) for m, c in colors.items()]
    handles += [
        plt.Line2D([], [], marker=k, ls="", color="grey", label=s) for s, k in marks.items()
    ]
    axes[0][-1].legend(handles=handles, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    drawn.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    drawn.savefig(folder / "structured_study.png", dpi=120)


def study(options: argparse.Namespace) -> None:
    jobs = [
        {
            "task": task,
            "sampler": sampler,
            "method": method,
            "seed": seed,
            "seconds_asked": options.seconds,
            "draws": options.draws,
            "mode_steps": options.mode_steps,
            "data": str(data_folder(options.data)),
        }
        for seed in range(options.seeds)
        for task in options.tasks
        for sampler in options.samplers
        for method in METHODS
    ]
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        results = []
        for row in pool.imap_unordered(one_run, jobs):
            results.append(row)
            passed = time.perf_counter() - began
            found = f"{row['diverged']} of {CHAINS} chains diverged"
            if not row["diverged"]:
                found = (
                    f"{row['steps']} steps, NLL {row['nll']:.4f}, error {row['error']:.3f}, "
                    f"ESS/s {row['ess_per_second']:.2f}"
                )
            print(
                f"[{passed:5.0f} s] {len(results)}/{len(jobs)} {row['data']} {row['sampler']} "
                f"{row['method']} seed {row['seed']}: {found}",
                flush=True,
            )
        pool.close()
        pool.join()
    order = {name: i for i, name in enumerate(METHODS)}
    results.sort(
        key=lambda r: (r["task"], SAMPLERS.index(r["sampler"]), order[r["method"]], r["seed"])
    )
    print(table(results), verdict(results), sep="\n\n")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    if options.write:
        picture = "\n\n![ESS per second against NLL](figures/structured_study.png)"
        below = verdict(results) + (picture if options.figures else "")
        write(Path(options.write), {"table": table(results), "verdict": below})
    if options.figures:
        figure(results, Path(options.figures))


# --- the cost of a step ------------------------------------------------------------------------


def cost_cases() -> dict[str, tuple[Any, tuple[Tensor, Tensor], int]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 784, generator=generator)
    y = torch.randn(2000, 10, generator=generator)
    wide = nn.Sequential(nn.Linear(784, 20), nn.ReLU(), nn.Linear(20, 10))
    prior = pvi.Normal(1.0)
    images = pvi.from_module(wide, pvi.Gaussian(scale=0.5), prior, num_data=2000)
    small = nn.Sequential(nn.Linear(13, 50), nn.ReLU(), nn.Linear(50, 1))
    table_ = pvi.from_module(small, pvi.Gaussian(scale=0.5), prior, num_data=2000)
    return {
        "784-20-10, B = 100": (images, (x, y), 100),
        "13-50-1, B = 32": (table_, (x[:, :13].contiguous(), x[:, :1].sin()), 32),
    }


def timed(sampler: Any, data: Any, batch: int, chains: int, steps: int, compile: bool) -> float:
    draws = pvi.sample(
        sampler,
        data,
        step_size=1e-7,
        batch_size=batch,
        num_particles=chains,
        num_draws=1,
        thin=steps,
        monitor=pvi.running.Monitor(every=1000),
        compile=compile,
        progress=False,
    )
    return draws.seconds / steps


def cost(options: argparse.Namespace) -> None:
    heads = ["net", "step", "composites"]
    for kind in ["eager", "compiled"] if options.compile else ["eager"]:
        heads += [f"{kind}, us: here / plain", "ratio"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    print(*lines, sep="\n", flush=True)
    for name, (potential, data, batch) in cost_cases().items():
        memory = {"history": pvi.gradients.history(initial=potential.init(200), thin=10)}
        plain = pvi.sgld(potential)
        estimators = {
            "structured, 2 layers": (pvi.structured(potential, "layer", **memory), 2),
            "structured, 4 tensors": (pvi.structured(potential, "tensor", **memory), 4),
            "dropout by layer, L = 4": (
                pvi.structured_dropout(potential, "layer", 0.5, 4, **memory),
                4,
            ),
            "dropout by layer, L = 8": (
                pvi.structured_dropout(potential, "layer", 0.5, 8, **memory),
                8,
            ),
            "dropout, 10 random groups, L = 8": (
                pvi.structured_dropout(potential, ("random", 10), 0.5, 8, **memory),
                8,
            ),
        }
        for what, (estimator, times) in estimators.items():
            cells = []
            for compile in [False, True] if options.compile else [False]:
                jobs = [(pvi.sgld(estimator), CHAINS), (plain, CHAINS * times)]
                for sampler, chains in jobs:
                    timed(sampler, data, batch, chains, 5, compile)
                pairs = [
                    [timed(s, data, batch, c, options.steps, compile) for s, c in jobs]
                    for _ in range(options.repetitions)
                ]
                ratios = sorted(a / b for a, b in pairs)
                low, mid, high = (ratios[int(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
                micro = [1e6 * statistics.median(column) for column in zip(*pairs, strict=True)]
                cells += [
                    f"{micro[0]:.0f} / {micro[1]:.0f}",
                    f"{mid:.2f} ({low:.2f} ... {high:.2f})",
                ]
            lines.append(f"| {name} | {what} | {times} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    if options.write:
        write(Path(options.write), {"cost": "\n".join(lines)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["cost", "study"])
    parser.add_argument("--seconds", type=float, default=10.0, help="of sampling per run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one core each")
    parser.add_argument("--draws", type=int, default=400, help="kept per chain")
    parser.add_argument("--mode-steps", type=int, default=3000, help="of Adam before each run")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, choices=SAMPLERS)
    parser.add_argument("--data", help="folder with mnist.npz and uci_regression/")
    parser.add_argument("--write", help="the page whose table is replaced")
    parser.add_argument("--figures", help="folder for the picture")
    parser.add_argument("--json", help="file for all results")
    parser.add_argument("--steps", type=int, default=100, help="per repetition of the cost")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    options = parser.parse_args()
    torch.set_num_threads(1)
    (cost if options.part == "cost" else study)(options)


if __name__ == "__main__":
    main()
