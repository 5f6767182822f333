"""The digits net of the README's example: how soon its posterior converges, and whether to it.

``pvi.sample(potential, data, compile=True)``, eight chains, ends when the outputs at 20 test inputs
have the ESS and the R-hat that were asked for, or after so many seconds. A second run, with another
seed, makes ten times as many draws. In each of the 200 outputs (logits less their mean) the
difference of the means over its Monte-Carlo error is a z; so is that of the test NLL's two values,
with errors from the chains. The first run of all pays the compiler, which is told apart: torch
keeps what it compiled on disk.

    python -m benchmarks.digits [--ess 200] [--rhat 1.02] [--seconds 60] [--times 10]
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings

import numpy as np
import torch

import particlevi as pvi
from examples.compare_sgd_to_posterior import Task, digits

CHAINS = 8


def converge(task: Task, ess: float, rhat: float, seconds: float, seed: int) -> pvi.Draws:
    """The automatic run."""
    monitor = [
        pvi.running.converged(ess=ess, rhat=rhat, probe=task.test[0][:20]),
        pvi.running.max_seconds(seconds),
    ]
    options = {"num_particles": CHAINS, "compile": True, "progress": False, "seed": seed}
    return pvi.sample(task.potential, task.train, monitor=monitor, **options)


def show(name: str, task: Task, draws: pvi.Draws) -> None:
    """Effective draws, R-hat and NLL."""
    probe = task.test[0][:20]
    sizes = draws.ess(of="predictions", inputs=probe)
    ratios = draws.rhat(of="predictions", inputs=probe)
    loss, error = test_loss(task, draws)
    print(
        f"{name}: {draws.particles.shape[1]} draws a chain, {draws.seconds:.1f} s, "
        f"{draws.attrs['ended_by']}; ESS {np.median(sizes):.0f} (smallest {sizes.min():.0f}), "
        f"R-hat {np.median(ratios):.4f} (largest {ratios.max():.4f}), "
        f"NLL {loss:.4f} +- {error:.4f}",
        flush=True,
    )


def test_loss(task: Task, draws: pvi.Draws) -> tuple[float, float]:
    """NLL of the test data, with its jackknife error over chains."""
    whole = -float(draws.log_predictive_density(task.test).mean())
    chains = range(len(draws))
    without = [
        -float(draws[[j for j in chains if j != k]].log_predictive_density(task.test).mean())
        for k in chains
    ]
    return whole, math.sqrt((CHAINS - 1) * float(np.var(without)))


def main() -> None:
    """Print both runs and how they agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ess", type=float, default=200)
    parser.add_argument("--rhat", type=float, default=1.02)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--times", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    task = digits()
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.2f}")

    began = time.perf_counter()
    converge(task, arguments.ess, arguments.rhat, seconds=1e-3, seed=0)
    print(f"the start of a run, with the compiler: {time.perf_counter() - began:.1f} s")

    short = converge(task, arguments.ess, arguments.rhat, arguments.seconds, seed=0)
    show("asked for", task, short)
    print(short.check_invariance(task.train))
    reference = pvi.sample(
        task.potential,
        task.train,
        num_particles=CHAINS,
        num_draws=arguments.times * short.particles.shape[1],
        compile=True,
        progress=False,
        seed=1,
    )
    show("reference", task, reference)

    probe = {"of": "predictions", "inputs": task.test[0][:20]}
    means = [_identified(draws, task) for draws in (short, reference)]
    errors = [draws.mcse(**probe) for draws in (short, reference)]
    z = ((means[0] - means[1]) / np.hypot(*errors)).ravel()
    losses, loss_errors = zip(*(test_loss(task, each) for each in (short, reference)), strict=True)
    of_loss = (losses[0] - losses[1]) / np.hypot(*loss_errors)
    print(
        f"z of {z.size} outputs: mean {z.mean():.2f}, sd {z.std():.2f}, largest "
        f"{np.abs(z).max():.2f}; z of the NLL {of_loss:.2f}"
    )


def _identified(draws: pvi.Draws, task: Task) -> np.ndarray:
    outputs = draws.outputs(task.test[0][:20]).double()
    return (outputs - outputs.mean(-1, keepdim=True)).mean((0, 1)).numpy()


if __name__ == "__main__":
    main()
