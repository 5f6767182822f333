"""The local learning coefficient beside exact values, and whether its error bars cover.

``python benchmarks/learning_coefficient.py`` prints the table of docs/geometry.md: a regular model
and reduced-rank regression ``y = B A x`` (Aoyagi and Watanabe, "Stochastic complexities of reduced
rank regression in Bayesian estimation", 2005), at the most singular of its true parameters.
``--seeds 20`` adds z over that many runs of one case; ``--devinterp`` runs that package's SGLD
beside ours on a net instead. Data are free of noise, so that the checkpoint is the minimum to the
last digit.
"""

from __future__ import annotations

import argparse
import copy
import math
import time

import torch
from torch import nn

import particlevi as pvi
from particlevi.diagnostics import arviz

F64 = torch.float64
NUM_DATA, SCALE = 200, 10.0
CASES = [(2, 2, 2, 0), (3, 3, 2, 0), (2, 5, 2, 0), (3, 3, 3, 1), (3, 3, 2, 1)]


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
    """A 2-4-1 net that made its own data; one step size, temperature and localisation."""
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--devinterp", action="store_true")
    options = parser.parse_args()
    if options.devinterp:
        return beside_devinterp()
    strength = NUM_DATA / math.log(NUM_DATA) * SCALE**2
    print("| model | D / 2 | exact lambda | exact at this N | found | doubts | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = [("regular, D = 4", regular(4), 2.0, 2 * strength / (1 + strength))]
    for case in CASES:
        exact, multiplicity = reduced_rank(*case)
        here = at_this_size(*case[:3], strength) if case[3] == 0 else math.nan
        name = f"reduced rank {case[0]}-{case[2]}-{case[1]}, rank {case[3]}"
        rows.append((name + (", m = 2" if multiplicity == 2 else ""), problem(*case), exact, here))
    for name, (net, data), exact, here in rows:
        begun = time.process_time()
        found = estimate(net, data, options.draws)
        print(
            f"| {name} | {found.num_params / 2:g} | {exact:g} | "
            f"{'' if math.isnan(here) else f'{here:.3f}'} | {found.value:.3f} ± "
            f"{found.standard_error:.3f} | {'; '.join(found.doubts) or 'none'} | "
            f"{time.process_time() - begun:.0f} |",
            flush=True,
        )
    if options.seeds:
        here = at_this_size(2, 2, 2, strength)
        runs = [estimate(*problem(2, 2, 2, 0), 600, seed) for seed in range(options.seeds)]
        z = torch.tensor([(run.value - here) / run.standard_error for run in runs])
        print(f"z over {len(z)} runs: mean {float(z.mean()):.2f}, sd {float(z.std()):.2f}")


if __name__ == "__main__":
    main()
