"""The picture of the home page: what a Bayesian net predicts, and how warm SGD is.

python docs/figures/home.py     # about a minute on one core
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn

import particlevi as pvi


def intervals(axis: plt.Axes) -> None:
    """90 % intervals for the progress of diabetes, of patients who were held out."""
    x, y = load_diabetes(return_X_y=True)
    x, x_test, y, y_test = train_test_split(x, y, test_size=147, random_state=0)
    mean, std = x.mean(0), x.std(0)
    x, x_test = (torch.tensor((each - mean) / std, dtype=torch.float32) for each in (x, x_test))
    mean, std = y.mean(), y.std()
    y, y_test = (torch.tensor((each - mean) / std, dtype=torch.float32) for each in (y, y_test))
    net = nn.Sequential(nn.Linear(10, 50), nn.ReLU(), nn.Linear(50, 1))
    likelihood = pvi.Gaussian(scale="learned")
    potential = pvi.from_module(net, likelihood, pvi.Normal(fan_in=True), num_data=len(x))
    draws = pvi.sample(potential, (x, y.unsqueeze(1)), num_particles=8, progress=False)
    found = draws.predict(x_test, quantiles=(0.05, 0.95))
    order = found.mean[:, 0].argsort()
    low, high = found.quantiles[:, order, 0]
    truth = y_test[order]
    axis.fill_between(range(len(order)), low, high, alpha=0.25, label="90 % interval")
    axis.plot(found.mean[order, 0], label="mean")
    axis.plot(truth, "k.", markersize=4, label="patients")
    inside = float(((low <= truth) & (truth <= high)).float().mean())
    axis.set(
        title=f"Diabetes: {inside:.0%} of the patients inside",
        xlabel="held-out patient, by prediction",
        ylabel="progress, in sd",
    )
    axis.legend(frameon=False)


def warmth(axis: plt.Axes) -> None:
    """Variance of SGD over that of the posterior, by eigendirection of the Hessian."""
    x, y = load_breast_cancer(return_X_y=True)
    data = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32), torch.tensor(y)
    net = nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 2))
    potential = pvi.from_module(net, pvi.Categorical(), pvi.Normal(1.0), num_data=len(y))
    sgd = pvi.sample(
        pvi.sgd(potential),
        data,
        step_size=0.1 / len(y),
        batch_size=16,
        num_particles=8,
        num_warmup=4000,
        num_draws=200,
        thin=20,
        progress=False,
    )
    posterior = pvi.sample(potential, data, num_particles=8, progress=False)
    score = [each for each in pvi.comparison.default_scores() if each.name == "temperature"]
    table = pvi.compare(
        {"SGD": sgd, "posterior": posterior}, data, train_data=data, thin=5, scores=score
    )
    pvi.plots.effective_temperature(table, axis)
    axis.set(title="SGD on a net for tumours: how warm?", xlabel="curvature, in nats")


if __name__ == "__main__":
    torch.manual_seed(0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    intervals(left)
    warmth(right)
    figure.savefig(Path(__file__).with_name("home.png"), dpi=120)
