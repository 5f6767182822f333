"""Test errors and step times of the optimisers at equal tuning budgets.

    python benchmarks/optim_study.py --json optim.json     # about an hour of one core
    python benchmarks/optim_study.py --quick               # to see that it runs
    python benchmarks/optim_study.py --read optim.json --write docs/optim.md

A small residual net (19 706 weights) on 5000 images of Fashion-MNIST and of CIFAR-10, batches of
64. Every method has four learning rates, about a factor of 3 apart, tried by one run each with a
fifth of the training data left out; while the best is the smallest or the largest, one more is
tried beyond it. Then three seeds on all the training data, tested on 10 000 images. The last step
counts, and not the best; the learning rate falls as a cosine. PNM runs also at the learning rate
that gives it the effective rate of the chosen SGD, and SGD at that of the chosen PNM.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _nets import images, residual_net
from _page import interval, markdown, write
from torch import Tensor, nn

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


class Training:
    """One net, its optimiser and its batches."""

    def __init__(self, method: str, lr: float, seed: int, channels: int, args: argparse.Namespace):
        torch.manual_seed(seed)
        self.net = residual_net(channels, args.width)
        self.optimizer = METHODS[method][1](self.net.parameters(), lr)
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)
        self.size, self.lr = args.batch_size, lr

    def batch(self, num_data: int) -> Tensor:
        """Rows of a shuffled epoch, without its rest."""
        if len(self.order) < self.size:
            self.order = torch.randperm(num_data, generator=self.generator)
        rows, self.order = self.order[: self.size], self.order[self.size :]
        return rows

    def step(self, x: Tensor, y: Tensor, share: float) -> None:
        rows = self.batch(len(x))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * share))

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.net(x[rows]), y[rows])
            loss.backward()
            return loss

        self.optimizer.step(closure)

    def error(self, x: Tensor, y: Tensor) -> float:
        """Percent; a net that has diverged is wrong everywhere."""
        wrong = 0
        with torch.no_grad():
            for inputs, labels in zip(x.split(500), y.split(500), strict=True):
                found = self.net(inputs)
                wrong += int(((found.argmax(1) != labels) | ~found.isfinite().all(1)).sum())
        return 100 * wrong / len(x)


def trained(
    method: str, lr: float, seed: int, data: tuple[Tensor, ...], args: argparse.Namespace
) -> tuple[float, float]:
    """Errors in percent on the test and the training data after the last step."""
    x, y, x_test, y_test = data
    run = Training(method, lr, seed, x.shape[1], args)
    for k in range(args.steps):
        run.step(x, y, k / args.steps)
    return run.error(x_test, y_test), run.error(x, y)


def beyond(best: float, tried: dict[float, float]) -> list[float]:
    """The rate to try next: none, unless the best is the last one at either end."""
    if best == max(tried):
        return [3 * best]
    return [best / 3] if best == min(tried) else []


def step_times(data: tuple[Tensor, ...], args: argparse.Namespace) -> dict[str, float]:
    """Median CPU time of a whole step over that of SGD, methods interleaved."""
    x, y = data[:2]
    runs = {m: Training(m, rates[0], 0, x.shape[1], args) for m, (rates, _) in METHODS.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(10 if args.quick else 100):
        for name, run in runs.items():
            begun = time.process_time()
            run.step(x, y, 0.0)
            if k >= 5:
                times[name].append(time.process_time() - begun)
    medians = {name: statistics.median(found) for name, found in times.items()}
    return {name: own / medians[next(iter(METHODS))] for name, own in medians.items()}


def study(task: str, args: argparse.Namespace) -> dict[str, Any]:
    data = images(task, args.data, args.num_train)
    x, y = data[:2]
    cut = len(x) * 4 // 5
    tuning = (x[:cut], y[:cut], x[cut:], y[cut:])
    grid: dict[str, dict[float, float]] = {}
    best: dict[str, float] = {}
    for name, (rates, _) in METHODS.items():
        found = grid[name] = {}
        waiting = list(rates)
        while waiting:
            lr = waiting.pop()
            found[lr] = trained(name, lr, 100, tuning, args)[0]
            if not waiting:
                best[name] = min(found, key=found.__getitem__)
                waiting = beyond(best[name], found)
        print(task, name, found, flush=True)
    sgd, pnm = "SGD, momentum 0.9", "PNM"
    settings = [(name, name, lr) for name, lr in best.items()]
    settings.append(("PNM at SGD's effective rate", pnm, best[sgd] * HEAVY_BALL_OVER_PNM))
    settings.append(("SGD at PNM's effective rate", sgd, best[pnm] / HEAVY_BALL_OVER_PNM))
    final = {}
    for label, method, lr in settings:
        pairs = [trained(method, lr, seed, data, args) for seed in range(args.seeds)]
        final[label] = {"lr": lr, "errors": [p[0] for p in pairs], "train": [p[1] for p in pairs]}
        print(task, label, final[label], flush=True)
    return {"grid": grid, "final": final, "times": step_times(data, args)}


def tables(results: dict[str, Any]) -> dict[str, str]:
    sections = {}
    for task, result in results.items():
        final, rows = result["final"], []
        first = next(iter(final))
        for name, own in final.items():
            pairs = zip(own["errors"], final[first]["errors"], strict=True)
            less = "" if name == first else interval([a - b for a, b in pairs])
            train = f"{statistics.mean(own['train']):.1f}"
            ratio = result["times"].get(name)
            cells = [f"{own['lr']:.2g}", train, interval(own["errors"]), less]
            rows.append([name, *cells, "" if ratio is None else f"{ratio:.2f}"])
        heads = ["", "learning rate", "training error, %", "test error, %"]
        heads += ["less that of SGD", "time of a step over SGD's"]
        sections[f"optim study {task}"] = markdown(heads, rows)
    return sections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="200 images and 20 steps")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--num-train", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--tasks", nargs="*", default=["Fashion-MNIST", "CIFAR-10"])
    parser.add_argument("--data")
    parser.add_argument("--json", type=Path, help="where results go, after each task")
    parser.add_argument("--read", type=Path, nargs="*", help="results to show instead of a run")
    parser.add_argument("--write", type=Path, help="the page that gets the tables")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.num_train = 20, 200
    torch.set_num_threads(1)
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
