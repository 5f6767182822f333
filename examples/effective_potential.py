"""What does SGD minimise? Its noise, potential and loops on a small net, beside the posterior.

    python examples/effective_potential.py

trains a 16-unit tanh net on scikit-learn's digits (with ``--mnist mnist.npz``, a file with the
arrays ``x_train`` and ``y_train``, on MNIST at 7 x 7 pixels) by SGD at a constant rate until its
law no longer changes. It then prints what SGD's noise, its effective potential and its loops are,
compares SGD with SGHMC on the same posterior, and writes figures and the text to the folder
``effective_potential``.
"""

from __future__ import annotations

import argparse
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

RATE, BATCH, REPLICAS = 0.2, 32, 16


def load(mnist: Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and held-out data: pixels with mean 0 and variance 1, and class numbers."""
    if mnist is None:
        pixels, labels = load_digits(return_X_y=True)
        held_out = 450
    else:
        arrays = np.load(mnist, allow_pickle=False)
        pixels, labels = arrays["x_train"][:4000].astype(float), arrays["y_train"][:4000]
        pixels = pixels.reshape(-1, 7, 4, 7, 4).mean((2, 4)).reshape(len(labels), 49)
        held_out = 1000
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.tensor(pixels[order], dtype=torch.float32)
    y = torch.tensor(labels[order].astype(np.int64))
    x = (x - x.mean()) / x.std()
    return (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])


class Report:
    """What is printed is kept for a file too."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)


def noise_spectrum(model: Any, train: Any, start: Tensor, end: Tensor, say: Report) -> Any:
    say("\n1. The gradient noise C, and how much of parameter space it reaches")
    for name, position in (("at the start", start), ("after training", end)):
        found = sgdvi.gradient_noise(model, train, position=position, progress=True).spectrum()
        share = found.rank() / found.num_params
        say(
            f"   {name}: trace {found.trace:.3g}, rank {found.rank()} of {found.num_params} "
            f"({share:.1%}) above {found.threshold():.2g}, that is 1.2e-7 D of the largest "
            f"eigenvalue; effective rank {found.effective_rank:.1f}"
        )
    for count in (len(train[0]) // 4, len(train[0]) // 2):
        part = tuple(leaf[:count] for leaf in train)
        small = sgdvi.gradient_noise(
            nn_of(model, end), part, loss_fn=nn.functional.cross_entropy
        ).spectrum()
        say(f"   with {count} data: rank {small.rank()}, effective rank {small.effective_rank:.1f}")
    say("   The rank depends on the threshold; the effective rank says how many directions carry")
    say("   most of the noise. In all others SGD hardly diffuses.")
    return found


def net(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, 10))


def nn_of(model: Any, position: Tensor) -> nn.Module:
    """A module with these parameters."""
    tensors = model.unravel(position)
    module = net(tensors["0.weight"].shape[1])
    module.load_state_dict(tensors)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="an npz file with x_train and y_train")
    parser.add_argument("--output", type=Path, default=Path("effective_potential"))
    parser.add_argument("--work", type=float, default=1.0, help="scales the number of steps")
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    say = Report()
    train, test = load(arguments.mnist)
    count = len(train[0])
    model = pvi.from_module(
        net(train[0].shape[1]), pvi.Categorical(), pvi.Normal(scale=0.1), num_data=count
    )
    steps = int(2000 * arguments.work)
    say(f"{count} training data, D = {model.num_params}; rate {RATE}, batch {BATCH}")

    run = {"data": train, "batch_size": BATCH, "step_size": RATE / count}
    first = pvi.sample(pvi.sgd(model), num_particles=1, num_warmup=steps, num_draws=1, **run)
    solution = first.particles[0, -1]
    draws = pvi.sample(
        pvi.sgd(model),
        initial=solution.repeat(REPLICAS, 1),
        num_warmup=steps,
        num_draws=int(2000 * arguments.work),
        thin=5,
        seed=1,
        **run,
    )
    center = draws.particles[0].mean(0)
    spectrum = noise_spectrum(model, train, model.init(1)[0], center, say)
    plots.spectrum(spectrum).figure.savefig(folder / "spectrum.png", dpi=130)

    say("\n2. The effective potential, from the draws alone")
    temperature = sgdvi.scalings(RATE, BATCH).chaudhari_soatto
    # The replicas settle in different valleys: each is looked at around its own mean.
    means = draws.particles.double().mean(1)
    around = draws.particles.double() - means[:, None]
    axes = sgdvi.principal_directions(around, 2)
    flat = around @ axes
    phi = sgdvi.fit_potential(flat, temperature, num_centers=60)
    reach = 2 * flat[..., 0].std() * axes[:, 0]
    loss = sgdvi.mean_loss(model, train)
    along = sgdvi.compare_potentials(
        sgdvi.line(-reach, reach, margin=0.0),
        phi,
        lambda shift: torch.stack([loss(mean + shift) for mean in means[:4]]).mean(0),
        directions=axes,
    )
    plots.potential_against_loss(along).figure.savefig(folder / "potential.png", dpi=130)
    assert along.band is not None
    misfit, size = float(along.disagreement.abs().max()), float(along.potential.max())
    band = float(along.band.mean())
    between = means.var(0).sum() / (means.var(0).sum() + around.square().mean((0, 1)).sum())
    say(f"   {float(between):.0%} of the variance lies between replicas, in different valleys.")
    say("   Around their means, in the direction in which SGD varies most,")
    say(f"   Phi = {along.scale:.2f} x loss fits best, with correlation {along.agreement:.3f};")
    say(f"   the worst misfit is {misfit:.2g} where Phi reaches {size:.2g}, known to {band:.2g}.")
    say(f"   Temperature {temperature:.2g}; the halves of the run agree: {phi.stationary}.")
    say("   Phi is that of the marginal law in the plane of most variance; the loss is a slice.")

    say("\n3. Loops: the test against time reversal")
    coordinates = around @ sgdvi.principal_directions(around, 6)
    loops = sgdvi.circulation(coordinates, RATE * 5)
    i, j = plane = loops.strongest_plane()
    rate, error = float(loops.rates[plane]), float(loops.standard_error[plane])
    say(f"   In the 6 directions of most variance, p = {loops.p_value:.4f} for all 15 planes;")
    say(f"   the strongest, {i} and {j}, encloses {rate:.2g} ± {error:.2g} per unit of time.")
    produced = sgdvi.entropy_production(coordinates, RATE * 5)
    least, spread = produced.value, produced.standard_error
    say(f"   Entropy production is at least {least:.3g} ± {spread:.1g} nats per unit of time.")
    say("   A small p says that SGD, run backwards, would look different: it loops. Slow decay of")
    say("   autocorrelations does not say so: see null.png, where a reversible process has it too.")
    picture, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    plots.lag_covariance_loops(coordinates, plane, max_lag=150, axes=panels[0])
    flow = sgdvi.probability_current(coordinates, RATE * 5, torch.eye(6)[:, list(plane)])
    plots.current(flow, panels[1])
    picture.savefig(folder / "loops.png", dpi=130)
    null = plots.reversible_null(sgdvi.spectra(coordinates))
    null[0].figure.savefig(folder / "null.png", dpi=130)

    say("\n4. SGD as a sampler of the posterior")
    posterior = pvi.sample(
        pvi.sghmc(model, friction=2.0),
        data=train,
        step_size=0.02,
        initial=solution.repeat(8, 1),
        num_warmup=int(500 * arguments.work),
        num_draws=int(100 * arguments.work),
        thin=10,
        seed=2,
    )
    sets = {"sgd": draws, "swag": sgdvi.swag(draws, 100), "sghmc": posterior}
    table = pvi.compare(sets, test, train_data=train, thin=5)
    say(table.table())
    plots.effective_temperature(table).figure.savefig(folder / "temperature.png", dpi=130)
    noise = sgdvi.gradient_noise(model, train, position=center).diagonal()
    best = sgdvi.optimal_rate(noise, num_data=count, batch_size=BATCH)
    say(f"   By the theory for small rates, SGD would be closest to the posterior at {best:.2g}.")
    say("   A temperature above 1 says that SGD spreads further than the posterior in that")
    say("   direction, below 1 that it is more sure than it should be.")
    (folder / "report.md").write_text("\n".join([*say.lines, ""]))
    print(f"Figures and text: {folder}/")


if __name__ == "__main__":
    warnings.simplefilter("default")
    main()
