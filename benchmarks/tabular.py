"""Tables of numbers: our regressor beside its peers, on the split of bde's benchmark.

Airfoil (1503 rows) and bike sharing (17 379 rows), 80 % for training; inputs and targets
standardised on the training part, errors and densities in these units. Side by side:

* ``particlevi``: ``BayesianMLPRegressor`` with the hidden layers of bde's benchmark, 16-16-16-16,
  whatever else is its default, and the seconds that are given;
* ``bde``: ``sklearn-contrib-bde`` with the settings that are given (``--warmup``, ``--draws``);
* ``ensemble``: ten nets of the same kind, each trained by 20 000 steps of Adam and stopped at its
  best on a tenth of the training part;
* ``trees``: scikit-learn's ``HistGradientBoostingRegressor``, whose density is that of its
  residuals on a tenth of the training part.

Of ours and of the ensemble also the share of test targets in intervals of 50, 90 and 99 %, and of
ours what the verdict and the alarm say. With ``--validate`` the last fifth of the training part
takes the place of the test part, so that settings can be chosen without looking at the latter.

    python -m benchmarks.tabular [--data airfoil bikesharing] [--seconds 200] [--validate]
        [--methods particlevi bde ensemble trees] [--warmup 5000] [--draws 100] [--seeds 1]
        [--set activation=relu ...] [--page docs/howto/tabular.md]
"""

from __future__ import annotations

import argparse
import ast
import os
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import particlevi as pvi
from benchmarks._page import markdown, write
from particlevi.sklearn import BayesianMLPRegressor
from particlevi.sklearn.net import make_net, outputs_of

Array = npt.NDArray[np.float64]
FOLDER = Path(os.environ.get("PARTICLEVI_DATA", "../shared/data")) / "uci_regression"
HIDDEN = (16, 16, 16, 16)
LEVELS = (0.5, 0.9, 0.99)
MEMBERS, UPDATES = 10, 20_000


