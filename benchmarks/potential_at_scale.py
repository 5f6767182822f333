"""Is what SGD minimises the loss? Slices of Phi through nets of 1e5 parameters, from SGD's draws.

    python benchmarks/potential_at_scale.py --figure FILE     # 8 minutes of a busy core
    python benchmarks/potential_at_scale.py --net convolutional --window 20 40 80 --seed 1

A tanh net 196-484-10 (D = 100 198) and a net of two convolutions (D = 100 490) on 4000 MNIST images
of 14 x 14 pixels, with weight decay 0.005. From a trained point, chains of SGD at a constant rate,
batches of 32 drawn independently; only coordinates along the five top eigenvectors of the gradient
noise and the five of the Hessian are kept of each draw. Along each, Phi given the other four by
conditional score matching, with errors over stretches of chains, beside the loss on the same line
through the mean of the iterates. ``scale`` is c of the fit ``Phi = c f``: one number for all
directions if Phi is the loss. Where noise along v decides, ``c v'Cv`` is ``1 - eta f''/2`` (the law
of a Gaussian chain in an eigenvector that noise and Hessian share), in the next column. ``band`` is
the error of Phi over Phi's own variation on the line, both as roots of mean squares.
"""

from __future__ import annotations

import argparse
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from _page import markdown
from torch import Tensor, nn

import particlevi as pvi
from particlevi import noise, sgdvi

NUM_DATA, DECAY, BATCH, TOP = 4000, 0.005, 32, 5
CHAINS, PARTS, GRID, REACH = 4, 4, 21, 1.5


def mnist(folder: str | None) -> tuple[Tensor, Tensor]:
    """The first images, of 14 x 14 pixels with mean 0 and variance 1, and their labels."""
    where = Path(folder or os.environ.get("PARTICLEVI_DATA", "../shared/data")) / "mnist.npz"
    if not where.exists():
        raise SystemExit(f"{where} is missing: pass --data, the folder of mnist.npz.")
    with np.load(where) as raw:
        x = torch.tensor(raw["x_train"][:NUM_DATA]).float()[:, None]
        y = torch.tensor(raw["y_train"][:NUM_DATA]).long()
    x = nn.functional.avg_pool2d(x, 2)
    return (x - x.mean()) / x.std(), y


def dense() -> nn.Module:
    """196-484-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(196, 484), nn.Tanh(), nn.Linear(484, 10))


def convolutional() -> nn.Module:
    """Two convolutions of 3 x 3, of 16 and 32 channels, and two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(288, 320), nn.ReLU(), nn.Linear(320, 10),
    )  # fmt: skip


class Line(NamedTuple):
    """Phi and the loss along one direction."""

    name: str
    points: Tensor
    found: sgdvi.Slice
    curvature: float
    spread: float
    variance: float
    kurtosis: float

    @property
    def band(self) -> float:
        """The error of Phi over the variation of Phi."""
        assert self.found.band is not None
        return float(self.found.band.square().mean().sqrt() / self.found.potential.std())


class Run(NamedTuple):
    """Draws along directions through a centre, the last points, and where lines go through."""

    center: Tensor
    directions: Tensor
    draws: Tensor
    ends: Tensor
    through: Tensor


def trained(model: Any, data: tuple[Tensor, Tensor], args: argparse.Namespace) -> Tensor:
    """Where SGD is after so many steps from a fresh net."""
    run = pvi.sample(
        pvi.sgd(model), data, initial="fresh", num_particles=1, batch_size=BATCH,
        step_size=args.rate / NUM_DATA, num_warmup=args.steps - 1, num_draws=1, seed=args.seed,
    )  # fmt: skip
    return run.particles[0, -1]


