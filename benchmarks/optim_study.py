"""Test errors and step times of the optimisers, all runs trained side by side.

    python benchmarks/optim_study.py --device cuda --seconds 50     # about 4 minutes on a large GPU
    python benchmarks/optim_study.py --quick                        # to see that it runs
    python benchmarks/optim_study.py --read FILE.json --write docs/optim.md

A small residual net on Fashion-MNIST (20 000 images) and a subset of CIFAR-10. Every method has
four learning rates, chosen by the error on a fifth of the training data in one run each; then three
seeds on all of them. The last step counts, and not the best; the learning rate falls as a cosine.
PNM runs also at the learning rate that gives it the effective rate of the chosen SGD, and SGD at
that of the chosen PNM. Nets, batches and optimisers of the runs are their own: only forward and
backward passes are stacked. ``--seconds`` is the time of one stack; the number of steps, the same
for all, is what fits into it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _nets import images, residual_net, synchronize
from _page import markdown, write
from torch import Tensor, nn
from torch.func import functional_call, vmap

from particlevi.optim import PNM, AdaPNM, PerturbedGD, power

DECAY = 5e-4
HEAVY_BALL_OVER_PNM = 10 * math.sqrt(5)
Make = Callable[[Any, float], torch.optim.Optimizer]
SGD = torch.optim.SGD

METHODS: dict[str, tuple[list[float], Make]] = {
    "SGD, momentum 0.9": (
        [0.01, 0.03, 0.1, 0.3],
        lambda p, lr: SGD(p, lr=lr, momentum=0.9, weight_decay=DECAY),
    ),
    "AdamW": (
        [3e-4, 1e-3, 3e-3, 1e-2],
        lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=DECAY / lr),
    ),
    "PNM": ([0.2, 0.7, 2.0, 7.0], lambda p, lr: PNM(p, lr=lr, weight_decay=DECAY)),
    "AdaPNM": (
        [3e-4, 1e-3, 3e-3, 1e-2],
        lambda p, lr: AdaPNM(p, lr=lr, weight_decay=DECAY / lr),
    ),
    "PerturbedGD": (
        [0.1, 0.3, 1.0, 3.0],
        lambda p, lr: PerturbedGD(p, lr=lr, std=0.003, weight_decay=DECAY),
    ),
    "power-SGD, H = 0.5, momentum 0.9": (
        [3e-4, 1e-3, 3e-3, 1e-2],
        lambda p, lr: power(SGD(p, lr=lr, momentum=0.9, weight_decay=DECAY), 0.5),
    ),
}


class Run(NamedTuple):
    """One net to train."""

    method: str
    lr: float
    seed: int


class Stack:
    """Nets that are trained side by side."""

    def __init__(self, runs: list[Run], channels: int, width: int, device: str):
        self.runs, self.device = runs, device
        nets = []
        for run in runs:
            torch.manual_seed(run.seed)
            nets.append(residual_net(channels, width).to(device))
        self.net = nets[0]
        self.names = [name for name, _ in self.net.named_parameters()]
        self.params = [list(net.parameters()) for net in nets]
        self.optimizers = [
            METHODS[run.method][1](own, run.lr) for run, own in zip(runs, self.params, strict=True)
        ]
        self.rates = [run.lr for run in runs]
        self.generators = [torch.Generator(device).manual_seed(run.seed) for run in runs]
        self.orders = [torch.empty(0, dtype=torch.long, device=device) for _ in runs]

    def stacked(self) -> dict[str, Tensor]:
        columns = zip(*self.params, strict=True)
        return {n: torch.stack(own) for n, own in zip(self.names, columns, strict=True)}

    def outputs(self, stacked: dict[str, Tensor], x: Tensor, shared: bool) -> Tensor:
        def one(own: dict[str, Tensor], inputs: Tensor) -> Tensor:
            return functional_call(self.net, own, (inputs,))

        return vmap(one, in_dims=(0, None if shared else 0))(stacked, x)

    def batches(self, num_data: int, size: int) -> Tensor:
        """Rows ``[R, size]``, each run in its own order, without the rest of an epoch."""
        found = []
        for k, generator in enumerate(self.generators):
            if len(self.orders[k]) < size:
                self.orders[k] = torch.randperm(num_data, generator=generator, device=self.device)
            found.append(self.orders[k][:size])
            self.orders[k] = self.orders[k][size:]
        return torch.stack(found)

    def step(self, x: Tensor, y: Tensor, size: int, share: float) -> None:
        rows = self.batches(len(x), size)
        factor = 0.5 * (1 + math.cos(math.pi * share))
        with ExitStack() as points:
            for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
                optimizer.zero_grad()
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor
                if isinstance(optimizer, PerturbedGD):
                    points.enter_context(optimizer.perturbed())
            found = self.outputs(self.stacked(), x[rows], shared=False)
            losses = nn.functional.cross_entropy(found.flatten(0, 1), y[rows].flatten())
            (losses * len(self.runs)).backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def errors(self, x: Tensor, y: Tensor) -> list[float]:
        """Percent; a net that has diverged is wrong everywhere."""
        wrong = torch.zeros(len(self.runs), device=self.device)
        with torch.no_grad():
            stacked = self.stacked()
            for inputs, labels in zip(x.split(250), y.split(250), strict=True):
                found = self.outputs(stacked, inputs, shared=True)
                bad = (found.argmax(2) != labels) | ~found.isfinite().all(2)
                wrong += bad.sum(1)
        return (100 * wrong / len(x)).tolist()


def train(
    runs: list[Run], data: tuple[Tensor, ...], steps: int | None, args: argparse.Namespace
) -> tuple[list[float], int]:
    """Errors after the last step, and how many steps fitted into the time."""
    x, y, x_test, y_test = data
    size = 128
    if steps is None:
        trial = Stack(runs, x.shape[1], args.width, args.device)
        for k in range(15):
            if k == 5:
                synchronize(args.device)
                begun = time.perf_counter()
            trial.step(x, y, size, 0.0)
        synchronize(args.device)
        steps = max(10, int(args.seconds / ((time.perf_counter() - begun) / 10)))
        steps = min(steps, args.most_epochs * (len(x) // size))
        del trial
    stack = Stack(runs, x.shape[1], args.width, args.device)
    for k in range(steps):
        stack.step(x, y, size, k / steps)
    return stack.errors(x_test, y_test), steps


def step_times(data: tuple[Tensor, ...], args: argparse.Namespace) -> dict[str, float]:
    """Median milliseconds of a whole step of one net, methods interleaved."""
    x, y = data[:2]
    stacks = {
        name: Stack([Run(name, rates[0], 0)], x.shape[1], args.width, args.device)
        for name, (rates, _) in METHODS.items()
    }
    times: dict[str, list[float]] = {name: [] for name in stacks}
    for k in range(8 if args.quick else 60):
        for name, stack in stacks.items():
            synchronize(args.device)
            begun = time.perf_counter()
            stack.step(x, y, 128, 0.0)
            synchronize(args.device)
            if k >= 5:
                times[name].append(1e3 * (time.perf_counter() - begun))
    return {name: statistics.median(found) for name, found in times.items()}


def study(task: str, args: argparse.Namespace) -> dict[str, Any]:
    most = 20_000 if task == "Fashion-MNIST" else None
    data = tuple(part.to(args.device) for part in images(task, args.data, most))
    if args.quick:
        data = tuple(part[:1000] for part in data)
    x, y, x_test, y_test = data
    cut = len(x) * 4 // 5
    tuning = [Run(name, lr, 100) for name, (rates, _) in METHODS.items() for lr in rates]
    scores, steps = train(tuning, (x[:cut], y[:cut], x[cut:], y[cut:]), None, args)
    grid = {name: {} for name in METHODS}
    for run, score in zip(tuning, scores, strict=True):
        grid[run.method][run.lr] = score
    best = {name: min(own, key=own.__getitem__) for name, own in grid.items()}
    print(f"{task}: {steps} steps; validation errors {grid}", flush=True)
    sgd, pnm = "SGD, momentum 0.9", "PNM"
    settings = [(name, name, lr) for name, lr in best.items()]
    settings.append(("PNM at SGD's effective rate", pnm, best[sgd] * HEAVY_BALL_OVER_PNM))
    settings.append(("SGD at PNM's effective rate", sgd, best[pnm] / HEAVY_BALL_OVER_PNM))
    runs = [Run(method, lr, s) for _, method, lr in settings for s in range(args.seeds)]
    errors, _ = train(runs, (x, y, x_test, y_test), steps, args)
    found = {
        label: {"lr": lr, "errors": errors[k * args.seeds : (k + 1) * args.seeds]}
        for k, (label, _, lr) in enumerate(settings)
    }
    times = step_times(data, args)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    return {
        "steps": steps,
        "num_train": len(x),
        "device": device,
        "grid": grid,
        "final": found,
        "ms": times,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    sections = {}
    for task, result in results.items():
        rows = []
        for name, final in result["final"].items():
            errors = final["errors"]
            cell = f"{statistics.mean(errors):.2f}"
            if len(errors) == 3:
                # Student's t of two degrees of freedom, 95 %.
                cell += f" ± {4.303 * statistics.stdev(errors) / math.sqrt(3):.2f}"
            ms = result["ms"].get(name)
            rows.append([name, f"{final['lr']:.2g}", cell, "" if ms is None else f"{ms:.1f}"])
        heads = ["", "learning rate", "test error, %", "ms per step"]
        sections[f"optim study {task}"] = markdown(heads, rows)
    return sections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=50.0)
    parser.add_argument("--most-epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--tasks", nargs="*", default=["Fashion-MNIST", "CIFAR-10"])
    parser.add_argument("--data")
    parser.add_argument("--json", type=Path, help="where results go, after each task")
    parser.add_argument("--read", type=Path, nargs="*", help="results to show instead of a run")
    parser.add_argument("--write", type=Path, help="the page that gets the tables")
    args = parser.parse_args()
    if args.device == "cuda":
        torch.set_float32_matmul_precision("high")
    results: dict[str, Any] = {}
    for file in args.read or []:
        results |= json.loads(file.read_text())
    for task in [] if args.read else args.tasks:
        results[task] = study(task, args)
        if args.json:
            args.json.write_text(json.dumps(results))
    sections = tables(results)
    for name, text in sections.items():
        print(f"\n{name}\n\n{text}")
    if args.write:
        write(args.write, sections)


if __name__ == "__main__":
    main()
