"""The minibatch regime: tuned minibatches, tuned all data, hand-tuned SGHMC, over N.

Made data: a logistic regression with 10 inputs, or a net 4-8-1 with known noise. For every N

* ``minibatches``: ``pvi.sample(pvi.sghmc(potential, gradient_noise="online"), data,
  batch_size=64)`` without a step size, where the pilot may take larger batches, control variates or
  all data, and the record says which;
* ``all data``: ``pvi.sample(pvi.sghmc(potential), data)`` without a step size;
* ``by hand``: SGHMC on batches of 64 with compensation, the best of a grid of step sizes (in units
  of the stable range) and frictions, begun at the same starting points, its worst quantity within a
  tenth of a standard deviation; else the least biased.

ESS is the smallest over the parameters of the logistic regression or 20 outputs of the net; seconds
are those of the process (not of the clock, so that other load counts little), the pilot, the start
and the warm-up apart. The bias is the largest over the quantities of the difference of a mean from
the reference, in posterior standard deviations, and of the ratio of standard deviations from 1; its
error is about ``1 / sqrt(ESS)``. The reference of the logistic regression is importance sampling
around the mode on all the data; that of the net the run on all the data by ``randomized_hmc``.

``--model digits`` asks instead whether ``k tr(S) / 2`` (``particlevi.tuning.heat``), found by the
tuner's probes at draws of the posterior, is what the log-likelihood of the digits net loses under
minibatch SGHMC without compensation: 2000 steps from those draws, the mean over the second half.

    python -m benchmarks.minibatch [--model logistic] [--sizes 1000 10000 100000] [--chains 8]
        [--draws 200] [--figure docs/figures/minibatch.png] [--page docs/tuning.md]
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import particlevi as pvi
from benchmarks._page import markdown, write
from particlevi.data import as_data
from particlevi.diagnostics import arviz
from particlevi.gradients.minibatch import minibatch
from particlevi.tuning.bounded_heat import bounded_heat
from particlevi.tuning.metric import factor_of_hessian
from particlevi.tuning.objective import Objective
from particlevi.tuning.start import find_start

BATCH, WARMUP, THIN = 64, 200, 5
GRID = [(fraction, friction) for fraction in (0.25, 0.05, 0.01) for friction in (0.1, 1.0, 10.0)]


class Problem(NamedTuple):
    """A potential with its data and what is looked at."""

    potential: Any
    data: tuple[Tensor, Tensor]
    inputs: Tensor | None


class Row(NamedTuple):
    """One run."""

    name: str
    size: int
    ess: float
    seconds: float
    bias: float
    took: str

    @property
    def speed(self) -> float:
        return self.ess / self.seconds


def problem(model: str, size: int) -> Problem:
    """Data of a model that is known."""
    generator = torch.Generator().manual_seed(0)
    if model == "logistic":
        x = torch.randn(size, 10, generator=generator)
        weights = 0.5 * torch.randn(10, generator=generator)
        y = torch.bernoulli((x @ weights).sigmoid(), generator=generator).unsqueeze(1)
        module: nn.Module = nn.Linear(10, 1, bias=False)
        potential = pvi.from_module(module, pvi.Bernoulli(), pvi.Normal(1.0), num_data=size)
        return Problem(potential, (x, y), None)
    x = torch.randn(size, 4, generator=generator)
    y = (x[:, :1] * x[:, 1:2]).tanh() + x[:, 2:3].sin()
    y = y + 0.5 * torch.randn(size, 1, generator=generator)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    potential = pvi.from_module(module, pvi.Gaussian(scale=0.5), pvi.Normal(1.0), num_data=size)
    return Problem(potential, (x, y), x[:20])


def quantities(task: Problem, draws: pvi.Draws) -> Tensor:
    """``[P, T, Q]``."""
    if task.inputs is None:
        return draws.particles.double()
    found = [
        torch.stack([task.potential.outputs(part[None], pvi.typing.Batch((task.inputs,)))[0]])
        for part in draws.flat()
    ]
    return torch.cat(found).double().view(*draws.particles.shape[:2], -1)


def reference(task: Problem, chains: int) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the quantities."""
    if task.inputs is not None:
        draws = pvi.sample(
            pvi.randomized_hmc(task.potential), task.data, num_particles=chains, progress=False
        )
        found = quantities(task, draws).flatten(0, 1)
        return found.mean(0), found.std(0)
    objective = Objective(task.potential, task.data)
    generator = torch.Generator().manual_seed(0)
    size = task.potential.num_params
    best = find_start(objective, torch.zeros(8, size), generator).best
    root = factor_of_hessian(objective.hessian(best))
    z = 1.1 * torch.randn(2000, size, generator=generator, dtype=torch.float64)
    points = best.double() + z @ root.mT
    energy = torch.zeros(len(points), dtype=torch.float64)
    theta = points.to(task.potential.dtype)
    for batch in as_data(task.data, task.potential).chunks(4096):
        energy += task.potential.data_energy(theta, batch).double()
    energy += task.potential.prior_energy(theta).double()
    weight = (0.5 * (z / 1.1).square().sum(1) - energy).softmax(0)
    mean = weight @ points
    return mean, (weight @ (points - mean).square()).sqrt()


