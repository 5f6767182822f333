"""The local learning coefficient against its exact values."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from particlevi.sgdvi import local_learning_coefficient

F64 = torch.float64


def half(outputs, targets):
    return 0.5 * (outputs - targets).square().sum()


def regression(count: int, size: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, generator=generator, dtype=F64)
    y = x.sum(1, keepdim=True) + torch.randn(count, 1, generator=generator, dtype=F64)
    net = nn.Linear(size, 1, bias=False).double()
    net.weight.data = torch.linalg.lstsq(x, y).solution.T.clone()
    return net, (x, y)


class Power(nn.Module):
    """``y = product_i w_i^(k_i)`` times x."""

    def __init__(self, *powers: int):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(powers), dtype=F64))
        self.powers = torch.tensor(powers)

    def forward(self, x):
        return self.w.pow(self.powers).prod() * x


def unit(count: int):
    x = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = x / x.square().mean().sqrt()
    return x, 0 * x


QUICK = {"num_chains": 2, "step_size": 0.008, "thin": 1, "num_draws": 60}


def test_a_regular_model_has_half_its_parameters():
    net, data = regression(200, 3)
    found = local_learning_coefficient(net, data, half, **QUICK | {"num_draws": 600})
    assert abs(found.value + found.held - 1.5) < 4 * found.standard_error
    assert not found.doubts


def test_a_checkpoint_that_is_no_minimum_is_doubted():
    net, data = regression(200, 3)
    net.weight.data += 0.5
    found = local_learning_coefficient(net, data, half, **QUICK)
    assert found.lower > 0.5
    assert any("no minimum" in doubt for doubt in found.doubts)


def test_a_step_near_the_stable_one_is_doubted():
    """``y = w^2 x``: the curvature grows with w, the Langevin step is too long far out."""
    found = local_learning_coefficient(Power(2), unit(50), half, **QUICK | {"step_size": 0.05})
    assert any("of the stable one" in doubt for doubt in found.doubts)


def test_the_step_is_stable_where_the_chains_go():
    found = local_learning_coefficient(
        Power(2), unit(50), half, num_chains=2, num_draws=100, thin=10
    )
    assert found.step_share < 0.5


def test_strong_localisation_is_doubted():
    net, data = regression(200, 3)
    found = local_learning_coefficient(
        net, data, half, localization=1000.0, **QUICK | {"step_size": 1e-4}
    )
    assert any("localisation" in doubt for doubt in found.doubts)


def test_chains_that_miss_a_part_of_the_law_are_doubted():
    net, data = regression(200, 3)
    found = local_learning_coefficient(net, data, half, **QUICK | {"num_draws": 600})
    assert abs(found.virial - 3) < 4 * found.virial_error
    away = replace(found, value=2.0 + 5 * found.standard_error)
    assert any("ran away" in doubt for doubt in away.doubts)
    cold = replace(found, virial=3 - 5 * found.virial_error - 0.04)
    assert any("miss a part of the law" in doubt for doubt in cold.doubts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"localization": -1.0}, "localization"),
        ({"scheme": "nuts"}, "scheme"),
        ({"scheme": "hmc", "batch_size": 5}, "leave batch_size out"),
        ({"num_chains": 1}, "num_chains"),
        ({"batch_size": 500}, "at most the 200 data"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    net, data = regression(200, 3)
    with pytest.raises(ValueError, match=words):
        local_learning_coefficient(net, data, half, **change)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["leimkuhler_matthews", "sgld"])
def test_langevin_finds_a_regular_model_within_five_per_cent(scheme):
    net, data = regression(300, 4)
    found = local_learning_coefficient(net, data, half, scheme=scheme, num_draws=2000, thin=20)
    assert found.value + found.held == pytest.approx(2.0, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("powers", "wanted"), [((2,), 1 / 4), ((3,), 1 / 6)], ids=["quartic", "sextic"]
)
def test_toy_singular_models(powers, wanted):
    """``K = w^(2k) / 2`` has ``1 / (2k)``, exactly at every N if nothing is localised."""
    found = local_learning_coefficient(
        Power(*powers), unit(400), half, scheme="hmc", localization=1e-6, num_draws=4000, thin=2
    )
    assert found.standard_error < 0.06 * wanted
    assert found.value == pytest.approx(wanted, abs=3 * found.standard_error)


@pytest.mark.slow
def test_reduced_rank_regression():
    """``y = B A x`` from 2 inputs over 2 to 5 outputs, of rank 0: 2 and not 7 (case 2 of the law).

    Aoyagi and Watanabe, "Stochastic complexities of reduced rank regression in Bayesian
    estimation", 2005.
    """
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = 10 * math.sqrt(200) * torch.linalg.qr(x)[0]
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 5, bias=False)).double()
    for layer in net:
        layer.weight.data.zero_()
    found = local_learning_coefficient(
        net, (x, net(x).detach()), half, scheme="hmc", num_draws=400, thin=1
    )
    assert found.standard_error < 0.1
    assert found.value == pytest.approx(2.0, abs=3 * found.standard_error)


@pytest.mark.slow
def test_a_product_of_weights_is_right_or_doubted():
    """``K = w_1^2 w_2^4 / 2``: 1/4 for large N; at this N what quadrature says.

    Its valleys narrow without end, so that chains that agree with each other may miss them.
    """
    count = 1000
    found = local_learning_coefficient(
        Power(1, 2), unit(count), half, scheme="hmc", localization=1.0, num_draws=6000, thin=2
    )
    axis = torch.linspace(-6, 6, 2401, dtype=F64)
    a, b = torch.meshgrid(axis, axis, indexing="ij")
    scaled = count / math.log(count) * 0.5 * a.square() * b.pow(4)
    mass = torch.exp(-scaled - 0.5 * (a.square() + b.square()))
    exact = float((scaled * mass).sum() / mass.sum())
    right = abs(found.value - exact) < 3 * found.standard_error
    assert right or any("miss a part of the law" in doubt for doubt in found.doubts)


@pytest.mark.slow
def test_the_error_covers():
    net, data = regression(200, 3)
    z = []
    for seed in range(40):
        found = local_learning_coefficient(
            net, data, half, scheme="hmc", num_draws=100, thin=1, seed=seed
        )
        z.append((found.value + found.held - 1.5) / found.standard_error)
    z = torch.tensor(z)
    assert abs(float(z.mean())) < 0.6
    assert 0.75 < float(z.std()) < 1.3
