"""What shuffling adds to SGD on a net: the drift of an epoch, predicted and measured.

    python benchmarks/drift_study.py                    # 15 minutes of a busy core
    python benchmarks/drift_study.py --repeats 2000     # to see that it runs

A net 49-16-10 with tanh units (970 weights) on 400 images of Fashion-MNIST pooled to 7 x 7, in 20
batches of 20, looked at along its training by SGD. From each place many epochs are run: in random
order, each batch once, and with a batch drawn anew at each step. The difference of the mean ends is
the drift. The linear response of every run to its batches, whose mean is exactly 0 in both, is
taken off first. It is laid beside ``pvi.noise.epoch_drift``, whole and along the eigenvectors of
the Hessian of the mean loss, ordered by absolute eigenvalue.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from _nets import images
from _page import markdown
from torch import Tensor, nn

import particlevi as pvi

BATCH = 20
BANDS = ((0, 10), (10, 100), (100, None))


class Task(NamedTuple):
    """A net, its data in batches, and the losses of one."""

    net: nn.Module
    x: Tensor
    y: Tensor

    @property
    def num_batches(self) -> int:
        return len(self.x) // BATCH

    def loss(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss at ``[D]``."""
        sizes = [p.numel() for p in self.net.parameters()]
        parts = zip(self.net.named_parameters(), theta.split(sizes), strict=True)
        weights = {name: part.view_as(p) for (name, p), part in parts}
        return nn.functional.cross_entropy(torch.func.functional_call(self.net, weights, (x,)), y)

    def gradients(self, theta: Tensor, batches: Tensor) -> Tensor:
        """``[P, D]`` at ``[P, D]``, of one batch ``[P]`` each."""
        x, y = self.x.view(-1, BATCH, 49)[batches], self.y.view(-1, BATCH)[batches]
        return torch.func.vmap(torch.func.grad(self.loss))(theta, x, y)

    def hessian(self, theta: Tensor) -> Tensor:
        """``[D, D]``, of all data."""
        return torch.func.hessian(self.loss)(theta, self.x, self.y)

    def all_gradients(self, theta: Tensor) -> Tensor:
        """``[m, D]`` at ``[D]``."""
        return self.gradients(theta.expand(self.num_batches, -1), torch.arange(self.num_batches))


def responses(task: Task, start: Tensor, hessian: Tensor, rate: float) -> Tensor:
    """``-rate G^(m-1-s) x_js`` for step s and batch j, ``[m, m, D]``.

    With ``x_js`` the spread of the batches' gradients along the path of gradient descent.
    """
    m, theta = task.num_batches, start
    keep = torch.eye(len(start), dtype=start.dtype) - rate * hessian
    spreads = []
    for _ in range(m):
        slopes = task.all_gradients(theta)
        spreads.append(slopes - slopes.mean(0))
        theta = theta - rate * slopes.mean(0)
    power, found = -rate * torch.eye(len(start), dtype=start.dtype), []
    for spread in reversed(spreads):
        found.append(spread @ power)
        power = power @ keep
    return torch.stack(found[::-1])


def ends(task: Task, start: Tensor, rate: float, orders: Tensor, linear: Tensor) -> Tensor:
    """Where runs ``[P]`` over batches ``orders [P, m]`` end, less their linear response."""
    theta = start.expand(len(orders), -1)
    response = torch.zeros_like(theta)
    for s in range(orders.shape[1]):
        theta = theta - rate * task.gradients(theta, orders[:, s])
        response = response + linear[s, orders[:, s]]
    return theta - response


def measured(task: Task, start: Tensor, hessian: Tensor, rate: float, repeats: int) -> Tensor:
    """Drifts ``[groups, D]``: shuffled less independent, means of 500 runs each."""
    m, generator = task.num_batches, torch.Generator().manual_seed(1)
    linear = responses(task, start, hessian, rate)
    found = []
    for _ in range(max(repeats // 500, 4)):
        shuffled = torch.rand(500, m, generator=generator).argsort(1)
        drawn = torch.randint(m, (500, m), generator=generator)
        pair = [ends(task, start, rate, orders, linear) for orders in (shuffled, drawn)]
        found.append((pair[0] - pair[1]).mean(0))
    return torch.stack(found)


def mean_and_error(values: Tensor) -> str:
    """Over the first axis."""
    error = float(values.std(0)) / len(values) ** 0.5
    return f"{float(values.mean()):.3f} ± {error:.3f}"


def row(name: str, task: Task, start: Tensor, rate: float, args: argparse.Namespace) -> list[str]:
    """One place and one rate."""
    nn.utils.vector_to_parameters(start, task.net.parameters())
    noise = pvi.noise.measure(task.net, (task.x, task.y), nn.functional.cross_entropy)
    predicted = pvi.noise.epoch_drift(noise, rate, BATCH)
    hessian = task.hessian(start)
    drifts = measured(task, start, hessian, rate, args.repeats)
    values, vectors = torch.linalg.eigh(hessian)
    vectors = vectors[:, values.abs().argsort(descending=True)]
    found, wanted = drifts @ vectors, predicted @ vectors
    stiffness = rate * float(values.abs().max()) * task.num_batches
    size = float(predicted.norm())
    noise_part = found.var(0).sum() / len(found)
    length = float((found.mean(0).square().sum() - noise_part).clamp(min=0).sqrt())
    slopes = found @ wanted / wanted.square().sum()
    cells = [name, f"{rate:g}", f"{stiffness:.1f}", f"{size:.2e}", f"{length / size:.2f}"]
    cells.append(mean_and_error(slopes))
    for first, last in BANDS:
        own, target = found[:, first:last], wanted[first:last]
        share = float(target.square().sum()) / size**2
        cells.append(f"{100 * share:.0f} %: {mean_and_error(own @ target / target.square().sum())}")
    return cells


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the images")
    parser.add_argument("--repeats", type=int, default=20_000)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01, 0.03, 0.1])
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    x, y, _, _ = images("Fashion-MNIST", args.data, 400)
    pooled = nn.functional.avg_pool2d(x.double(), 4).flatten(1)
    net = nn.Sequential(nn.Linear(49, 16), nn.Tanh(), nn.Linear(16, 10))
    task = Task(net, pooled, y)
    theta = nn.utils.parameters_to_vector(net.parameters()).detach()
    heads = ["place", "rate", "m rate curvature", "predicted", "measured / predicted"]
    heads += ["along it", *(f"eigenvectors {a + 1} to {b or len(theta)}" for a, b in BANDS)]
    rows = []
    for name, epochs in (("start", 0), ("20 epochs", 20), ("200 epochs", 180)):
        for _ in range(epochs):
            for j in torch.randperm(task.num_batches):
                theta = theta - 0.1 * task.gradients(theta[None], j[None])[0]
        for rate in args.rates:
            rows.append(row(name, task, theta, rate, args))
            print(rows[-1], flush=True)
    print(markdown(heads, rows))


if __name__ == "__main__":
    main()
