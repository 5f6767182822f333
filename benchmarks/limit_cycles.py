"""The published experiment on SGD's noise and limit cycles, again, with nulls and errors.

    python benchmarks/limit_cycles.py spectra         # 6 minutes of a busy core
    python benchmarks/limit_cycles.py trajectories    # 34 minutes of a busy core

Chaudhari and Soatto, "Stochastic gradient descent performs variational inference, converges to
limit cycles for deep networks", 2018, on MNIST. ``spectra``: eigenvalues of the covariance of the
per-sample gradients of small-fc (7 x 7 pixels) and small-lenet at 20, 40 and 100 % of training, in
eval mode, by their rule for the rank. ``trajectories``: tiny-fc (16 units, five classes, batches of
128 at a constant rate) once per epoch; power of the increments and autocorrelation beside those of
a reversible autoregression, and the test against time reversal on steps that are dense in time.
"""

from __future__ import annotations

import argparse
import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _page import markdown
from torch import Tensor, nn

import particlevi as pvi

CE = nn.functional.cross_entropy


def mnist(folder: str | None, small: bool) -> tuple[Tensor, Tensor]:
    """Images, of 7 x 7 pixels if ``small``, with mean 0 and variance 1, and their labels."""
    where = Path(folder or os.environ.get("PARTICLEVI_DATA", "../shared/data")) / "mnist.npz"
    with np.load(where) as raw:
        x, y = torch.tensor(raw["x_train"]).float()[:, None], torch.tensor(raw["y_train"]).long()
    x = nn.functional.avg_pool2d(x, 4).flatten(1) if small else x
    return (x - x.mean()) / x.std(), y


def small_fc() -> nn.Module:
    return nn.Sequential(nn.Linear(49, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))


