"""The optimisers: step times, attacks, effective temperatures.

    python benchmarks/optim.py steps                   # step times and iterates beside other code's
    python benchmarks/optim.py attacks                 # which aggregation survives which attack
    python benchmarks/optim.py temperatures            # one net, by eigendirection

Each takes ``--quick``, a reduced form whose figures are not those of the study. Data are looked for
in ``--data`` or the environment variable ``PARTICLEVI_DATA``.

``steps``: one step on parameters of the shapes of ResNet-18, repetitions interleaved, median and
quartiles of the time and of the ratio to Adam's. ``pytorch_optimizer`` takes part if it is
installed.

``attacks``: 10 workers, of which 4 attack, on digits and on CIFAR-10.

Test errors are in ``optim_study.py``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _nets import images as images_of
from _page import markdown, write
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import particlevi as pvi
from particlevi.optim import PNM, AdaPNM, SafeguardSGD

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.optim import attacks
from tests.optim.baselines import AGGREGATORS

SQRT5 = math.sqrt(5)
Make = Callable[[Any], torch.optim.Optimizer]


# Step times


def resnet18_shapes() -> list[tuple[int, ...]]:
    """The 62 parameters of a ResNet-18 for small images, 11.2 million numbers."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
    channels = 64
    for width in (64, 128, 256, 512):
        for _ in range(2):
            shapes += [(width, channels, 3, 3), (width,), (width,)]
            shapes += [(width, width, 3, 3), (width,), (width,)]
            if channels != width:
                shapes += [(width, channels, 1, 1), (width,), (width,)]
            channels = width
    return [*shapes, (10, 512), (10,)]


def parameters(device: str, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    params = []
    for shape in resnet18_shapes():
        p = torch.randn(shape, generator=generator).to(device).requires_grad_()
        p.grad = torch.randn(shape, generator=generator).to(device)
        params.append(p)
    return params


def contestants() -> dict[str, Make]:
    makes: dict[str, Make] = {
        "Adam(foreach=True)": lambda p: torch.optim.Adam(p, lr=1e-3, foreach=True),
        "PNM": lambda p: PNM(p, lr=1e-3),
        "AdaPNM": lambda p: AdaPNM(p, lr=1e-3),
    }
    try:
        import pytorch_optimizer as other
    except ImportError:
        return makes
    makes["pytorch_optimizer PNM"] = lambda p: other.PNM(p, lr=1e-3)
    makes["pytorch_optimizer AdaPNM"] = lambda p: other.AdaPNM(p, lr=1e-3, ams_bound=True)
    return makes


def steps(args: argparse.Namespace) -> dict[str, str]:
    repetitions = 5 if args.quick else 40
    made = {name: make(parameters(args.device)) for name, make in contestants().items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    for repetition in range(repetitions + 2):
        for name, optimizer in made.items():
            begun = time.perf_counter()
            optimizer.step()
            if args.device == "cuda":
                torch.cuda.synchronize()
            if repetition >= 2:
                times[name].append(1e3 * (time.perf_counter() - begun))
    reference = times["Adam(foreach=True)"]
    rows = []
    for name, found in times.items():
        ratios = sorted(a / b for a, b in zip(found, reference, strict=True))
        low, middle, high = (ratios[int(q * (len(ratios) - 1))] for q in (0.25, 0.5, 0.75))
        median = f"{statistics.median(found):.1f}"
        rows.append([name, median, f"{middle:.2f} ({low:.2f} ... {high:.2f})"])
    heads = ["optimiser", "median step, ms", "over Adam's: median (quartiles)"]
    return {"optim steps": markdown(heads, rows), "optim iterates": iterates()}


def iterates() -> str:
    """The largest difference from other code's iterates over 100 steps, in double precision."""
    try:
        import pytorch_optimizer as other
    except ImportError:
        return "pytorch_optimizer is not installed."
    pairs: dict[str, tuple[Make, Make]] = {
        "PNM": (lambda p: PNM(p, lr=0.1), lambda p: other.PNM(p, lr=0.1)),
        "PNM, decoupled decay": (
            lambda p: PNM(p, lr=0.1, weight_decay=0.01),
            lambda p: other.PNM(p, lr=0.1, weight_decay=0.01),
        ),
        "AdaPNM": (
            lambda p: AdaPNM(p, lr=0.1),
            lambda p: other.AdaPNM(p, lr=0.1, ams_bound=True),
        ),
        "AdaPNM, eps = 0": (
            lambda p: AdaPNM(p, lr=0.1, eps=0.0),
            lambda p: other.AdaPNM(p, lr=0.1, eps=0.0, ams_bound=True),
        ),
    }
    rows = []
    for name, makes in pairs.items():
        ends, late = [], []
        for make in makes:
            for skip, kept in ((False, ends), (True, late)):
                points = [torch.ones(50, dtype=torch.float64).requires_grad_() for _ in range(2)]
                optimizer = make(points)
                generator = torch.Generator().manual_seed(0)
                for step in range(100):
                    for index, p in enumerate(points):
                        noise = torch.randn(50, generator=generator, dtype=torch.float64)
                        p.grad = p.detach() + noise
                        if skip and index and step == 7:
                            p.grad = None
                    optimizer.step()
                kept.append(points[1].detach().clone())
        differences = (float((a - b).abs().max()) for a, b in (ends, late))
        rows.append([name, *(f"{d:.1e}" for d in differences)])
    return markdown(["", "largest difference", "of a parameter without a gradient at step 8"], rows)


# Data and nets


def images(name: str, args: argparse.Namespace) -> tuple[Tensor, ...]:
    """Train and test images ``[N, C, H, W]``, standardised, and labels."""
    if name != "digits":
        return images_of(name, args.data)
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8)
    x = (x - x.mean()) / x.std()
    y = torch.tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return x[train], y[train], x[test], y[test]


def small_net(name: str) -> nn.Module:
    if name == "digits":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, 2),
        nn.ReLU(),
        nn.Conv2d(8, 16, 5, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(400, 10),
    )