def measured(
    name: str, task: Problem, truth: tuple[Tensor, Tensor], took: str, draws: pvi.Draws, s: float
) -> Row:
    """ESS, seconds and bias of a run."""
    values = quantities(task, draws)
    ess = arviz.ess(values)
    flat = values.flatten(0, 1)
    off = ((flat.mean(0) - truth[0]) / truth[1]).abs()
    wide = (flat.std(0) / truth[1] - 1).abs()
    bias = float(torch.maximum(off, wide).max())
    return Row(name, len(task.data[0]), float(np.nanmin(ess)), s, bias, took)


class Clock:
    """Process seconds at steps of a run."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float]] = []

    def __call__(self, look: Any) -> None:
        if look.step >= WARMUP:
            self.marks.append((look.step, time.process_time()))

    def seconds(self, steps: int) -> float:
        """Of so many steps after the warm-up."""
        (first, began), (last, ended) = self.marks[0], self.marks[-1]
        return (ended - began) * steps / (last - first)


def timed(sampler: Any, task: Problem, num_draws: int, **options: Any) -> tuple[pvi.Draws, float]:
    """Draws, and process seconds of the steps after the warm-up."""
    clock = Clock()
    draws = pvi.sample(
        sampler,
        task.data,
        num_warmup=WARMUP,
        num_draws=num_draws,
        thin=THIN,
        progress=False,
        monitor=pvi.running.Every(50, clock),
        **options,
    )
    return draws, clock.seconds(num_draws * THIN)


def runs(task: Problem, chains: int, num_draws: int) -> list[Row]:
    """All ways on one problem."""
    truth = reference(task, chains)
    potential = task.potential
    found = []
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "minibatches": (pvi.sghmc(potential, gradient_noise="online"), {"batch_size": BATCH}),
        "all data": (pvi.sghmc(potential), {}),
    }
    for name, (sampler, more) in ways.items():
        draws, seconds = timed(sampler, task, num_draws, num_particles=chains, **more)
        attrs = draws.attrs
        took = "all" if attrs["batch_size"] is None else f"B = {attrs['batch_size']}"
        took += " + centre" * (attrs["estimator"] == "control_variate")
        found.append(measured(name, task, truth, took, draws, seconds))
        print(found[-1], flush=True)
    found.append(by_hand(task, truth, chains, num_draws))
    print(found[-1], flush=True)
    return found


def by_hand(task: Problem, truth: tuple[Tensor, Tensor], chains: int, num_draws: int) -> Row:
    """The best of the grid."""
    potential = task.potential
    objective = Objective(potential, task.data)
    generator = torch.Generator().manual_seed(1)
    start = find_start(objective, potential.init(chains), generator)
    stiff = float(torch.linalg.eigvalsh(objective.hessian(start.best)).max()) ** 0.5
    rows = []
    for fraction, friction in GRID:
        sampler = pvi.sghmc(potential, friction=friction * stiff, gradient_noise="online")
        draws, seconds = timed(
            sampler,
            task,
            num_draws,
            step_size=2 * fraction / stiff,
            batch_size=BATCH,
            initial=start.points,
        )
        took = f"h = {fraction:g} of the stable range, f = {friction:g} sqrt(l)"
        rows.append(measured("by hand", task, truth, took, draws, seconds))
    right = [row for row in rows if row.bias < 0.1 + 2 / max(row.ess, 1.0) ** 0.5]
    return max(right, key=lambda row: row.speed) if right else min(rows, key=lambda row: row.bias)


SETTINGS = [(64, 10.0, 0.01), (64, 10.0, 0.003), (64, 100.0, 0.003), (256, 10.0, 0.01)]


def log_likelihood(potential: Any, data: Any, points: Tensor) -> Tensor:
    """On all the data, ``[P]``, in nats."""
    found = torch.zeros(len(points), dtype=torch.float64)
    for batch in as_data(data, potential).chunks(4096):
        found -= potential.data_energy(points, batch).double()
    return found


def explained(chains: int) -> str:
    """Nats that the log-likelihood of the digits net loses, foretold and measured."""
    from examples.compare_sgd_to_posterior import digits

    task = digits()
    potential, data = task.potential, task.train
    exact = pvi.sample(potential, data, num_particles=chains, num_draws=100, thin=2, progress=False)
    start = exact.particles[:, -1]
    here = torch.stack([log_likelihood(potential, data, each) for each in exact.particles[:, ::10]])
    tuner = bounded_heat(minibatch(potential), data, SETTINGS[0][0])
    trace = float(tuner.init(start, {}).heat.moving.sum()) * SETTINGS[0][0]
    rows = []
    for size, friction, h in SETTINGS:
        factor = h**2 / (4 * math.tanh(0.5 * friction * h))
        draws = pvi.sample(
            pvi.sghmc(potential, friction=friction),
            data,
            step_size=h,
            batch_size=size,
            initial=start,
            num_warmup=1000,
            num_draws=20,
            thin=50,
            progress=False,
        )
        there = torch.stack([log_likelihood(potential, data, each) for each in draws.particles])
        lost = here.mean() - there.mean()
        error = (there.mean(1).std() ** 2 + here.mean(1).std() ** 2).sqrt() / chains**0.5
        told = 0.5 * factor * trace / size
        rows.append(
            [f"{size}", f"{friction:g}", f"{h:g}", f"{told:.3g}", f"{lost:.3g} +- {error:.2g}"]
        )
        print(rows[-1], flush=True)
    return markdown(["B", "friction", "h", "k tr(S) / 2, nats", "lost, nats"], rows)


def draw(rows: list[Row], model: str, path: Path) -> None:
    """ESS per second over N."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for name in dict.fromkeys(row.name for row in rows):
        own = [row for row in rows if row.name == name]
        axes.loglog([row.size for row in own], [row.speed for row in own], "o-", label=name)
    axes.set_xlabel("data N")
    axes.set_ylabel("smallest ESS per second")
    axes.set_title(f"{model}: minibatches against all data")
    axes.legend()
    figure.savefig(path, dpi=120)


def table(rows: list[Row]) -> str:
    """For the page."""
    heads = ["N", "way", "took", "ESS", "ESS per second", "bias, sd"]
    return markdown(
        heads,
        [
            [
                f"{row.size:g}",
                row.name,
                row.took,
                f"{row.ess:.0f}",
                f"{row.speed:.3g}",
                f"{row.bias:.2f} +- {max(row.ess, 1.0) ** -0.5:.2f}",
            ]
            for row in rows
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["logistic", "net", "digits"], default="logistic")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.model == "digits":
        text = explained(options.chains)
        print(text)
        if options.page is not None:
            write(options.page, {"minibatch_digits": text})
        return
    rows: list[Row] = []
    for size in options.sizes:
        rows += runs(problem(options.model, size), options.chains, options.draws)
    print(table(rows))
    if options.figure is not None:
        draw(rows, options.model, options.figure)
    if options.page is not None:
        write(options.page, {f"minibatch_{options.model}": table(rows)})


if __name__ == "__main__":
    main()
