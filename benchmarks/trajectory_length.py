"""Trajectory lengths and metrics of ``randomized_hmc``: effective draws per gradient.

Posteriors of posteriordb, all variants from the start, with the warm-up and the first metric that
``pvi.sample(potential)`` chooses: its inverse Hessian for a dense metric, the deviations of that
for the others. Effective draws are the smallest bulk ESS of the quantities that posteriordb reports
and of their squares around the mean. Gradients are those of the warm-up and of the draws. A variant
whose largest R-hat is above 1.05 has no number.

    python benchmarks/trajectory_length.py FOLDER [--chains 16] [--seeds 2] [--steps 2000]

With ``--fixed 1.5708 1.2`` mean lengths beside each other, with the metric of the automatic choice:
the smallest ESS of the quantities, and that of their squares, for the gradients after the warm-up.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from pathlib import Path

import numpy as np
import torch

import particlevi as pvi
from particlevi.diagnostics import arviz
from particlevi.tuning.automatic import Setup, prepare
from particlevi.tuning.windows import windows
from tests.reference.models import Files, Model, make

MODELS = [
    "arK-arK",
    "earnings-logearn_interaction",
    "eight_schools-eight_schools_noncentered",
    "kidiq-kidscore_momhsiq",
    "mesquite-logmesquite",
    "nes1972-nes",
]
VARIANTS = [
    (metric, length) for metric in ("dense", "diagonal", "low_rank") for length in ("pi/2", "chees")
]


def begun(name: str, files: Files, chains: int, seed: int) -> tuple[Model, Setup, windows]:
    """A model, and what the automatic choice makes of it."""
    model = make(name, files)
    target = pvi.from_log_density(
        model.log_density, len(model.start), vectorized=True, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(chains, len(model.start), generator=generator).double()
    with torch.no_grad():
        setup = prepare(target, None, points, generator)
    chosen = setup.tuner.tuner
    assert isinstance(chosen, windows)
    return model, setup, chosen


def sampled(setup: Setup, tuner: windows, steps: int, seed: int) -> pvi.Draws:
    """Draws of so many steps after the warm-up."""
    return pvi.sample(
        setup.sampler,
        initial=setup.initial,
        tuner=tuner,
        num_warmup=setup.num_warmup,
        num_draws=steps // 2,
        thin=2,
        seed=seed,
        progress=False,
    )


def of_fixed(name: str, files: Files, options: argparse.Namespace, seed: int) -> list[str]:
    """Effective draws per 1000 gradients, of means and of squares, at each fixed length."""
    model, setup, chosen = begun(name, files, options.chains, seed)
    found = []
    for length in options.fixed:
        tuner = dataclasses.replace(chosen, trajectory_length=length)
        draws = sampled(setup, tuner, options.steps, seed)
        values = model.quantities(draws.particles).numpy()
        parts = values, (values - values.mean((0, 1))) ** 2
        unit = 1000 / (options.steps * options.chains)
        found.append(", ".join(f"{unit * float(arviz.ess(part).min()):.0f}" for part in parts))
    return found


def per_gradient(name: str, files: Files, options: argparse.Namespace, seed: int) -> list[float]:
    """Effective draws per 1000 gradients of each variant."""
    model, setup, chosen = begun(name, files, options.chains, seed)
    assert chosen.start is not None
    scales = chosen.start if chosen.start.ndim == 1 else chosen.start.square().sum(1).sqrt()
    found = []
    for metric, length in VARIANTS:
        start = chosen.start if metric == "dense" else scales
        if metric == "dense" and start.ndim == 1:
            start = start.diag()
        tuner = dataclasses.replace(
            chosen,
            metric=metric,
            start=start,
            trajectory_length=chosen.trajectory_length if length == "pi/2" else "chees",
        )
        draws = sampled(setup, tuner, options.steps, seed)
        values = model.quantities(draws.particles).numpy()
        both = np.concatenate([values, (values - values.mean((0, 1))) ** 2], -1)
        converged = float(arviz.rhat(both).max()) < 1.05
        gradients = draws.num_steps * options.chains
        found.append(1000 * float(arviz.ess(both).min()) / gradients if converged else np.nan)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--models", nargs="*", default=MODELS)
    parser.add_argument("--fixed", nargs="*", type=float)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    files = Files(options.folder)
    heads = [f"{metric}, {length}" for metric, length in VARIANTS]
    if options.fixed:
        heads = [f"{length:.3g}" for length in options.fixed]
    print("| posterior |", " | ".join(heads), "|")
    print("|", " | ".join(["---"] * (1 + len(heads))), "|")
    for name in options.models:
        if options.fixed:
            told = [of_fixed(name, files, options, seed) for seed in range(options.seeds)]
            print(f"| {name} |", " | ".join(map(" / ".join, zip(*told, strict=True))), "|")
            continue
        rows = [per_gradient(name, files, options, seed) for seed in range(options.seeds)]
        cells = [" / ".join(f"{value:.0f}" for value in each) for each in zip(*rows, strict=True)]
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
