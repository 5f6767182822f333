"""The local learning coefficient beside exact values, and whether its error bars cover.

``python benchmarks/learning_coefficient.py`` prints the table of docs/geometry.md: a regular model
and reduced-rank regression ``y = B A x`` (Aoyagi and Watanabe, "Stochastic complexities of reduced
rank regression in Bayesian estimation", 2005), at the most singular of its true parameters.
Instead of it, ``--seeds 20`` prints z, the error in standard errors, over that many runs of 600
draws of each case whose value at this N is known (20 minutes of a busy core); ``--figure FILE``
draws when the value cannot be trusted, and what the estimator's own doubts say of each run
(16 minutes); ``--devinterp`` runs that package beside ours on two nets. Data are free of noise,
so that the checkpoint is the minimum to the last digit.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import particlevi as pvi
from particlevi.diagnostics import arviz

F64 = torch.float64
NUM_DATA, SCALE = 200, 10.0
CASES = [(2, 2, 2, 0), (3, 3, 2, 0), (2, 5, 2, 0), (3, 3, 3, 1), (3, 3, 2, 1)]
RUN_LENGTH, STEP, WARMUP = "effective draws", "step / automatic step", "steps of warm-up"
LOCALISATION, MISSED = "localisation", "distance of weights from minimum"
TRIED = ("regular, D = 4", "reduced rank 3-2-3, rank 0")
COLOURS = (("tab:green", "no doubt"), ("tab:orange", "localisation"), ("tab:red", "other doubts"))


def half(outputs, targets):
    return 0.5 * (outputs - targets).square().sum()


def reduced_rank(inputs: int, outputs: int, hidden: int, rank: int) -> tuple[float, int]:
    """Lambda and its multiplicity, by the four cases of Aoyagi and Watanabe."""
    m, n, h, r = inputs, outputs, hidden, rank
    if m + h < n + r:
        return (h * m - h * r + n * r) / 2, 1
    if n + h < m + r:
        return (h * n - h * r + m * r) / 2, 1
    if m + n < h + r:
        return m * n / 2, 1
    s = h + r
    top = 2 * s * (m + n) + 2 * m * n - s**2 - m**2 - n**2
    odd = (m + n + s) % 2
    return (top + odd) / 8, 1 + odd


def at_this_size(inputs: int, outputs: int, hidden: int, strength: float) -> float:
    """``E[t K]`` for rank 0 under the law with localisation 1, by quadrature over random ``A``.

    ``B`` is integrated in closed form, ``p(A) det(I + t A A')^(-outputs / 2)``; ``A`` is drawn from
    a mixture of Gaussians with standard deviations 1, 1/2, 1/4, ...
    """
    generator = torch.Generator().manual_seed(0)
    size = hidden * inputs
    sd = 2.0 ** -torch.arange(math.ceil(math.log2(strength)) // 2 + 3, dtype=F64)
    pick = sd[torch.randint(len(sd), (400_000,), generator=generator)]
    a = pick[:, None] * torch.randn(len(pick), size, generator=generator, dtype=F64)
    square = a.square().sum(1)
    proposal = torch.logsumexp(
        -0.5 * square[:, None] / sd.square() - size * sd.log(), dim=1
    ) - math.log(len(sd))
    a = a.view(-1, hidden, inputs)
    roots = strength * torch.linalg.eigvalsh(a @ a.mT)
    weight = torch.softmax(-0.5 * square - 0.5 * outputs * roots.log1p().sum(1) - proposal, 0)
    return float((weight * 0.5 * outputs * (roots / (1 + roots)).sum(1)).sum())


def whitened(size: int):
    x = torch.randn(NUM_DATA, size, generator=torch.Generator().manual_seed(0), dtype=F64)
    return SCALE * math.sqrt(NUM_DATA) * torch.linalg.qr(x)[0]


def problem(inputs: int, outputs: int, hidden: int, rank: int):
    """The net at ``A = B = diag(1, ..., 1, 0, ..., 0)`` with ``rank`` ones, and its data."""
    net = nn.Sequential(
        nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, outputs, bias=False)
    )
    net.double()
    for layer in net:
        layer.weight.data.zero_()
        layer.weight.data[range(rank), range(rank)] = 1.0
    x = whitened(inputs)
    return net, (x, net(x).detach())


def regular(size: int):
    net = nn.Linear(size, 1, bias=False).double()
    x = whitened(size)
    return net, (x, net(x).detach())


def estimate(net, data, draws: int, seed: int = 0, **options):
    return pvi.sgdvi.local_learning_coefficient(
        net, data, half, **{"scheme": "hmc", "num_draws": draws, "thin": 1, "seed": seed} | options
    )


def beside_devinterp() -> None:
    """Two nets, each with one step size, temperature and localisation for both packages."""
    beside_its_optimiser()
    beside_its_sampler()


def beside_its_optimiser() -> None:
    """A 2-4-1 net that made its own data, by a loop around the package's optimiser."""
    from devinterp.optim import SGMCMC

    chains, draws, thin = 4, 1000, 10
    torch.manual_seed(0)
    x = torch.randn(NUM_DATA, 2, dtype=F64)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    data = (x, net(x).detach())
    print("HMC", estimate(net, data, 600))
    ours = estimate(net, data, draws, scheme="sgld", thin=thin)
    print("SGLD", ours)
    series = torch.zeros(chains, draws, 1, dtype=F64)
    strength = NUM_DATA / math.log(NUM_DATA)
    for chain in series:
        model = copy.deepcopy(net)
        sgld = SGMCMC.sgld(
            model.parameters(), lr=2 * ours.step_size, localization=1.0, nbeta=strength
        )
        for step in range(-draws * thin // 2, draws * thin):
            sgld.zero_grad()
            loss = half(model(x), data[1]) / NUM_DATA
            loss.backward()
            if step >= 0 and step % thin == 0:
                chain[step // thin] = strength * loss.item()
            sgld.step()
    print(f"devinterp {float(series.mean()):.3f} +- {float(arviz.mcse(series)[0]):.3f}")


def next_tokens(outputs, targets):
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def beside_its_sampler() -> None:
    """A bigram model of rank 2, at its minimum, by the package's own ``sample``."""
    from datasets import Dataset
    from devinterp.slt.llc import compute_llc
    from devinterp.slt.sampling import sample

    words, count, chains, draws, thin = 5, 300, 4, 1000, 10
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(words, 2), nn.Linear(2, words)).double()
    law = torch.softmax(2 * torch.randn(words, words), 1)
    text = torch.randint(words, (count, 1))
    while text.shape[1] < 4:
        text = torch.cat([text, torch.multinomial(law[text[:, -1]], 1)], 1)
    data = text[:, :-1], text[:, 1:]
    optimiser = torch.optim.LBFGS(
        net.parameters(), max_iter=3000, tolerance_grad=1e-8, tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimiser.zero_grad()
        # The pull to 0 holds what rescaling leaves free.
        loss = next_tokens(net(data[0]), data[1])
        total = loss + 5e-7 * sum(p.square().sum() for p in net.parameters())
        total.backward()
        return total

    optimiser.step(closure)
    options: dict[str, Any] = {"num_chains": chains, "localization": 1.0}
    for scheme in ("hmc", "sgld"):
        ours = pvi.sgdvi.local_learning_coefficient(
            net, data, next_tokens, scheme=scheme, num_draws=draws,
            thin=1 if scheme == "hmc" else thin, **options,
        )  # fmt: skip
        print(scheme.upper(), ours)
    strength = count / math.log(count)
    burn_in = draws * thin // 2
    with tempfile.TemporaryDirectory() as folder:
        tree = sample(
            net, Dataset.from_dict({"input_ids": text.tolist()}).with_format("torch"), {},
            lr=2 * ours.step_size, n_beta=strength, num_draws=draws, num_steps_bw_draws=thin,
            num_burnin_steps=burn_in, batch_size=count, num_init_loss_batches=1, device="cpu",
            match_sampling_input_ids_across_chains=False, output_path=f"{folder}/draws.zarr",
            **options,
        )  # fmt: skip
        found = compute_llc(tree)
        losses = torch.tensor(found.loss_trace.values)[:, burn_in:].double()
        series = strength * (losses - float(found.init_loss))
    error = float(arviz.mcse(series[:, ::thin, None])[0])
    print(
        f"devinterp {float(series.mean()):.3f} +- {error:.3f}; its llc {float(found.llc_mean):.3f}"
    )


def known() -> list[tuple[str, Any, float, float]]:
    """Name, net and data, exact lambda, and the value at this N where it is known."""
    strength = NUM_DATA / math.log(NUM_DATA) * SCALE**2
    rows: list[tuple[str, Any, float, float]] = [
        ("regular, D = 4", regular(4), 2.0, 2 * strength / (1 + strength))
    ]
    for case in CASES:
        exact, multiplicity = reduced_rank(*case)
        here = at_this_size(*case[:3], strength) if case[3] == 0 else math.nan
        name = f"reduced rank {case[0]}-{case[2]}-{case[1]}, rank {case[3]}"
        rows.append((name + (", m = 2" if multiplicity == 2 else ""), problem(*case), exact, here))
    return rows


def coverage(seeds: int) -> None:
    """Mean and standard deviation of z over the runs of a case."""
    print("| model | exact at this N | mean of z | sd of z | runs within 2 errors |")
    print("| --- | --- | --- | --- | --- |")
    for name, (net, data), _, here in known():
        if math.isnan(here):
            continue
        runs = [estimate(net, data, 600, seed) for seed in range(seeds)]
        z = torch.tensor([(run.value - here) / run.standard_error for run in runs])
        print(
            f"| {name} | {here:.3f} | {float(z.mean()):.2f} ± {float(z.std()) / seeds**0.5:.2f} | "
            f"{float(z.std()):.2f} ± {float(z.std()) / (2 * seeds - 2) ** 0.5:.2f} | "
            f"{int((z.abs() < 2).sum())} of {seeds} |",
            flush=True,
        )


class Trial(NamedTuple):
    """A run: where it stands in the figure, what it found over what is right, its doubts."""

    x: float
    ratio: float
    error: float
    doubts: list[str]

    @property
    def trust(self) -> int:
        """0 for no doubt, 1 for one of the localisation alone, 2 for others."""
        if not self.doubts:
            return 0
        return 1 if all("localisation" in doubt for doubt in self.doubts) else 2

    @property
    def right(self) -> bool:
        """Within 5 %, or 2 standard errors."""
        return abs(self.ratio - 1) < max(0.05, 2 * self.error)


def moved(net: nn.Module, far: float) -> nn.Module:
    """A copy, every weight ``far`` times a random sign away."""
    other = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(1)
    for weight in other.parameters():
        weight.data += far * (torch.randint(2, weight.shape, generator=generator) * 2.0 - 1)
    return other


def trials() -> dict[str, list[Trial]]:
    """What is varied, and the runs."""
    langevin = {"scheme": "leimkuhler_matthews", "thin": 10}
    panels: dict[str, list[Trial]] = {}

    def run(panel: str, x: float, right: float, net: Any, data: Any, draws: int, **options: Any):
        try:
            found = estimate(net, data, draws, **options)
        except pvi.DivergenceError as error:
            print(panel, x, "diverged:", error, flush=True)
            return math.nan
        x = found.ess if panel == RUN_LENGTH else x
        trial = Trial(x, found.value / right, found.standard_error / right, found.doubts)
        panels.setdefault(panel, []).append(trial)
        print(f"{panel} {x:.3g}: {trial.ratio:.3f} ± {trial.error:.3f}", trial.doubts, flush=True)
        return found.step_size

    for name, (net, data), exact, here in known():
        right = exact if math.isnan(here) else here
        for draws in (20, 60, 200, 600):
            run(RUN_LENGTH, 0.0, right, net, data, draws, seed=draws)
        if name not in TRIED:
            continue
        step = run(STEP, 1.0, right, net, data, 500, **langevin)
        for factor in (0.1, 3.0, 10.0, 30.0, 100.0):
            run(STEP, factor, right, net, data, 500, step_size=factor * step, **langevin)
        for steps in (200, 600, 2000, 6000):
            short = langevin | {"thin": steps // 200, "step_size": step}
            run(WARMUP, steps, right, net, data, 400, **short)
        for gamma in (10.0, 100.0, 1000.0, 10_000.0):
            run(LOCALISATION, gamma, right, net, data, 300, localization=gamma)
        for far in (0.003, 0.01, 0.03, 0.1, 0.3):
            run(MISSED, far, right, moved(net, far), data, 300)
    return panels


def draw(panels: dict[str, list[Trial]], path: Path) -> None:
    """One panel for each thing that is varied; what lies outside is a triangle at the edge."""
    import matplotlib.pyplot as plt

    low, high = -0.5, 2.0
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 3.6), sharey=True)
    for axis, (panel, found) in zip(axes, panels.items(), strict=True):
        axis.axhspan(0.95, 1.05, color="0.9")
        for trust, (color, _) in enumerate(COLOURS):
            some = [each for each in found if each.trust == trust]
            for inside, marker in ((True, "o"), (False, "v")):
                part = [each for each in some if (low < each.ratio < high) == inside]
                axis.errorbar(
                    [each.x for each in part],
                    [min(max(each.ratio, low + 0.05), high - 0.05) for each in part],
                    [each.error * inside for each in part],
                    fmt=marker, ms=5, lw=1, color=color,
                )  # fmt: skip
        axis.set(xscale="log", xlabel=panel, ylim=(low, high))
        axis.xaxis.set_minor_formatter("")
    axes[0].set_ylabel("value / exact")
    handles = [plt.Line2D([], [], marker="o", ls="", color=c, label=label) for c, label in COLOURS]
    axes[0].legend(handles=handles, fontsize="small", loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def calibration(path: Path) -> None:
    """The figure, and how often the value was right by what was doubted."""
    panels = trials()
    draw(panels, path)
    every = [each for found in panels.values() for each in found]
    for trust, (_, label) in enumerate(COLOURS):
        some = [each for each in every if each.trust == trust]
        print(f"{label}: right in {sum(each.right for each in some)} of {len(some)} runs")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--devinterp", action="store_true")
    options = parser.parse_args()
    if options.devinterp:
        return beside_devinterp()
    if options.figure:
        return calibration(options.figure)
    if options.seeds:
        return coverage(options.seeds)
    print("| model | D / 2 | exact lambda | exact at this N | found | doubts | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (net, data), exact, here in known():
        begun = time.process_time()
        found = estimate(net, data, options.draws)
        print(
            f"| {name} | {found.num_params / 2:g} | {exact:g} | "
            f"{'' if math.isnan(here) else f'{here:.3f}'} | {found.value:.3f} ± "
            f"{found.standard_error:.3f} | {'; '.join(found.doubts) or 'none'} | "
            f"{time.process_time() - begun:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