def lines(
    name: str, model: Any, data: tuple[Tensor, Tensor], args: argparse.Namespace
) -> dict[str, list[Line]]:
    """Along the top directions of noise and curvature, of the motion and about running means."""
    begun = time.process_time()

    def tell(what: str) -> None:
        print(f"{name}: {what}, {time.process_time() - begun:.0f} s", flush=True)

    center = trained(model, data, args)
    tell("trained")
    here = noise.measure(model, data, position=center)
    loudest = here.spectrum(top=TOP).vectors[:, :TOP]
    tell("noise directions")
    stiffest = sgdvi.invariant_subspace(here, TOP).directions
    tell("curvature directions")
    directions = torch.cat([loudest.double(), stiffest.double()], 1)
    keep = pvi.storage.InMemory(keep=pvi.storage.projections(directions))
    ends, parts, place = [], [], center.repeat(CHAINS, 1)
    for part in range(PARTS):
        run = pvi.sample(
            pvi.sgd(model), data, initial=place, batch_size=BATCH, step_size=args.rate / NUM_DATA,
            num_warmup=0 if part else args.steps, num_draws=args.draws // PARTS, thin=5,
            store=keep, seed=PARTS * args.seed + part,
        )  # fmt: skip
        place = run.last()
        parts.append(run.particles.double() - center.double() @ directions)
        ends.append(place)
    tell("run")
    whole = Run(center, directions, torch.cat(parts, 1), place, torch.cat(ends).mean(0)[None])
    nets = {}
    for window in args.window or [0]:
        seen = about_floors(whole, window) if window else whole
        key = f"{name}, window {window}" if window else name
        nets[key] = slices(model, data, here, seen, args.rate)
        tell("slices")
        told(key, nets[key], sgdvi.is_stationary(seen.draws))
    return nets


def told(name: str, found: list[Line], stationary: bool | None) -> None:
    """One scale for all directions, and what each figure ranges over."""
    mean, chi, ratio = common(found)
    print(
        f"{name}: stationary {stationary}; one scale for all {mean:.3g}, chi-square {chi:.0f} for "
        f"{2 * TOP - 1}; largest over smallest {ratio:.1f}; correlation "
        f"{_range([line.found.agreement for line in found])}, c v'Cv "
        f"{_range([line.found.scale * line.variance for line in found])}, bands "
        f"{_range([line.band for line in found])}, kurtosis "
        f"{_range([line.kurtosis for line in found])}",
        flush=True,
    )


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def about_floors(run: Run, window: int) -> Run:
    """The motion about a running mean of ``window`` draws, and lines through the last of these."""
    size = run.draws.shape[2]
    weights = run.draws.new_full((size, 1, window), 1 / window)
    slow = nn.functional.conv1d(run.draws.mT, weights, groups=size).mT
    left = (window - 1) // 2
    fast = run.draws[:, left : left + slow.shape[1]] - slow
    last = run.draws[:, -1] - slow[:, -1]
    gram = run.directions.T @ run.directions
    away = torch.linalg.solve(gram, last.T).T @ run.directions.T
    return run._replace(draws=fast, through=run.ends - away.to(run.ends))


def slices(model: Any, data: tuple[Tensor, Tensor], here: Any, run: Run, rate: float) -> list[Line]:
    """Phi and the loss along each direction; the loss is the mean over lines through points."""
    center, draws = run.center.double(), run.draws
    variance = torch.cat(
        [noise.average(here, run.ends, v).matrix.diagonal() for v in run.directions.split(TOP, 1)]
    )
    single = sgdvi.mean_loss(model, data, chunk_size=1)
    temperature = noise.temperature(rate, BATCH)
    spread, mean = draws.std((0, 1)), draws.mean((0, 1))
    at = torch.linspace(-REACH, REACH, GRID, dtype=torch.float64)
    found = []
    for k, v in enumerate(run.directions.T):
        family = range(TOP) if k < TOP else range(TOP, 2 * TOP)
        rest = [j for j in family if j != k]
        phi = sgdvi.fit_potential(draws[..., [k]], temperature, given=draws[..., rest])
        start, through = center + mean[k] * v, run.through.double()
        if len(through) == 1:
            through = through + (start - through) @ v[:, None] * v

        def loss(points: Tensor, start: Tensor = start, through: Tensor = through) -> Tensor:
            return torch.stack([single(point + points - start) for point in through]).mean(0)

        points = start + (at * spread[k])[:, None] * v
        cut = sgdvi.compare_potentials(points, phi, loss, directions=v[:, None], origin=center)
        # Of f = a + b t + c t^2: the curvature is 2 c.
        powers = torch.stack([torch.ones_like(at), at * spread[k], (at * spread[k]) ** 2], 1)
        curvature = 2 * float(torch.linalg.lstsq(powers, cut.loss[:, None]).solution[2])
        which = "noise" if k < TOP else "curvature"
        found.append(
            Line(
                f"{which} {k % TOP + 1}", at * spread[k], cut, curvature, float(spread[k]),
                float(variance[k]), float(((draws[..., k] - mean[k]) / spread[k]).pow(4).mean()),
            )
        )  # fmt: skip
    return found


