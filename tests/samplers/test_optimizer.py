"""Optimisers as samplers: the same iterates as in a loop, and their stationary laws."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi

F64 = torch.float64


def gaussian(curvatures):
    scale = torch.tensor(curvatures, dtype=F64)
    return pvi.from_log_density(
        lambda x: -(scale * x.square()).sum() / 2, len(curvatures), dtype=F64
    )


MAKES = {
    "SGD": torch.optim.SGD,
    "momentum": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    "AMSGrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.3),
    "Rprop": torch.optim.Rprop,
    "NAdam": torch.optim.NAdam,
    "tensor lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3), foreach=False),
    "PNM": pvi.optim.PNM,
    "AdaPNM": pvi.optim.AdaPNM,
    "power": lambda p: pvi.optim.power(torch.optim.SGD(p, momentum=0.5), 0.5),
}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
def test_the_iterates_are_those_of_a_loop(make):
    scale = torch.tensor([1.0, 3.0], dtype=F64)
    start = torch.tensor([[1.0, -2.0], [0.3, 0.7]], dtype=F64)
    sampler = pvi.optimizer(gaussian([1.0, 3.0]), make)
    options = {"step_size": 0.05, "num_draws": 8, "progress": False}
    draws = pvi.sample(sampler, initial=start, **options)

    param = start.clone().requires_grad_()
    optimizer = make([param])
    group = optimizer.param_groups[0]
    group["lr"] = torch.tensor(0.05) if isinstance(group["lr"], torch.Tensor) else 0.05
    path = []
    for _ in range(8):
        param.grad = scale * param.detach()
        optimizer.step()
        path.append(param.detach().clone())
    assert torch.allclose(draws.particles, torch.stack(path, 1), rtol=1e-6, atol=1e-8)


def regression():
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(100, 1, generator=generator, dtype=F64)

    return pvi.from_log_likelihood(
        lambda theta: -1e-6 * theta.square().sum(),
        lambda theta, y: -(y[0][:, 0] - theta[0]).square() / 2,
        num_params=1,
        num_data=100,
        dtype=F64,
    ), (y,)


def test_the_mean_loss_is_the_potential_per_datum():
    potential, data = regression()
    options = {"num_particles": 2, "num_warmup": 0, "num_draws": 5, "progress": False, "seed": 3}
    mean = pvi.sample(
        pvi.optimizer(potential, torch.optim.SGD), data, step_size=0.1, batch_size=10, **options
    )
    plain = pvi.sample(pvi.sgd(potential), data, step_size=0.1 / 100, batch_size=10, **options)
    assert torch.allclose(mean.particles, plain.particles, rtol=1e-12)


def test_the_total_loss_is_the_potential():
    potential, data = regression()
    options = {"num_particles": 2, "num_warmup": 0, "num_draws": 5, "progress": False, "seed": 3}
    total = pvi.optimizer(potential, torch.optim.SGD, loss="total")
    first = pvi.sample(total, data, step_size=1e-3, batch_size=10, **options)
    plain = pvi.sample(pvi.sgd(potential), data, step_size=1e-3, batch_size=10, **options)
    assert torch.allclose(first.particles, plain.particles, rtol=1e-12)


@pytest.mark.slow
def test_the_stationary_variance_of_pnm_beside_that_of_sgd():
    # Noise of variance s^2 on h x^2 / 2: lr_eff s^2 / (2 h), with lr_eff = lr / sqrt(5).
    potential, data = regression()
    lr, size = 0.05, 10
    sampler = pvi.optimizer(potential, pvi.optim.PNM)
    options = {"num_particles": 400, "num_warmup": 600, "num_draws": 400, "progress": False}
    draws = pvi.sample(sampler, data, step_size=lr, batch_size=size, seed=1, **options)
    noise = float(data[0].var(correction=0)) / size
    expected = lr / math.sqrt(5) * noise / 2
    assert float(draws.particles.var()) == pytest.approx(expected, rel=0.05)


def test_an_optimiser_that_mixes_rows_is_refused():
    class Normalised(torch.optim.SGD):
        """Steps along the gradient over its norm."""

        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.grad = p.grad / (p.grad.norm() + 1e-12)
            return super().step(closure)

    with pytest.raises(ValueError, match="mixes the rows"):
        pvi.optimizer(gaussian([1.0]), Normalised)


def test_what_is_no_optimiser_is_refused():
    with pytest.raises(TypeError, match="got list"):
        pvi.optimizer(gaussian([1.0]), list)


def test_several_groups_are_refused():
    with pytest.raises(ValueError, match="one group"):
        pvi.optimizer(
            gaussian([1.0]),
            lambda p: torch.optim.SGD([{"params": p}, {"params": [torch.zeros(1)]}]),
        )
