"""The posterior of a ResNet on CIFAR-10, by several methods, beside one found by full-batch HMC.

    python examples/resnet_cifar.py --device cuda          # ResNet-20, 10 000 images, 8 particles
    python examples/resnet_cifar.py --reduced              # for two CPU cores: see below

Batch normalisation makes a datum's likelihood depend on the others in its batch, so a net with it
has no posterior; filter response normalisation (``--norm frn``) or group normalisation take its
place. The net, Swish and the prior N(0, 1/5) of all weights are those of the reference.

Each method runs for ``--max-seconds``. A deep ensemble is trained from fresh weights; the samplers
go on from it, since burn-in from scratch would take all of the time. Printed, and written to
``resnet_cifar/results.json`` with a figure, per method: accuracy, negative log-likelihood (NLL)
and calibration error (ECE, 15 bins) on held-out images, and by the metrics of the reference's
authors, agreement (share of images on which the most probable class is the same, 1 is best) and
total variation (half the distance of the class probabilities, 0 is best). HMC saw all 50 000
training images and these methods 10 000, so neither can be perfect: the row "HMC" has the scores
of the reference itself, and the single net shows what one point gives. R-hat of the predictions at
20 test images tells how far a method's chains are from agreeing: where it is not close to 1, a row
is not the posterior's.

``--reduced``: ResNet-8 of 8 channels in place of ResNet-20 of 16, images averaged to 16 x 16, 1000
for training and 500 for testing, two particles, 20 s a method. Where the images are not there,
scikit-learn's 8 x 8 digits take their place, with no reference.

References: Izmailov, Vikram, Hoffman and Wilson, "What are Bayesian neural network posteriors
really like?", 2021; Wilson, Izmailov, Hoffman and others, "Evaluating approximate inference in
Bayesian deep learning", 2022 (the metrics); Zhang, Li, Zhang, Chen and Wilson, "Cyclical stochastic
gradient MCMC for Bayesian deep learning", 2020.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent.parent))

import particlevi as pvi
from examples._resnet import ResNet
from particlevi.diagnostics.calibration import calibration_error

HERE = Path(__file__).parent
PLACES = [HERE.parent.parent / "shared" / "data" / "cifar10", HERE.parent / "data" / "cifar10"]
PRIOR_SCALE = 0.2**0.5
METHODS = {
    "ensemble": "deep ensemble",
    "sgld": "SGLD",
    "sghmc": "SGHMC",
    "cyclical": "cyclical SGHMC",
    "dropout": "structured dropout",
    "svgd": "SVGD, last layer",
}


CHAINS = ["sgld", "sghmc", "dropout"]
"""Methods whose draws are of one law; a cycle's are of many."""


@dataclass
class Images:
    """Images ``[N, C, H, W]``, classes ``[N]`` and, if known, what the reference predicts."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    reference: Tensor | None


def load(folder: Path | None, device: str, reduced: bool) -> Images:
    """CIFAR-10 where it is, and digits otherwise."""
    found = next((p for p in [folder, *PLACES] if p and (p / "cifar10_subset.npz").is_file()), None)
    if found is None:
        print("CIFAR-10 is not here (--data): scikit-learn's digits take its place.")
        return digits(device)
    raw = np.load(found / "cifar10_subset.npz")
    probabilities = np.load(found / "cifar10_hmc_probs.npz")["hmc_probs"][raw["test_index"]]
    mean = torch.tensor([0.4914, 0.4820, 0.4462]).view(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)

    def tensors(part: str, num: int | None) -> tuple[Tensor, Tensor]:
        # The files are ordered by class.
        rows = torch.randperm(len(raw[f"y_{part}"]), generator=torch.Generator().manual_seed(0))
        rows = rows[:num].sort().values.numpy()
        x = torch.from_numpy(raw[f"x_{part}"][rows]).permute(0, 3, 1, 2) / 255
        x = (x - mean) / std
        x = functional.avg_pool2d(x, 2) if reduced else x
        return x.contiguous().to(device), torch.from_numpy(raw[f"y_{part}"][rows]).long().to(device)

    rows = torch.randperm(len(raw["y_test"]), generator=torch.Generator().manual_seed(0))
    rows = rows[: 500 if reduced else None].sort().values.numpy()
    train, test = tensors("train", 1000 if reduced else None), tensors("test", len(rows))
    return Images("CIFAR-10", train, test, torch.from_numpy(probabilities[rows]).double())


def digits(device: str) -> Images:
    """Images of 8 x 8 that scikit-learn brings along."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.tensor((x - x.mean()) / x.std(), dtype=torch.float32).view(-1, 1, 8, 8).to(device)
    y = torch.tensor(y).to(device)
    return Images("digits", (x[:1000], y[:1000]), (x[1000:], y[1000:]), None)


