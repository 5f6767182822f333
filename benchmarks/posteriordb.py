"""Posteriors of posteriordb with no number given by the user, beside blackjax's NUTS.

particlevi: ``pvi.sample(potential, num_particles=P)`` until ESS 400 and R-hat 1.01. blackjax: NUTS
with window adaptation, diagonal and dense, 4 chains of 1000 + 1000 iterations from the same kind of
start (uniform in (-2, 2) for it, standard normal here). Effective draws are the smallest bulk ESS
over the quantities that posteriordb reports; gradients are all of a particle, those of the start
and of the warm-up included. ``|z|`` are differences of means and second moments from the reference
draws in combined Monte-Carlo errors, the largest over quantities.

    python benchmarks/posteriordb.py FOLDER [--peer --timed] [--chains 16] [--seeds 2]
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import particlevi as pvi
from particlevi.diagnostics import arviz
from tests.reference import models
from tests.reference.models import NAMES, Files, make
from tests.reference.test_posteriordb import EXACT, scores


def reference_z(name: str, found: np.ndarray[Any, Any], files: Files) -> tuple[float, float]:
    """The largest |z| of means and of second moments around the reference mean."""
    reference = files.draws(name)
    center = reference.mean((0, 1))
    squares = (reference - center) ** 2
    means = scores(found, center, arviz.mcse(reference))
    spreads = scores((found - center) ** 2, squares.mean((0, 1)), arviz.mcse(squares))
    if name in EXACT:
        mean, sd = (np.array(values) for values in EXACT[name])
        means = scores(found, mean, np.zeros(len(mean)))
        spreads = scores((found - mean) ** 2, sd**2, np.zeros(len(mean)))
    return float(abs(means).max()), float(abs(spreads).max())


def ours(name: str, files: Files, chains: int, seed: int) -> dict[str, Any]:
    model = make(name, files)
    target = pvi.from_log_density(
        model.log_density, len(model.start), vectorized=True, dtype=torch.float64
    )
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = pvi.sample(target, num_particles=chains, seed=seed, progress=False)
    seconds = time.perf_counter() - began
    tuning = draws.attrs["tuning"]
    gradients = tuning["start_gradients"]
    gradients += draws.num_steps * chains * draws.attrs["gradients_per_step"]
    return summary(name, model.quantities(draws.particles).numpy(), files, gradients, seconds)


def summary(
    name: str, found: np.ndarray[Any, Any], files: Files, gradients: int, seconds: float
) -> dict[str, Any]:
    ess = float(arviz.ess(found).min())
    means, spreads = reference_z(name, found, files)
    return {
        "z": means,
        "z2": spreads,
        "rhat": float(arviz.rhat(found).max()),
        "ess": ess,
        "per_gradient": 1000 * ess / gradients,
        "per_second": ess / seconds,
        "seconds": seconds,
    }


def jax_density(name: str, files: Files) -> Any:
    """The density of ``tests/reference/models.py`` in JAX, of one particle ``[D]``."""
    import jax
    import jax.numpy as jnp

    d = models.data_of(name, files)

    def normal(x: Any, mean: Any, scale: Any) -> Any:
        return -0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale)

    if name.startswith("eight_schools"):
        y, sigma = jnp.asarray(d["y"][:8].numpy()), jnp.asarray(d["sigma"].numpy())

        def schools(u: Any) -> Any:
            theta = u[8] + jnp.exp(u[9]) * u[:8]
            prior = normal(u[:8], 0.0, 1.0).sum() + normal(u[8], 0.0, 5.0)
            tau = -jnp.log1p((jnp.exp(u[9]) / 5.0) ** 2) + u[9]
            return prior + tau + normal(y, theta, sigma).sum()

        return schools
    if name.startswith("low_dim"):
        y = jnp.asarray(d["y"].numpy())

        def mixture(u: Any) -> Any:
            first, second = u[0], u[0] + jnp.exp(u[1])
            s1, s2, share = jnp.exp(u[2]), jnp.exp(u[3]), jax.nn.log_sigmoid
            a = normal(y, first, s1) + share(u[4])
            b = normal(y, second, s2) + share(-u[4])
            prior = normal(first, 0.0, 2.0) + normal(second, 0.0, 2.0) + u[1]
            prior += -0.5 * (s1 / 2) ** 2 + u[2] - 0.5 * (s2 / 2) ** 2 + u[3]
            return jnp.logaddexp(a, b).sum() + prior + 5 * (share(u[4]) + share(-u[4]))

        return mixture
    x, y = (jnp.asarray(part.numpy()) for part in models.design(name, d))
    kind, scale = models.SIGMA.get(name, ("flat", 0.0))
    prior = models.beta_prior(name, d)
    at = None if prior is None else [jnp.asarray(np.asarray(part)) for part in prior]

    def regression(u: Any) -> Any:
        beta, log_sigma = u[:-1], u[-1]
        value = normal(y, x @ beta, jnp.exp(log_sigma)).sum() + log_sigma
        if kind == "half_cauchy":
            value += -jnp.log1p((jnp.exp(log_sigma) / scale) ** 2)
        elif kind == "half_normal":
            value += -0.5 * (jnp.exp(log_sigma) / scale) ** 2
        return value if at is None else value + normal(beta, at[0], at[1]).sum()

    return regression


def nuts(
    name: str, files: Files, dense: bool, seed: int, timed: bool, chains: int = 4
) -> dict[str, Any]:
    import blackjax
    import jax

    jax.config.update("jax_enable_x64", True)
    model, density = make(name, files), jax_density(name, files)
    size = len(model.start)

    def chain(key: Any) -> Any:
        start_key, warm_key, draw_key = jax.random.split(key, 3)
        start = jax.random.uniform(start_key, (size,), minval=-2.0, maxval=2.0)
        warmup = blackjax.window_adaptation(
            blackjax.nuts, density, is_mass_matrix_diagonal=not dense
        )
        (state, parameters), history = warmup.run(warm_key, start, num_steps=1000)
        kernel = blackjax.nuts(density, **parameters).step

        def step(state: Any, key: Any) -> Any:
            state, info = kernel(key, state)
            return state, (state.position, info.num_integration_steps)

        _, (path, count) = jax.lax.scan(step, state, jax.random.split(draw_key, 1000))
        return path, count.sum() + history.info.num_integration_steps.sum()

    run = jax.jit(jax.vmap(chain))
    keys = jax.random.split(jax.random.key(seed), chains)
    if timed:  # a first run compiles
        jax.block_until_ready(run(keys))
    began = time.perf_counter()
    path, count = jax.block_until_ready(run(keys))
    seconds = time.perf_counter() - began
    found = model.quantities(torch.tensor(np.asarray(path))).numpy()
    return summary(name, found, files, int(count.sum()), seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--timed", action="store_true", help="leave XLA's compilation out")
    parser.add_argument("--models", nargs="*", default=NAMES)
    options = parser.parse_args()
    files = Files(options.folder)
    ratios, speed = [], []
    for name in options.models:
        rows = {"particlevi": [ours(name, files, options.chains, s) for s in range(options.seeds)]}
        if options.peer:
            for kind in ("diagonal", "dense"):
                rows[f"NUTS {kind}"] = [
                    nuts(name, files, kind == "dense", s, options.timed)
                    for s in range(options.seeds)
                ]
        for who, found in rows.items():
            shown = {
                key: f"{np.median([each[key] for each in found]):.3g} "
                f"[{min(each[key] for each in found):.3g}, {max(each[key] for each in found):.3g}]"
                for key in found[0]
            }
            print(
                f"{name:44} {who:14}", *(f"{key} {text}" for key, text in shown.items()), flush=True
            )
        if options.peer:
            # A chain set that has not converged has no effective draws.
            def best(key: str, rows: dict[str, Any] = rows) -> float:
                return max(
                    np.median([each[key] if each["rhat"] < 1.05 else 0.0 for each in found])
                    for who, found in rows.items()
                    if who != "particlevi"
                )

            mine = {k: np.median([e[k] for e in rows["particlevi"]]) for k in rows["particlevi"][0]}
            ratios.append(best("per_gradient") / mine["per_gradient"])
            speed.append(mine["per_second"] / max(best("per_second"), 1e-300))
            print(
                f"{name:44} gradients per draw over NUTS' {ratios[-1]:.2f}, ESS per second over "
                f"NUTS' {speed[-1]:.2f}"
            )
    if options.peer:
        print(
            f"median {np.median(ratios):.3f}, largest {max(ratios):.3f}; ESS/s {np.median(speed)}"
        )


if __name__ == "__main__":
    main()