class Split(NamedTuple):
    """Standardised data."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array


class Result(NamedTuple):
    """Of one method on one split."""

    rmse: float
    nll: float
    coverage: list[float] | None
    seconds: float
    said: str = ""


def load(name: str, validate: bool) -> Split:
    """Train and test part, or a part of the former and the rest of it."""
    with np.load(FOLDER / f"{name}.npz") as file:
        x, y = file["x"].astype(float), file["y"].astype(float)
        train, test = file["train_idx"][0], file["test_idx"][0]
    if validate:
        cut = len(train) * 4 // 5
        train, test = train[:cut], train[cut:]
    center, spread = x[train].mean(0), x[train].std(0)
    x = (x - center) / np.where(spread > 0, spread, 1)
    y = (y - y[train].mean()) / y[train].std()
    return Split(x[train], y[train], x[test], y[test])


def mixture(mean: Array, scale: Array, y: Array) -> tuple[float, float, list[float]]:
    """RMSE, NLL and coverage of mixtures of ``Normal(mean, scale) [S, B]``."""
    law = torch.distributions.Normal(torch.as_tensor(mean), torch.as_tensor(scale))
    target = torch.as_tensor(y)
    density = law.log_prob(target).logsumexp(0) - np.log(len(mean))
    below = law.cdf(target).mean(0).numpy()
    inside = [float((np.abs(below - 0.5) <= level / 2).mean()) for level in LEVELS]
    error = float(np.sqrt(np.mean((mean.mean(0) - y) ** 2)))
    return error, float(-density.mean()), inside


def ours(split: Split, seed: int, seconds: float, options: dict[str, Any]) -> Result:
    """The regressor, with its verdict and the alarm."""
    began = time.perf_counter()
    options = {"hidden_layer_sizes": HIDDEN, "max_seconds": seconds, **options}
    net = BayesianMLPRegressor(random_state=seed, **options)
    net.fit(split.x, split.y)
    taken = time.perf_counter() - began
    low_high = [net.predict_interval(split.test_x, level).T for level in LEVELS]
    inside = [float(((split.test_y >= a) & (split.test_y <= b)).mean()) for a, b in low_high]
    error = float(np.sqrt(np.mean((net.predict(split.test_x) - split.test_y) ** 2)))
    loss = -float(net.log_density(split.test_x, split.test_y).mean())
    return Result(error, loss, inside, taken, f"{steps(net)}; {alarm(net, split)}")


def steps(net: Any) -> str:
    """How far the run went."""
    draws = net.draws_
    return f"{draws.particles.shape[1]} draws a chain, {draws.gradients or 0:.3g} gradients"


def alarm(net: Any, split: Split) -> str:
    """What an exact kernel moves, where chains have draws."""
    if net.draws_.particles.shape[1] < 4:
        return "too few draws for the alarm"
    data = (
        torch.as_tensor((split.x - net._center) / net._spread, dtype=torch.float32),
        torch.as_tensor((split.y - net._y_center) / net._y_spread, dtype=torch.float32)[:, None],
    )
    found = pvi.tuning.check_invariance(net.draws_, data, num_starts=2, num_steps=100)
    functional, shift, error = found.largest
    if found.ok:
        return f"alarm silent (p = {found.p_value:.3f})"
    return f"{functional} moves by {shift:+.2f} ± {error:.2f} sd (p = {found.p_value:.3f})"


def bde(split: Split, seed: int, warmup: int, draws: int) -> Result:
    """The peer."""
    from bde import BdeRegressor  # type: ignore[import-not-found]

    began = time.perf_counter()
    net = BdeRegressor(
        hidden_layers=list(HIDDEN),
        n_members=MEMBERS,
        seed=seed,
        epochs=1000,
        validation_split=0.15,
        lr=1e-3,
        weight_decay=1e-4,
        warmup_steps=warmup,
        n_samples=draws,
        n_thinning=10,
        patience=20,
    )
    net.fit(x=split.x.astype(np.float32), y=split.y.astype(np.float32))
    taken = time.perf_counter() - began
    raw = np.asarray(net.predict(split.test_x.astype(np.float32), raw=True), dtype=float)
    raw = raw.reshape(-1, len(split.test_y), 2)
    scale = np.logaddexp(0, raw[..., 1]) + 1e-6
    return Result(*mixture(raw[..., 0], scale, split.test_y), taken)


def ensemble(split: Split, seed: int) -> Result:
    """Ten nets, each stopped where it was best on data left out."""
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.as_tensor(each, dtype=torch.float32) for each in (split.x, split.y))
    order = torch.randperm(len(x), generator=generator)
    held, kept = order[: len(x) // 10], order[len(x) // 10 :]
    nets = [make_net(x.shape[1], HIDDEN, 2, "relu", 1000 * seed + k) for k in range(MEMBERS)]
    layers = range(0, len(nets[0]), 2)
    weights = [
        (
            torch.stack([net[k].weight.detach() for net in nets]).requires_grad_(),
            torch.stack([net[k].bias.detach() for net in nets]).requires_grad_(),
        )
        for k in layers
    ]
    optimizer = torch.optim.Adam([each for pair in weights for each in pair], lr=3e-3)

    def losses(rows: torch.Tensor) -> torch.Tensor:
        found = outputs_of(weights, x[rows], "relu")
        law = torch.distributions.Normal(found[..., 0], found[..., 1].exp(), validate_args=False)
        return -law.log_prob(y[rows])

    best = torch.full((MEMBERS,), torch.inf)
    chosen = [tuple(each.detach().clone() for each in pair) for pair in weights]
    for step in range(UPDATES):
        rows = kept[torch.randint(len(kept), (64,), generator=generator)]
        optimizer.zero_grad()
        losses(rows).mean(1).sum().backward()
        optimizer.step()
        if step % 50:
            continue
        with torch.no_grad():
            now = losses(held).mean(1)
            better = now < best
            best = torch.where(better, now, best)
            for pair, saved in zip(weights, chosen, strict=True):
                for value, copy in zip(pair, saved, strict=True):
                    copy[better] = value.detach()[better]
    taken = time.perf_counter() - began
    with torch.no_grad():
        test = torch.as_tensor(split.test_x, dtype=torch.float32)
        found = outputs_of(chosen, test, "relu").double().numpy()
    return Result(*mixture(found[..., 0], np.exp(found[..., 1]), split.test_y), taken)


def trees(split: Split, seed: int) -> Result:
    """Boosted trees with a constant scale."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    began = time.perf_counter()
    held = np.random.default_rng(seed).permutation(len(split.x))
    held, kept = held[: len(held) // 10], held[len(held) // 10 :]
    options = {"learning_rate": 0.05, "max_iter": 2000, "early_stopping": False}
    model = HistGradientBoostingRegressor(random_state=seed, **options)
    model.fit(split.x[kept], split.y[kept])
    scale = float(np.std(split.y[held] - model.predict(split.x[held])))
    model.fit(split.x, split.y)
    taken = time.perf_counter() - began
    mean = model.predict(split.test_x)[None]
    return Result(*mixture(mean, np.full_like(mean, scale), split.test_y), taken)


def spread(values: list[float]) -> str:
    """The mean, and the standard deviation over seeds."""
    text = f"{np.mean(values):.4f}"
    return text if len(values) < 2 else f"{text} ± {np.std(values, ddof=1):.4f}"


def row(method: str, results: list[Result]) -> list[str]:
    """A line of the table."""
    inside = "-"
    if results[0].coverage is not None:
        shares = np.mean([each.coverage for each in results], 0)
        inside = " / ".join(f"{100 * share:.0f}" for share in shares)
    return [
        method,
        spread([each.rmse for each in results]),
        spread([each.nll for each in results]),
        inside,
        f"{np.median([each.seconds for each in results]):.0f}",
        results[0].said or "-",
    ]


def main() -> None:
    """Print a table per data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=["airfoil", "bikesharing"])
    methods = ["particlevi", "bde", "ensemble", "trees"]
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--warmup", type=int, default=5000)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--set", nargs="*", default=[], help="arguments of the regressor")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    options = {}
    for each in arguments.set:
        name, _, value = each.partition("=")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    runs = {
        "particlevi": lambda split, seed: ours(split, seed, arguments.seconds, options),
        "bde": lambda split, seed: bde(split, seed, arguments.warmup, arguments.draws),
        "ensemble": ensemble,
        "trees": trees,
    }
    heads = ["method", "RMSE", "NLL", "in 50 / 90 / 99 %", "seconds", "draws and alarm"]
    for name in arguments.data:
        split = load(name, arguments.validate)
        rows = []
        for method in arguments.methods:
            results = [runs[method](split, seed) for seed in range(arguments.seeds)]
            rows.append(row(method, results))
            print(name, *rows[-1], sep=" | ", flush=True)
        if arguments.page is not None:
            write(arguments.page, {f"tabular_{name}": markdown(heads, rows)})


if __name__ == "__main__":
    main()