@dataclass
class Study:
    """A net, its images and how long a method may take."""

    images: Images
    net: nn.Module
    seconds: float
    particles: int
    batch_size: int
    rate: float
    progress: bool

    def potential(self, net: nn.Module, sample: str | None = None) -> Any:
        """The posterior of a net, or of a part of its weights."""
        return pvi.from_module(
            net,
            pvi.Categorical(),
            pvi.Normal(PRIOR_SCALE),
            num_data=len(self.images.train[0]),
            sample=sample,
        )

    def run(self, sampler: Any, plan: Callable[[int], dict[str, Any]], initial: Any) -> Any:
        """As many steps as the time allows.

        ``plan(steps)`` are the arguments of the run, its ``"sampler"`` too if it depends on them.
        """
        common = {
            "batch_size": min(self.batch_size, len(self.images.train[0])),
            "initial": initial,
            "progress": self.progress,
        }
        if initial is None:
            common["num_particles"] = self.particles
        trial = {"step_size": 1e-12, "num_draws": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pvi.ParticleviWarning)  # the trials stand still
            pvi.sample(sampler, self.images.train, **common, **trial, num_warmup=1)
            began = time.perf_counter()
            pvi.sample(sampler, self.images.train, **common, **trial, num_warmup=9)
            each = (time.perf_counter() - began) / 10
        steps = max(20, int(self.seconds / each))
        print(f"  {steps} steps of {1e3 * each:.1f} ms", flush=True)
        arguments = plan(steps)
        sampler = arguments.pop("sampler", sampler)
        return pvi.sample(sampler, self.images.train, **common, **arguments)


