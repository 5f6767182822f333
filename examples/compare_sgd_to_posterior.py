"""SGD and posterior samplers on one Bayesian neural net, side by side.

    python examples/compare_sgd_to_posterior.py

fits the same net to scikit-learn's diabetes data (regression) and digits (classification) by SGD,
an ensemble of SGD runs, SWAG and SVGD, and samples its posterior by
``pvi.sample(potential, data)``, which is given no step size and no number of steps. It prints a
table per data set and writes figures, the tables and one netCDF file per method, for ArviZ, to the
folder ``compare_sgd_to_posterior``.

What to look at: the alarm first. An exact kernel on all the data goes on from a method's draws, and
draws of the posterior do not move under it; where it moves them, what they predict is not what the
posterior predicts, though it may fit the held-out data better: the prior, or the model, is then the
one to blame. Then the distance of the predictions from the posterior's; the negative log-likelihood
on held-out data (NLL) and the calibration; and of the posterior's chains the effective sample size
in function space, which says how many independent predictions they hold, R-hat, which says whether
they agree (1 is best), and the temperature (1 is right).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import particlevi as pvi
from particlevi.diagnostics.calibration import calibration_error

MIN_DRAWS = 50
COLORS = {
    "SGD": "#7f7f7f",
    "SGD ensemble": "#1f77b4",
    "SWAG": "#2ca02c",
    "SVGD": "#9467bd",
    "posterior": "#d62728",
}


@dataclass
class Task:
    """Standardised data, the potential, and the step sizes of the methods that need one."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    potential: Any
    step_sizes: dict[str, float]
    unit: float = 1.0
    compile: bool = False

    @property
    def classifies(self) -> bool:
        return not self.train[1].is_floating_point()


def diabetes() -> Task:
    x, y = load_diabetes(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=110, random_state=0)
    mean, std, unit = x_train.mean(0), x_train.std(0), y_train.std()

    def tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        return (
            torch.tensor((x - mean) / std, dtype=torch.float32),
            torch.tensor((y - y_train.mean()) / unit, dtype=torch.float32).unsqueeze(1),
        )

    train = tensors(x_train, y_train)
    net = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 1))
    potential = pvi.from_module(
        net,
        likelihood=pvi.Gaussian(scale="learned"),
        prior=pvi.Normal(scale=1.0, fan_in=True),
        num_data=len(train[0]),
    )
    steps = {"SGD": 1e-4, "SVGD": 1e-2}
    return Task("diabetes", train, tensors(x_test, y_test), potential, steps, float(unit))


def digits() -> Task:
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=450, random_state=0, stratify=y
    )
    mean, std = x_train.mean(0), x_train.std()

    def tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        return torch.tensor((x - mean) / std, dtype=torch.float32), torch.tensor(y)

    train = tensors(x_train, y_train)
    net = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 10))
    potential = pvi.from_module(
        net,
        likelihood=pvi.Categorical(),
        prior=pvi.Normal(scale=1.5),
        num_data=len(train[0]),
    )
    steps = {"SGD": 3e-5, "SVGD": 1e-2}
    # Compiled steps are three times as fast here; on diabetes they would not pay for the compiler.
    return Task("digits", train, tensors(x_test, y_test), potential, steps, compile=True)