def table(net: str, found: list[Line], rate: float) -> list[list[str]]:
    """A row for each direction."""
    return [
        [
            net, line.name, f"{line.curvature:.3g}", f"{line.variance:.3g}", f"{line.spread:.3g}",
            f"{line.found.scale:.3g} ± {line.found.scale_error:.2g}",
            f"{line.found.scale * line.variance:.2f} ± "
            f"{line.found.scale_error * line.variance:.2f}",
            f"{1 - rate * line.curvature / 2:.2f}", f"{line.found.agreement:.3f}",
            f"{line.band:.2f}", f"{line.kurtosis:.1f}",
        ]
        for line in found
    ]  # fmt: skip


def common(found: list[Line]) -> tuple[float, float, float]:
    """The best single scale, its chi-square for K - 1 degrees of freedom, largest over smallest."""
    scales = torch.tensor([line.found.scale for line in found])
    weights = torch.tensor([line.found.scale_error for line in found]) ** -2.0
    mean = float((weights * scales).sum() / weights.sum())
    return (
        mean,
        float((weights * (scales - mean) ** 2).sum()),
        float(scales.max() / scales.min()),
    )


def draw(nets: dict[str, list[Line]], temperature: float, path: Path) -> None:
    """Phi with its errors and the loss, in units of T, along two directions of each kind."""
    import matplotlib.pyplot as plt

    shown = (0, TOP - 1, TOP, 2 * TOP - 1)
    figure, axes = plt.subplots(len(nets), len(shown), figsize=(13, 3.1 * len(nets)), squeeze=False)
    for row, (net, found) in zip(axes, nets.items(), strict=True):
        scale = common(found)[0]
        for axis, k in zip(row, shown, strict=True):
            line = found[k]
            phi, band = line.found.potential / temperature, line.found.band / temperature
            axis.fill_between(line.points, phi - 2 * band, phi + 2 * band, alpha=0.3)
            axis.plot(line.points, phi, label="Phi / T, 2 errors")
            axis.plot(line.points, scale * line.found.loss / temperature, "k--", label="c f / T")
            axis.set_title(f"{net}, {line.name}", fontsize="medium")
            axis.set_ylim(-0.3, 3)
    axes[0, 0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Both nets."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of mnist.npz")
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=8000, help="of training, and of warm-up")
    parser.add_argument("--draws", type=int, default=4000, help="of each chain, every fifth step")
    parser.add_argument("--net", choices=["dense", "convolutional"], nargs="+")
    parser.add_argument("--window", type=int, nargs="+", help="draws of a mean that is taken off")
    parser.add_argument("--seed", type=int, default=0, help="of the net and of its runs")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    data = mnist(args.data)
    nets: dict[str, list[Line]] = {}
    makers = {"dense": dense, "convolutional": convolutional}
    for name in args.net or makers:
        torch.manual_seed(args.seed)
        prior = pvi.Normal(1 / math.sqrt(DECAY * NUM_DATA))
        model = pvi.from_module(makers[name](), pvi.Categorical(), prior, num_data=NUM_DATA)
        print(f"{name}: D = {model.num_params}", flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", sgdvi.NotStationaryWarning)
            nets |= lines(name, model, data, args)
    rows = [row for name, found in nets.items() for row in table(name, found, args.rate)]
    heads = ["net", "direction", "f''", "v'Cv", "sd of draws", "c", "c v'Cv", "1 - eta f''/2",
             "correlation", "band", "kurtosis"]  # fmt: skip
    print(markdown(heads, rows))
    if args.figure:
        draw(nets, noise.temperature(args.rate, BATCH), args.figure)


if __name__ == "__main__":
    main()