def small_lenet() -> nn.Module:
    """13 338 weights, as published."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 5), nn.MaxPool2d(3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(8, 16, 5), nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1),
        nn.Flatten(), nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def stages(net: nn.Module, x: Tensor, y: Tensor, epochs: int) -> list[tuple[int, nn.Module]]:
    """The net at 20, 40 and 100 % of training: Nesterov's momentum 0.9, a rate that falls."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True)
    steps = len(x) // 128
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    kept = []
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x))[: steps * 128].view(steps, 128):
            optimizer.zero_grad()
            CE(net(x[rows]), y[rows]).backward()
            optimizer.step()
            falling.step()
        if epoch in (epochs // 5, 2 * epochs // 5, epochs):
            kept.append((100 * epoch // epochs, copy.deepcopy(net).eval()))
    return kept


def spectra(args: argparse.Namespace) -> None:
    """Eigenvalues of C and their number, by the published rule and by 1 % of the largest."""
    heads = ["net", "D", "training", "error", "N", "mean ± sd of eigenvalues", "rank / D",
             "in float64", "above 1 %", "effective rank", "top 10 in the end"]  # fmt: skip
    rows = []
    for name, make, epochs in (("small-fc", small_fc, 20), ("small-lenet", small_lenet, 5)):
        torch.manual_seed(0)
        x, y = mnist(args.data, name == "small-fc")
        kept = stages(make(), x, y, epochs)
        part = x[: args.num_data], y[: args.num_data]
        ends = pvi.noise.measure(kept[-1][1], part, CE).spectrum(top=10).vectors
        for percent, net in kept:
            with torch.no_grad():
                wrong = sum(
                    int((net(a).argmax(1) != b).sum())
                    for a, b in zip(x.split(5000), y.split(5000), strict=True)
                )
            noise = pvi.noise.measure(net, part, CE)
            found, size = noise.spectrum(), noise.num_params
            every = torch.zeros(size, dtype=torch.float64)
            every[: len(found.eigenvalues)] = found.eigenvalues
            top = noise.spectrum(top=10).vectors
            overlap = float((ends.T @ top).square().sum()) / 10
            rows.append([
                name, str(size), f"{percent} %", f"{100 * wrong / len(x):.2f} %",
                str(args.num_data), f"{float(every.mean()):.2g} ± {float(every.std()):.2g}",
                f"{found.rank() / size:.2%}",
                f"{found.rank(torch.finfo(torch.float64).eps) / size:.0%}",
                str(found.rank(0.01 / size)), f"{found.effective_rank:.1f}", f"{overlap:.2f}",
            ])  # fmt: skip
            print(rows[-1], flush=True)
    print(markdown(heads, rows))


def tiny_fc(folder: str | None) -> tuple[Any, tuple[Tensor, Tensor]]:
    """The net of the trajectories as a potential, and its 30 000 images of five classes."""
    torch.manual_seed(0)
    x, y = mnist(folder, True)
    rows = (y < 5).nonzero()[:30_000, 0]
    x, y = x[rows], y[rows]
    net = nn.Sequential(nn.Linear(49, 16), nn.ReLU(), nn.Linear(16, 5))
    return pvi.from_module(net, pvi.Categorical(), pvi.Flat(), num_data=len(x)), (x, y)


def descent(model: Any, data: tuple[Tensor, Tensor], args: argparse.Namespace) -> Tensor:
    """The weights after each epoch but the first hundredth of them, ``[P, T, D]``."""
    epoch, discarded = len(data[0]) // 128, args.epochs // 100
    return pvi.sample(
        pvi.sgd(model, momentum=0.9), data, num_particles=args.chains, batching="epoch",
        step_size=args.rate / len(data[0]), batch_size=128, compile=True,
        num_warmup=discarded * epoch, num_draws=args.epochs - discarded, thin=epoch,
    ).particles  # fmt: skip


def trajectories(args: argparse.Namespace) -> None:
    """What the published curves show, and whether the chain looks the same backwards."""
    model, data = tiny_fc(args.data)
    draws = descent(model, data, args)
    stationary = look_back(draws)
    axes = pvi.sgdvi.principal_directions(draws[:, :: max(1, draws.shape[1] // 5000)], 6)
    every = draws.shape[0] * draws.shape[1]
    starts = draws.flatten(0, 1)[torch.linspace(0, every - 1, 64).long()]
    for name, initial in (("of the run", starts), ("of its end", draws[:, -1].repeat(64, 1)[:64])):
        dense = pvi.sample(
            pvi.sgd(model, momentum=0.9), data, initial=initial, step_size=args.rate / len(data[0]),
            batch_size=128, compile=True, num_draws=2000, thin=2, seed=1,
        ).particles.double()  # fmt: skip
        coordinates = (dense - draws.mean((0, 1)).double()) @ axes
        looped = pvi.sgdvi.circulation(coordinates, 2 * args.rate / (1 - 0.9), num_blocks=64)
        plane = looped.strongest_plane()
        print(
            f"loops from 64 states {name}, in the 6 directions of most variance: p = "
            f"{looped.p_value:.4f}, stationary: {looped.stationary} (the run: {stationary}); "
            f"strongest plane {plane}: {float(looped.rates[plane]):.2g} ± "
            f"{float(looped.standard_error[plane]):.1g} of area per unit of time"
        )
    for epoch in torch.linspace(0, draws.shape[1] - 1, 5).long().tolist():
        found = pvi.noise.measure(model, data, position=draws[0, epoch])
        slope = float(found.gradient.norm()) / draws.shape[-1] ** 0.5
        print(f"epoch {epoch + 1} of those kept: |grad f| / sqrt(D) {slope:.3g}")


def look_back(draws: Tensor) -> bool | None:
    """Print the published curves' figures beside those of the reversible null."""
    moving = draws[..., draws.std((0, 1)) > 0]
    found = pvi.sgdvi.spectra(moving)
    near = found.frequencies < 0.2
    print(f"{draws.shape[1]} epochs of {draws.shape[0]} chains, stationary: {found.stationary}")
    for name, own, null in (
        ("power of increments at low frequencies", found.power[near], found.null_power[near]),
        ("power at the highest frequency", found.power[-1:], found.null_power[-1:]),
        ("autocorrelation at 10 epochs", found.autocorrelation[10:11],
         found.null_autocorrelation[10:11]),
        ("autocorrelation at 100 epochs", found.autocorrelation[100:],
         found.null_autocorrelation[100:]),
    ):  # fmt: skip
        print(f"{name}: {float(own.mean()):.3g}, of the autoregression {float(null.mean()):.3g}")
    return found.stationary


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=["spectra", "trajectories"])
    parser.add_argument("--data", help="folder of mnist.npz")
    parser.add_argument("--num-data", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=100_000)
    parser.add_argument("--chains", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    {"spectra": spectra, "trajectories": trajectories}[args.part](args)


if __name__ == "__main__":
    main()
