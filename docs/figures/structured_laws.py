"""The picture of docs/structured.md: what the plain, dropout and structured estimators sample.

python docs/figures/structured_laws.py     # about a minute on one core
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import particlevi as pvi

R = 0.9
PRECISION = torch.linalg.inv(torch.tensor([[1.0, R], [R, 1.0]]))
KEEPS = {"plain": 1.0, "keep = 0.9": 0.9, "keep = 0.5": 0.5, "keep = 0.1": 0.1, "structured": 0.0}


def gaussian(theta: Tensor) -> Tensor:
    return -0.5 * ((theta @ PRECISION) * theta).sum(-1)


def banana(theta: Tensor) -> Tensor:
    x, y = theta[..., 0], theta[..., 1]
    return -0.5 * x.square() - 0.5 * ((y - 0.8 * x.square() + 1) / 0.35).square()


def draw(log_density: object, keep: float, step_size: float) -> np.ndarray:
    potential = pvi.from_log_density(log_density, num_params=2, vectorized=True)
    memory = pvi.gradients.history(capacity=100, thin=10, after=200, pooled=True)
    target = potential
    if keep == 0:
        target = pvi.structured(potential, "parameter", num_history=2, history=memory)
    elif keep < 1:
        target = pvi.structured_dropout(potential, "parameter", keep, 8, history=memory)
    draws = pvi.sample(
        pvi.sgld(target),
        step_size=step_size,
        num_particles=400,
        num_warmup=2500,
        num_draws=10,
        thin=50,
        progress=False,
    )
    return draws.flat().numpy()


def ellipse(keep: float) -> np.ndarray:
    """Two standard deviations of the predicted Gaussian."""
    blocks = PRECISION.diagonal().diag()
    covariance = torch.linalg.inv((1 - keep) * blocks + keep * PRECISION)
    angle = torch.linspace(0, 2 * torch.pi, 200)
    circle = torch.stack([angle.cos(), angle.sin()])
    return (2 * torch.linalg.cholesky(covariance) @ circle).numpy()


def main() -> None:
    figure, axes = plt.subplots(2, len(KEEPS), figsize=(12.5, 5.4), sharex="row", sharey="row")
    for column, (title, keep) in enumerate(KEEPS.items()):
        above, below = axes[:, column]
        above.plot(*draw(gaussian, keep, 0.01).T, ".", ms=1.5, alpha=0.35, color="#2e86ab")
        above.plot(*ellipse(keep), color="#d1495b", lw=1.5)
        above.set(title=title, xlim=(-3.3, 3.3), ylim=(-3.3, 3.3), aspect="equal")
        below.plot(*draw(banana, keep, 0.003).T, ".", ms=1.5, alpha=0.35, color="#2e86ab")
        x, y = torch.meshgrid(
            torch.linspace(-3, 3, 200), torch.linspace(-2.5, 5, 200), indexing="ij"
        )
        height = banana(torch.stack([x, y], -1)).exp()
        below.contour(x, y, height, levels=[0.05, 0.3, 0.8], colors="#d1495b", linewidths=0.8)
        below.set(xlim=(-3, 3), ylim=(-2.5, 5))
    figure.tight_layout()
    figure.savefig(Path(__file__).parent / "structured_laws.png", dpi=110)


if __name__ == "__main__":
    main()