def samplers(study: Study) -> dict[str, Callable[[Any], Any]]:
    """Every method, given the ensemble that it goes on from."""
    num = len(study.images.train[0])
    potential = study.potential(study.net)
    rate = study.rate / num  # of SGD on the total; on the mean loss it is study.rate
    step = (0.1 * rate) ** 0.5  # of SGHMC with momentum decay .9, whose h^2 is a rate
    friction = 0.105 / step

    def kept(steps: int, draws: int = 20) -> dict[str, Any]:
        warmup = steps // 3
        thin = max(1, (steps - warmup) // draws)
        return {"num_warmup": warmup, "num_draws": min(draws, steps - warmup), "thin": thin}

    def ensemble(_: Any) -> Any:
        return study.run(
            pvi.sgd(potential, momentum=0.9),
            lambda steps: {
                "step_size": pvi.schedules.cosine(rate, steps),
                "num_warmup": steps - 1,
                "num_draws": 1,
            },
            None,
        )

    def sgld(start: Any) -> Any:
        return study.run(
            pvi.sgld(potential), lambda steps: {"step_size": rate, **kept(steps)}, start
        )

    def sghmc(start: Any) -> Any:
        sampler = pvi.sghmc(potential, friction)
        return study.run(sampler, lambda steps: {"step_size": step, **kept(steps)}, start)

    def cyclical(start: Any) -> Any:
        cycles = 4

        def plan(steps: int) -> dict[str, Any]:
            schedule = pvi.schedules.cyclical(2 * step, max(5, steps // cycles), exploration=0.7)
            sampled = int(
                0.3 * cycles * schedule.period
            )  # draws are kept at the end of cycles only
            thin = max(1, sampled // 20)
            return {
                "sampler": pvi.sghmc(potential, friction, temperature=schedule.temperature()),
                "step_size": schedule,
                "num_warmup": 0,
                "num_draws": sampled // thin,
                "thin": thin,
            }

        return study.run(pvi.sghmc(potential, friction), plan, start)

    def dropout(start: Any) -> Any:
        estimator = pvi.structured_dropout(
            potential,
            "layer",
            keep=0.9,
            num_masks=1,
            history=pvi.gradients.history(capacity=20, thin=10),
        )
        sampler = pvi.sghmc(estimator, friction)
        return study.run(sampler, lambda steps: {"step_size": step, **kept(steps)}, start)

    def svgd(start: Any) -> Any:
        trained = copy.deepcopy(study.net)
        first = start.flat()[:1].to(potential.device)
        trained.load_state_dict({n: w[0] for n, w in potential.unravel(first).items()})
        last = study.potential(trained, sample="head.*")
        return study.run(
            pvi.svgd(last, optimizer="adam"),
            lambda steps: {"step_size": 1e-2, "num_warmup": steps - 1, "num_draws": 1},
            last.init(20, method="jittered"),
        )

    return {
        "ensemble": ensemble,
        "sgld": sgld,
        "sghmc": sghmc,
        "cyclical": cyclical,
        "dropout": dropout,
        "svgd": svgd,
    }


def scores(images: Images, probabilities: Tensor) -> dict[str, float]:
    """On held-out images; ``probabilities [N, 10]``."""
    y = images.test[1].cpu()
    probabilities = probabilities.double().cpu()
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    row = {
        "accuracy": float((probabilities.argmax(-1) == y).double().mean()),
        "NLL": float(-probabilities.gather(1, y.unsqueeze(1)).clamp(min=1e-12).log().mean()),
        "ECE": calibration_error(probabilities, y),
    }
    if images.reference is not None:
        reference = images.reference
        same = probabilities.argmax(-1) == reference.argmax(-1)
        row["agreement"] = float(same.double().mean())
        row["total variation"] = float(0.5 * (probabilities - reference).abs().sum(-1).mean())
    return row


def table(rows: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    for row in rows:
        cells = [row.get(name, "") for name in names]
        lines.append(" | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells))
    return "\n".join(f"| {line} |" for line in lines)


def draw(rows: list[dict[str, Any]], name: str, folder: Path) -> None:
    """A panel per score."""
    shown = [s for s in ("accuracy", "NLL", "ECE", "agreement", "total variation") if s in rows[0]]
    figure, axes = plt.subplots(1, len(shown), figsize=(3.2 * len(shown), 3.4), sharey=True)
    for axis, score in zip(axes, shown, strict=True):
        found = [row for row in rows if score in row]
        axis.barh([row["method"] for row in found], [row[score] for row in found], color="#4c78a8")
        axis.set_title(score)
    axes[0].invert_yaxis()
    figure.suptitle(f"{name}, held-out images")
    figure.tight_layout()
    figure.savefig(folder / "scores.png", dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, help="the folder of the images")
    parser.add_argument("--reduced", action="store_true", help="for two CPU cores")
    parser.add_argument("--max-seconds", type=float, help="of each method; 60, reduced 20")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--norm", choices=["frn", "group"], default="frn")
    parser.add_argument("--particles", type=int, help="8, reduced 2")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate on the mean loss")
    parser.add_argument("--progress", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("resnet_cifar"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    images = load(args.data, args.device, args.reduced)
    channels = images.train[0].shape[1]
    net = ResNet(1, 8, channels, args.norm) if args.reduced else ResNet(3, 16, channels, args.norm)
    study = Study(
        images,
        net.to(args.device),
        seconds=args.max_seconds or (20 if args.reduced else 60),
        particles=args.particles or (2 if args.reduced else 8),
        batch_size=args.batch_size,
        rate=args.rate,
        progress=args.progress,
    )
    where = torch.cuda.get_device_name() if args.device != "cpu" else "CPU"
    size = sum(p.numel() for p in net.parameters())
    print(
        f"{images.name} on {where}: {len(images.train[0])} images, {size} weights, "
        f"{study.particles} particles",
        flush=True,
    )
    rows: list[dict[str, Any]] = []
    if images.reference is not None:
        rows.append({"method": "HMC", **scores(images, images.reference)})
    methods, start = samplers(study), None
    for name in dict.fromkeys(["ensemble", *args.methods]):
        print(METHODS[name], flush=True)
        began = time.perf_counter()
        draws = methods[name](start)
        seconds = time.perf_counter() - began
        if name == "ensemble":
            start = draws
            single = draws[:1].predict(images.test[0], chunk_size=8, batch_size=500).mean
            rows.append({"method": "one trained net", **scores(images, single)})
        found = draws.predict(images.test[0], chunk_size=8, batch_size=500).mean
        row = {"method": METHODS[name], **scores(images, found)}
        if name in CHAINS:
            probe = images.test[0][:20]
            row["R-hat"] = float(draws.rhat(of="predictions", inputs=probe).max())
        row |= {"draws": len(draws.flat()), "seconds": seconds}
        rows.append(row)
        result = {"data": images.name, "where": where, "weights": size, "rows": rows}
        (args.out / "results.json").write_text(json.dumps(result, indent=1))
        print(f"  {row}", flush=True)
    print(table(rows))
    draw(rows, images.name, args.out)


if __name__ == "__main__":
    main()