# Attacks


ATTACKS: dict[str, Callable[[], Any]] = {
    "none": attacks.Nobody,
    "sign": lambda: attacks.Scaled(-1.0),
    "zero": attacks.Zero,
    "label": attacks.Nobody,
    "delayed": lambda: attacks.Delayed(100),
    "-0.4": lambda: attacks.Scaled(-0.4),
    "variance": attacks.Variance,
    "a little": attacks.ALittle,
    "inner product": attacks.InnerProduct,
}
WORKERS, BAD = 10, 4


def attacked(task: str, attack: str, method: str, seed: int, args: argparse.Namespace) -> Any:
    """Test accuracy in percent, and how many honest and bad workers are left."""
    x, y, x_test, y_test = images(task, args)
    num_steps, lr, size = {"digits": (600, 0.1, 16), "CIFAR-10": (1500, 0.05, 16)}[task]
    num_steps = num_steps // 10 if args.quick else num_steps
    torch.manual_seed(seed)
    net = small_net(task)
    shapes = {name: p.shape for name, p in net.named_parameters()}
    flat = nn.utils.parameters_to_vector(net.parameters()).detach()

    def named(theta: Tensor) -> dict[str, Tensor]:
        parts = theta.split([s.numel() for s in shapes.values()])
        return {n: p.view(s) for (n, s), p in zip(shapes.items(), parts, strict=True)}

    def loss(theta: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(net, named(theta), (inputs,)), labels)

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))
    theta = flat.repeat(WORKERS, 1).requires_grad_()
    guard = SafeguardSGD([theta], lr=lr, window=50, long_window=300)
    generator = torch.Generator().manual_seed(seed)
    sender = ATTACKS[attack]()
    for _ in range(num_steps):
        rows = torch.randint(0, len(x), (WORKERS, size), generator=generator)
        labels = y[rows].clone()
        if attack == "label":
            labels[-BAD:] = 9 - labels[-BAD:]
        sent = gradients(theta.detach()[0], x[rows], labels)
        sent[-BAD:] = sender(sent[:-BAD], sent[-BAD:])
        if method == "safeguard":
            theta.grad = sent
            guard.step()
        else:
            with torch.no_grad():
                theta -= lr * AGGREGATORS[method](sent, BAD)
    with torch.no_grad():
        guess = functional_call(net, named(theta[0]), (x_test,)).argmax(1)
    left = guard.good
    return (
        100 * float((guess == y_test).float().mean()),
        int(left[:-BAD].sum()),
        int(left[-BAD:].sum()),
    )


