"""What does SGD minimise? Its noise, potential and loops on a small net, beside the posterior.

    python examples/effective_potential.py

trains a 6-unit tanh net on MNIST at 7 x 7 pixels by SGD at a constant rate until its law no longer
changes. It then prints what SGD's noise, its effective potential and its loops are, compares SGD
with SGHMC on the same posterior, and writes figures and the text to the folder
``effective_potential``. MNIST is read from ``mnist.npz``, with the arrays ``x_train`` and
``y_train``, in the folder that ``--data`` or the environment variable ``PARTICLEVI_DATA`` names,
else in ``../shared/data``; without that file scikit-learn's digits take its place.

The net is small and its prior narrow on purpose: flat directions and unused units relax so slowly
that SGD on larger nets is not stationary after any number of steps that one would wait for. The
text says whether it was stationary here.
"""

from __future__ import annotations

import argparse
import os
import textwrap
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import particlevi as pvi
from particlevi import plots, sgdvi

UNITS, PRIOR_SCALE, RATE, BATCH, REPLICAS, THIN = 6, 0.15, 0.3, 32, 16, 20
DESCENT, WARMUP, DRAWS = 10_000, 4_000, 1_600


def load(folder: Path) -> tuple[str, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Name, training and held-out data: pixels with mean 0 and variance 1, and class numbers."""
    if (folder / "mnist.npz").exists():
        arrays = np.load(folder / "mnist.npz", allow_pickle=False)
        pixels, labels = arrays["x_train"][:4000].astype(float), arrays["y_train"][:4000]
        pixels = pixels.reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(len(labels), 49)
        name, held_out = "MNIST at 7 x 7 pixels", 1000
    else:
        pixels, labels = load_digits(return_X_y=True)
        name, held_out = "digits at 8 x 8 pixels", 450
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.tensor(pixels[order], dtype=torch.float32)
    y = torch.tensor(labels[order].astype(np.int64))
    x = (x - x.mean()) / x.std()
    return name, (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])


class Report:
    """What is printed is kept for a file too."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, *paragraphs: str) -> None:
        for text in paragraphs:
            wrapped = text if text.startswith("|") else textwrap.fill(text, 96)
            print(wrapped, flush=True)
            self.lines.append(wrapped)


def train_to_stationarity(model: Any, train: Any, work: float) -> tuple[Tensor, pvi.Draws]:
    """The path of one descent ``[11, D]``, from its start, and replicas at a constant rate."""
    count, steps = model.num_data, int(DESCENT * work / 10) * 10
    start = model.init(8)
    descent = pvi.sample(
        pvi.sgd(model, momentum=0.9),
        train,
        initial=start,
        step_size=lambda k: (0.2 * (1 - k / steps) + 1e-3) / count,
        batch_size=4 * BATCH,
        num_draws=10,
        thin=steps // 10,
    )
    ends = sgdvi.mean_loss(model, train)(descent.particles[:, -1])
    best = int(ends.argmin())
    replicas = pvi.sample(
        pvi.sgd(model),
        train,
        initial=descent.particles[best, -1].repeat(REPLICAS, 1),
        step_size=RATE / count,
        batch_size=BATCH,
        num_warmup=int(WARMUP * work),
        num_draws=int(DRAWS * work),
        thin=THIN,
        seed=1,
    )
    return torch.cat([start[best][None], descent.particles[best]]), replicas


def memory(series: Tensor) -> float:
    """Steps between nearly independent draws: the integrated autocorrelation time."""
    found = sgdvi.spectra(series, num_frequencies=16, max_lag=series.shape[1] // 4).autocorrelation
    ends = torch.nonzero(found < 0.05).flatten()
    last = int(ends[0]) if len(ends) else len(found)
    return THIN * float(2 * found[:last].sum() - 1)


def net(inputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, 10))


def noise_spectrum(module: nn.Module, data: Any, label: str, say: Report) -> Any:
    found = pvi.noise.measure(
        module, data, loss_fn=nn.functional.cross_entropy, progress=True
    ).spectrum()
    most = int((found.eigenvalues.cumsum(0) < 0.9 * found.trace).sum()) + 1
    say(
        f"| {label} | {found.num_params} | {found.num_data} | {found.trace:.3g} | {found.rank()} "
        f"| {found.rank() / found.num_params:.1%} | {found.rank(0.01 / found.num_params)} "
        f"| {most} | {found.effective_rank:.1f} |"
    )
    return found


def noise(module: nn.Module, model: Any, train: Any, path: Tensor, say: Report) -> Any:
    say("", "## 1. The noise of the gradient: C, the covariance of per-sample gradients", "")
    say("| net | D | N | trace | rank | rank / D | above 1 % | 90 % of trace | effective rank |")
    say("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    count = model.num_data
    points = [(0, count), (2, count), (4, count), (10, count), (10, count // 2), (10, count // 4)]
    spectra = []
    for stage, size in points:
        module.load_state_dict(model.unravel(path[stage]))
        part = tuple(leaf[:size] for leaf in train)
        label = f"after {10 * stage} % of the descent"
        spectra.append(noise_spectrum(module, part, label, say))
    for units in (64, 256):
        wide = net(train[0].shape[1], units)
        larger = pvi.from_module(wide, pvi.Categorical(), pvi.Normal(1.0), num_data=count)
        trained = pvi.sample(
            pvi.sgd(larger, momentum=0.9),
            train,
            step_size=0.05 / count,
            batch_size=4 * BATCH,
            num_particles=1,
            num_warmup=600,
            num_draws=1,
        )
        wide.load_state_dict(larger.unravel(trained.particles[0, 0]))
        noise_spectrum(wide, train, f"{units} units, prior scale 1, 600 steps", say)
    found = spectra[3]
    say(
        "",
        "rank: eigenvalues above D x 1.2e-7 (the precision of single floats) of the largest, here "
        f"{found.threshold():.2g}. It grows with N, because rare data add weak directions, and "
        "its share falls with D: the threshold grows with D, the number of directions with much "
        "noise does not. So the published 0.3 to 2 % hold for nets with more than 10 000 weights, "
        "not for small ones.",
        "above 1 %: eigenvalues above 1 % of the largest; 90 % of trace: how many make up 90 % of "
        "the noise; effective rank: how many equal ones would be as spread out. These three depend "
        "less on N and D, and settle early in training. Most of the noise lies in about "
        f"{found.effective_rank:.0f} of {found.num_params} directions.",
    )
    return found


def potential(model: Any, train: Any, draws: Tensor, say: Report, folder: Path) -> None:
    say("", "## 2. The effective potential Phi, from the draws alone", "")
    temperature = pvi.noise.temperature(RATE, BATCH)
    center, loss = draws.mean((0, 1)), sgdvi.mean_loss(model, train)
    around = draws - center
    here = pvi.noise.measure(model, train, position=center)
    directions = {
        "most variance": sgdvi.principal_directions(around, 1),
        "most curvature": sgdvi.invariant_subspace(here, 1).directions,
    }
    _, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for (name, axis), panel in zip(directions.items(), panels, strict=True):
        flat = around @ axis
        phi = sgdvi.fit_potential(flat, temperature, num_centers=20)
        reach = 2 * flat.std() * axis[:, 0]
        along = sgdvi.compare_potentials(
            sgdvi.line(center - reach, center + reach, margin=0.0),
            phi,
            loss,
            directions=axis,
            origin=center,
        )
        plots.potential_against_loss(along, panel).set_title(f"Direction of {name}")
        assert along.band is not None
        say(
            f"Direction of {name}: Phi = ({along.scale:.3g} ± {along.scale_error:.2g}) x loss "
            f"+ constant fits best, with correlation {along.agreement:.3f}.",
            f"  The worst misfit is {float(along.disagreement.abs().max()):.2g} where Phi reaches "
            f"{float(along.potential.max()):.2g}, known to {float(along.band.mean()):.2g}.",
        )
    panels[0].figure.savefig(folder / "potential.png", dpi=130)
    axes = sgdvi.principal_directions(around, 2)
    flat = around @ axes
    corner = center - (2 * flat.flatten(0, 1).std(0) * axes).sum(1)
    wide = 4 * flat.flatten(0, 1).std(0) * axes
    square = sgdvi.plane(corner, corner + wide[:, 0], corner + wide[:, 1], margin=0.0)
    phi = sgdvi.fit_potential(flat, temperature, num_centers=60)
    both = sgdvi.compare_potentials(square, phi, loss, directions=axes, origin=center)
    plots.potential_against_loss(both)[0].figure.savefig(folder / "plane.png", dpi=130)
    say(
        "If the noise were the same in every direction, one factor would do for all, and SGD would "
        "minimise the loss. The factor is large where SGD is held more tightly than the loss alone "
        f"would hold it at its temperature T = rate / (2 batch) = {temperature:.2g}. (Phi is that "
        "of the marginal law, averaged over all other directions; the loss is a slice through the "
        "mean. plane.png has both in the plane of most variance.)",
    )


def loops(
    model: Any, train: Any, draws: Tensor, axes: Tensor, work: float, say: Report, folder: Path
) -> None:
    say("", "## 3. Loops: does SGD look the same backwards in time?", "")
    # Loops are seen between neighbouring steps: many short runs from the stationary law.
    flat, size, thin = draws.flatten(0, 1), axes.shape[1], 2
    dense = pvi.sample(
        pvi.sgd(model),
        train,
        initial=flat[torch.linspace(0, len(flat) - 1, 64).long()].float(),
        step_size=RATE / model.num_data,
        batch_size=BATCH,
        num_draws=int(600 * work),
        thin=thin,
        seed=3,
    )
    time = RATE * thin
    coordinates = (dense.particles.double() - draws.mean((0, 1))) @ axes
    found = sgdvi.circulation(coordinates, time)
    i, j = plane = found.strongest_plane()
    produced = sgdvi.entropy_production(coordinates, time)
    verdict = "loops were found" if found.p_value < 0.01 else "no loops can be told from chance"
    say(
        f"In the {size} directions of most variance {verdict}: p = {found.p_value:.4f} for all "
        f"{size * (size - 1) // 2} planes together. The strongest, of directions {i} and {j}, "
        f"encloses {float(found.rates[plane]):.2g} ± {float(found.standard_error[plane]):.1g} of "
        f"area per unit of time, that is per {1 / RATE:.1f} steps. Entropy production is at least "
        f"{produced.value:.2g} ± {produced.standard_error:.1g} nats per unit of time; it is 0 for "
        "what looks the same backwards.",
        "A small p says that SGD, run backwards, would look different. Slow autocorrelations and a "
        "dip in the spectrum do not say so: null.png has both for a process without loops.",
    )
    picture, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    plots.lag_covariance_loops(coordinates, plane, max_lag=150, axes=panels[0])
    flow = sgdvi.probability_current(coordinates, time, torch.eye(size)[:, list(plane)])
    plots.current(flow, panels[1])
    panels[1].set(xlabel=f"direction {i}", ylabel=f"direction {j}")
    picture.savefig(folder / "loops.png", dpi=130)
    null = plots.reversible_null(sgdvi.spectra(coordinates))
    null[0].figure.savefig(folder / "null.png", dpi=130)


def comparison(
    model: Any, train: Any, test: Any, draws: pvi.Draws, work: float, say: Report, folder: Path
) -> None:
    say("", "## 4. SGD as a sampler of the posterior", "")
    center = draws.particles.mean((0, 1))
    suggested = pvi.suggest_step_size(model, train, at=center[None], friction=2.0, verbose=False)
    posterior = pvi.sample(
        pvi.sghmc(model, friction=2.0),
        train,
        initial=draws.particles[:8, -1],
        step_size=suggested.momentum,
        num_warmup=int(1500 * work),
        num_draws=int(250 * work),
        thin=16,
        seed=2,
    )
    sets = {"sgd": draws, "swag": sgdvi.swag(draws, 100), "sghmc": posterior}
    table = pvi.compare(sets, test, train_data=train, thin=5)
    say(table.explain(), "")
    plots.effective_temperature(table).figure.savefig(folder / "temperature.png", dpi=130)
    diagonal = pvi.noise.measure(model, train, position=center).diagonal()
    best = sgdvi.optimal_rate(diagonal, num_data=model.num_data, batch_size=BATCH)
    stable = 2 * model.num_data / suggested.curvature
    kinetic = posterior.temperatures(train)["kinetic"]
    beyond = " So no constant rate reaches the posterior's spread." if best > stable else ""
    say(
        f"SGHMC's own temperature is {kinetic.mean:.3f} ± {kinetic.mcse:.3f}; 1 says that it "
        "samples the posterior.",
        "temperature.png has SGD's temperature in every direction. Above 1 it says that SGD "
        "spreads further than the posterior there, below 1 that it is more sure than it should be. "
        f"Directions of curvature 1 / {PRIOR_SCALE}^2 = {PRIOR_SCALE**-2:.0f} are held by the "
        "prior alone: there the noise is weak, and so is the spread.",
        "By the theory for small rates SGD would be closest to the posterior at a rate of "
        f"{best:.2g}; here it was {RATE}, and steps are stable below {stable:.2g}.{beyond}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with mnist.npz; see above")
    parser.add_argument("--output", type=Path, default=Path("effective_potential"))
    parser.add_argument("--work", type=float, default=1.0, help="scales the number of steps")
    arguments = parser.parse_args()
    if arguments.work < 0.3:
        parser.error(f"--work must be at least 0.3, or the runs are too short: {arguments.work}")
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    say = Report()
    name, train, test = load(
        Path(arguments.data or os.environ.get("PARTICLEVI_DATA", "../shared/data"))
    )
    module = net(train[0].shape[1], UNITS)
    prior = pvi.Normal(scale=PRIOR_SCALE)
    model = pvi.from_module(module, pvi.Categorical(), prior, num_data=len(train[0]))
    say(
        f"# What SGD minimises, on {name}",
        "",
        f"N = {len(train[0])} training data, D = {model.num_params} parameters; {REPLICAS} replicas"
        f" of SGD, rate {RATE} on the mean loss, batches of {BATCH}.",
    )
    path, draws = train_to_stationarity(model, train, arguments.work)
    values = draws.particles.double()
    axes = sgdvi.principal_directions(values, 6)
    coordinates = (values - values.mean((0, 1))) @ axes
    length = values.shape[1]
    stationary = sgdvi.is_stationary(coordinates, "SGD in its 6 directions of most variance")
    say(
        f"After the warm-up each ran for {length * THIN} steps. In its direction of most variance "
        f"it remembers for about {memory(coordinates[..., :1]):.0f}.",
        "SGD was stationary: the halves of the run agree, and it is long against its memory."
        if stationary
        else "SGD was NOT stationary, so what follows describes a passage, not a law: what looks "
        "like a loop may be a drift. Run longer (--work 3), at a larger RATE, or with a narrower "
        "PRIOR_SCALE: the prior's curvature sets the slowest pace.",
    )
    spectrum = noise(module, model, train, path, say)
    plots.spectrum(spectrum).figure.savefig(folder / "spectrum.png", dpi=130)
    potential(model, train, values, say, folder)
    loops(model, train, values, axes, arguments.work, say, folder)
    comparison(model, train, test, draws, arguments.work, say, folder)
    (folder / "report.md").write_text("\n".join([*say.lines, ""]))
    print(f"Figures and text: {folder}/")


if __name__ == "__main__":
    warnings.simplefilter("default")
    main()