def run(task: Task, work: float, seconds: float = 60.0) -> dict[str, pvi.Draws]:
    """Every method on the same net and the same data."""
    potential, data, h = task.potential, task.train, task.step_sizes
    steps, epoch = int(2000 * work), len(data[0]) // 64
    batches = {"batch_size": 64, "batching": pvi.data.Minibatches(shared=True)}
    descent = pvi.sgd(potential, momentum=0.9)
    one = pvi.sample(
        descent, data, step_size=h["SGD"], num_particles=1, num_warmup=steps, num_draws=1, **batches
    )
    # The last draws of eight runs are the ensemble; one draw per epoch makes SWAG.
    eight = pvi.sample(
        descent,
        data,
        step_size=h["SGD"],
        num_particles=8,
        num_warmup=steps,
        num_draws=max(3, int(40 * work)),
        thin=epoch,
        **batches,
    )
    svgd = pvi.sample(
        pvi.svgd(potential, optimizer="adam"),
        data,
        step_size=h["SVGD"],
        num_particles=20,
        num_warmup=steps // 2,
        num_draws=1,
        **batches,
    )

    def budget(look: pvi.running.Look) -> str | None:
        # A slow machine takes longer rather than end without draws.
        spent = look.seconds > seconds and look.num_draws >= MIN_DRAWS
        return f"the budget of {seconds:g} s is spent" if spent else None

    posterior = pvi.sample(
        potential,
        data,
        num_particles=8,
        compile=task.compile,
        monitor=[
            pvi.running.converged(ess=200 * work, rhat=1.02, probe=task.test[0][:20]),
            pvi.running.Every(10, budget),
        ],
    )
    print(posterior.summary())
    return {
        "SGD": one,
        "SGD ensemble": eight[:, -1:],
        "SWAG": pvi.sgdvi.swag(eight),
        "SVGD": svgd,
        "posterior": posterior,
    }


def distance(task: Task, prediction: pvi.Prediction, posterior: pvi.Prediction) -> float:
    """Total variation of class probabilities, or the RMS difference of means in sd; over inputs."""
    difference = prediction.mean - posterior.mean
    if task.classifies:
        return float(0.5 * difference.abs().sum(-1).mean())
    return float((difference / posterior.std).square().mean().sqrt())


def summarise(
    task: Task,
    name: str,
    draws: pvi.Draws,
    prediction: pvi.Prediction,
    posterior: pvi.Prediction,
) -> dict[str, Any]:
    x, y = task.test
    row: dict[str, Any] = {"method": name}
    if task.classifies:
        row["accuracy"] = float((prediction.mean.argmax(-1) == y).float().mean())
    else:
        row["RMSE"] = float((prediction.mean - y).square().mean().sqrt()) * task.unit
    row["NLL"] = float(-draws.log_predictive_density(task.test).mean()) + np.log(task.unit)
    if task.classifies:
        row["ECE"] = calibration_error(prediction.mean, y, num_bins=10)
    else:
        low, high = prediction.quantiles
        row["coverage of 90 %"] = float(((y >= low) & (y <= high)).float().mean())
    row["ESS"] = row["R-hat"] = row["temperature"] = row["alarm"] = row["distance"] = "-"
    if prediction is posterior:
        probe = x[:20]
        sizes = draws.ess(of="predictions", inputs=probe)
        row["ESS"] = f"{np.median(sizes):.0f} ({sizes.min():.0f})"
        row["R-hat"] = f"{draws.rhat(of='predictions', inputs=probe).max():.3f}"
        warmth = draws.temperatures(task.train, thin=10)["all"]
        row["temperature"] = f"{warmth.mean:.2f} ± {warmth.mcse:.2f}"
    else:
        row["distance"] = distance(task, prediction, posterior)
    if len(draws) > 4:
        alarm = pvi.tuning.check_invariance(draws, task.train, num_starts=2, num_steps=100)
        functional, shift, error = alarm.largest
        found = "silent" if alarm.ok else f"{functional} moves by {shift:+.2f} ± {error:.2f} sd"
        row["alarm"] = f"{found} (p = {alarm.p_value:.3f})"
    row["seconds"] = draws.seconds
    return row