def attack_tables(args: argparse.Namespace) -> dict[str, str]:
    seeds = range(1 if args.quick else 3)
    tasks = args.tasks or ["digits", "CIFAR-10"]
    sections = {}
    for task in tasks:
        rows = []
        for method in [*AGGREGATORS, "safeguard"]:
            row = [method]
            for attack in ATTACKS:
                found = [attacked(task, attack, method, seed, args) for seed in seeds]
                cell = f"{statistics.mean(f[0] for f in found):.1f}"
                if method == "safeguard":
                    honest = min(f[1] for f in found)
                    cell += f" ({honest}/6, {max(f[2] for f in found)}/4)"
                row.append(cell)
                print(task, method, attack, cell, flush=True)
            rows.append(row)
        sections[f"optim attacks {task}"] = markdown(["", *ATTACKS], rows)
    return sections


# Effective temperatures


def temperatures(args: argparse.Namespace) -> dict[str, str]:
    """Variance along eigenvectors of the Hessian, over that of the posterior's Gaussian."""
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    y = (x[:, 0] * x[:, 1]).tanh() + 0.3 * torch.randn(200)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    potential = pvi.from_module(
        net, likelihood=pvi.Gaussian(scale=0.3), prior=pvi.Normal(1.0), num_data=200
    )
    data = (x, y[:, None])
    batch = pvi.typing.Batch(data)
    mode = descend_to_mode(potential, batch)

    def energy(theta: Tensor) -> Tensor:
        return potential(theta[None], batch)[0]

    curvatures, vectors = torch.linalg.eigh(torch.func.hessian(energy)(mode))
    lr, size = 0.005, 20
    makes = {
        "SGD": torch.optim.SGD,
        "PNM": PNM,
        "AdamW": lambda p: torch.optim.AdamW(p, weight_decay=0.0),
        "power-SGD, H = 0.5": lambda p: pvi.optim.power(torch.optim.SGD(p), 0.5),
    }
    rates = {"SGD": lr, "PNM": lr * SQRT5, "AdamW": 1e-3, "power-SGD, H = 0.5": 1e-3}
    length = (1000, 300) if args.quick else (8000, 2000)
    shared = {"num_particles": 16, "num_warmup": length[0], "num_draws": length[1], "thin": 5}
    shared |= {"initial": mode.repeat(16, 1), "progress": False}
    sets = {
        name: pvi.sample(
            pvi.optimizer(potential, make), data, step_size=rates[name], batch_size=size, **shared
        )
        for name, make in makes.items()
    }
    sets["SGHMC"] = pvi.sample(pvi.sghmc(potential), data, step_size=5e-3, **shared)
    chosen = [-1, -2, -4, -6, -8, -10]
    rows = []
    for name, draws in sets.items():
        along = (draws.particles - draws.particles.mean((0, 1))) @ vectors
        ratios = along.var((0, 1)) * curvatures
        rows.append([name, *(f"{float(ratios[k]):.2g}" for k in chosen)])
    heads = ["", *(f"h = {float(curvatures[k]):.3g}" for k in chosen)]
    return {"optim temperatures": markdown(heads, rows)}


def descend_to_mode(potential: Any, batch: Any) -> Tensor:
    theta = (0.5 * torch.randn(1, potential.num_params)).requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=2000, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = potential(theta, batch).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return theta.detach()[0]


COMMANDS = {
    "steps": steps,
    "attacks": attack_tables,
    "temperatures": temperatures,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--data")
    parser.add_argument("--write", type=Path, help="the page that gets the tables")
    args = parser.parse_args()
    sections = COMMANDS[args.command](args)
    for name, text in sections.items():
        print(f"\n{name}\n\n{text}")
    if args.write:
        write(args.write, sections)


if __name__ == "__main__":
    main()
