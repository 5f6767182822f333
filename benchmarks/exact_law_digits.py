"""Variance of SGD on a net for digits over the exact law, with the noise at one point or averaged.

    python -m benchmarks.exact_law_digits

The net (64-10-10, tanh, weight decay by a Normal(1) prior) is trained to its minimum on all data;
chains of SGD with batches of 32 start there. In the directions of largest curvature the variance of
their draws is divided by that of ``sgdvi.exact_law``, with ``C`` at the minimum, at the mean of the
draws, and averaged over draws.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

import particlevi as pvi
from particlevi import noise, sgdvi

BATCH, CHAINS, DIRECTIONS = 32, 16, 10


def minimum(model: pvi.potentials.ModelPotential, data: tuple[torch.Tensor, torch.Tensor]):
    """A minimum of the potential, by L-BFGS in float64."""
    from particlevi.typing import Batch

    theta = model.init(1).requires_grad_()
    batch = Batch(data, law="all")
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=3000, history_size=30, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = model(theta, batch).sum() / model.num_data
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(closure)
    print(f"largest slope of the mean loss at the minimum {float(theta.grad.abs().max()):.2g}")
    return theta.detach()[0]


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--thin", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    raw, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(raw / 16.0), torch.tensor(labels)
    net = nn.Sequential(nn.Linear(64, args.hidden), nn.Tanh(), nn.Linear(args.hidden, 10)).double()
    model = pvi.from_module(net, pvi.Categorical(), pvi.Normal(1.0), num_data=len(x))
    best = minimum(model, (x, y))
    draws = pvi.sample(
        pvi.sgd(model),
        (x, y),
        step_size=args.rate / len(x),
        batch_size=BATCH,
        initial=best.expand(CHAINS, -1).clone(),
        num_warmup=4000,
        num_draws=args.draws,
        thin=args.thin,
    )
    kept = draws.particles
    center = kept.mean((0, 1))
    few = kept[:, :: max(1, args.draws // 8)].flatten(0, 1)[:96]
    for name, point in (("minimum", best), ("mean of the draws", center)):
        measured = noise.measure(model, (x, y), position=point)
        space = sgdvi.invariant_subspace(measured, DIRECTIONS)
        along = kept @ space.directions.to(kept)
        spread = (along - along.mean((0, 1))).square().mean(1)  # [P, K]
        variance, error = spread.mean(0), spread.std(0) / CHAINS**0.5
        averaged = noise.average(measured, few, space.directions).matrix
        halves = along.tensor_split(2, 1)
        drift = (halves[1].var((0, 1)) / halves[0].var((0, 1))).tolist()
        print(f"H at the {name}: {[round(float(v), 3) for v in space.hessian.diagonal()]}")
        print("  second half over first half", [round(v, 2) for v in drift])
        for which, matrix in (("there", space.noise), ("averaged over draws", averaged)):
            law = sgdvi.exact_law(
                hessian=space.hessian, noise=matrix, learning_rate=args.rate, batch_size=BATCH
            ).covariance.diagonal()
            ratio = variance / law
            print(
                f"  C {which}: ratio {float(ratio.min()):.2f} to {float(ratio.max()):.2f}, mean "
                f"{float(ratio.mean()):.3f} (errors about {float((error / law).mean()):.2f}): "
                f"{[round(float(r), 2) for r in ratio]}"
            )


if __name__ == "__main__":
    main()