def table(rows: list[dict[str, Any]]) -> str:
    def show(value: Any) -> str:
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    lines += [" | ".join(show(value) for value in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def draw_predictions(task: Task, results: dict[str, pvi.Prediction], folder: Path) -> None:
    _, y = task.test
    if task.classifies:
        figure, axis = plt.subplots(figsize=(5, 5))
        for name, prediction in results.items():
            confidence, predicted = prediction.mean.max(-1)
            pieces = confidence.argsort().chunk(10)
            right = (predicted == y).float()
            points = [(float(confidence[i].mean()), float(right[i].mean())) for i in pieces]
            axis.plot(*zip(*points, strict=True), "o-", color=COLORS[name], label=name)
        axis.plot([0.6, 1], [0.6, 1], "k:", label="calibrated")
        axis.set(
            xlim=(0.6, 1.01), ylim=(0.6, 1.01), xlabel="confidence", ylabel="share that is right"
        )
        axis.set_title("Digits: reliability on held-out data")
        axis.legend()
    else:
        figure, axes = plt.subplots(1, 5, figsize=(16, 3.6), sharey=True)
        for axis, (name, prediction) in zip(axes, results.items(), strict=True):
            order = prediction.mean[:, 0].argsort()
            low, high = (q[order, 0] * task.unit for q in prediction.quantiles)
            axis.fill_between(range(len(y)), low, high, color=COLORS[name], alpha=0.25)
            axis.plot(prediction.mean[order, 0] * task.unit, color=COLORS[name])
            axis.plot(y[order, 0] * task.unit, "k.", markersize=3)
            axis.set(title=name, xlabel="patient, by prediction")
        axes[0].set_ylabel("progression minus its mean")
        figure.suptitle("Diabetes: 90 % predictive intervals on held-out patients")
    figure.tight_layout()
    figure.savefig(folder / f"{task.name}_predictions.png", dpi=130)
    plt.close(figure)


def draw_chains(task: Task, results: dict[str, pvi.Draws], folder: Path) -> None:
    x, _ = task.test
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.8))
    for axis, name in zip(axes, ("SWAG", "posterior"), strict=False):
        outputs = results[name].outputs(x[:1])[:, :, 0]
        label = "predicted progression (standardised)"
        if task.classifies:
            outputs, label = outputs - outputs.mean(-1, keepdim=True), "centred logit of class 0"
        axis.plot(outputs[..., 0].T, linewidth=0.8, alpha=0.8)
        axis.set(title=f"{name} at one test input, a line per chain", xlabel="draw", ylabel=label)
    sizes = results["posterior"].ess(of="predictions", inputs=x[:20]).ravel()
    total = results["posterior"].particles.shape[0] * results["posterior"].particles.shape[1]
    axes[2].hist(sizes, bins=20, color=COLORS["posterior"])
    axes[2].set(
        title=f"ESS of the outputs, of {total} draws",
        xlabel="ESS",
        ylabel="outputs",
    )
    figure.suptitle(task.name.capitalize())
    figure.tight_layout()
    figure.savefig(folder / f"{task.name}_chains.png", dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("compare_sgd_to_posterior"))
    parser.add_argument("--work", type=float, default=1.0, help="scales the number of steps")
    parser.add_argument("--seconds", type=float, default=60.0, help="budget of each posterior")
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    text = []
    for task in (diabetes(), digits()):
        results = run(task, arguments.work, arguments.seconds)
        predictions = {
            name: draws.predict(task.test[0], quantiles=(0.05, 0.95))
            for name, draws in results.items()
        }
        rows = [
            summarise(task, name, draws, predictions[name], predictions["posterior"])
            for name, draws in results.items()
        ]
        title = f"{task.name}: {len(task.train[0])} training and {len(task.test[0])} test examples"
        text.append(f"{title}\n\n{table(rows)}\n")
        print("\n" + text[-1], flush=True)
        draw_predictions(task, predictions, folder)
        draw_chains(task, results, folder)
        for name, draws in results.items():
            # Log-likelihoods of all data at all draws would be a gigabyte.
            few = draws.thin(max(1, draws.particles.shape[1] // 100))
            idata = few.to_arviz(task.train)
            idata.to_netcdf(str(folder / f"{task.name}_{name.replace(' ', '_').lower()}.nc"))
    note = (
        "ESS: median (smallest) over the outputs at 20 test inputs, and R-hat: the largest, by "
        "ArviZ; temperature: configurational, on all training data, 1 for the posterior; alarm: "
        "what an exact kernel moves most, in posterior standard deviations; distance of "
        "predictions from the posterior's: total variation, or RMS difference of means in "
        "predictive standard deviations. SWAG and the ensemble share a run.\n"
        "SGD, its ensemble, SWAG and SVGD give point sets, not chains, so they have no ESS."
    )
    (folder / "tables.md").write_text("\n".join([*text, note, ""]))
    print(f"{note}\nFigures, tables and netCDF files for ArviZ: {folder}/")


if __name__ == "__main__":
    main()
