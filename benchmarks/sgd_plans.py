"""SGD planned as a sampler, against what it then does and against reference draws.

``python benchmarks/sgd_plans.py`` prints one table: linear regression, logistic regression and a
small net; predicted and observed variance, KL to the target, and both against HMC's covariance.
"""

from __future__ import annotations

import time

import torch
from torch import nn

import particlevi as pvi

F64 = torch.float64


def half_square(outputs, targets):
    return 0.5 * (outputs - targets).square().sum(-1).mean()


def bernoulli(outputs, targets):
    return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], targets)


def problems():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 4, generator=generator, dtype=F64)
    noise = torch.randn(500, generator=generator, dtype=F64)
    line = x @ torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=F64)
    bent = torch.sin(1.5 * x[:, 0]) + 0.3 * noise
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))
    yield "linear, D=4", nn.Linear(4, 1, bias=False), (x, (line + noise)[:, None]), half_square, 0.0
    label = (line + noise > 0).double()
    yield "logistic, D=5", nn.Linear(4, 1), (x, label), bernoulli, 0.002
    scaled = (x[:, :1], bent[:, None] / 0.3)
    yield "net 1-3-1, D=10", net, scaled, half_square, 0.01


def reference(model, plan, data, loss, decay):
    """The covariance of HMC's draws of the same posterior, from the same minimum."""
    draws = pvi.sample(
        pvi.hmc(plan.potential),
        plan.data,
        initial=plan.center.expand(8, -1) + 1e-3 * torch.randn(8, len(plan.center), dtype=F64),
        num_warmup=500,
        num_draws=1000,
        progress=False,
    ).particles.flatten(0, 1)
    away = draws - plan.center
    return away.T @ away / len(away)


def main() -> None:
    print("| problem | target | preconditioner | b | steps per draw | predicted KL | variance, ")
    print("observed / predicted | KL observed | verdict | variance, HMC / predicted |")
    for name, net, data, loss, decay in problems():
        for structure, target in (("full", "posterior"), ("diagonal", "posterior"),
                                  ("full", "sandwich")):  # fmt: skip
            start = time.time()
            plan = pvi.sgdvi.plan(
                net, data, loss, target=target, weight_decay=decay, preconditioner=structure
            )
            checked = plan.verify(plan.run(num_draws=200, num_chains=16))
            compared = ""
            if target == "posterior" and structure == "full":
                wide = reference(net, plan, data, loss, decay)
                product = torch.linalg.solve(plan.design.covariance, wide)
                compared = f"{float(product.trace()) / len(wide):.3f}"
            print(
                f"| {name} | {target} | {structure} | {plan.batch_size} | {plan.thin} | "
                f"{plan.design.kl:.3g} | {checked.spread_ratio:.3f} +- {checked.spread_error:.3f} |"
                f" {checked.kl:.3f} +- {checked.kl_error:.3f} | "
                f"{'holds' if checked.holds else 'fails'} | {compared} | "
                f"({time.time() - start:.0f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
