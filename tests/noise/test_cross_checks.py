"""One quantity, two parts of the package: what must agree does."""

import pytest
import torch
from torch import nn

import particlevi as pvi

F64 = torch.float64
N, BATCH, RATE = 20, 4, 0.05


def measured():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    x, y = torch.randn(N, 3, dtype=F64), torch.randn(N, 1, dtype=F64)
    return net, (x, y), pvi.noise.measure(net, (x, y), nn.functional.mse_loss, batch_size=BATCH)


def test_one_linear_law_in_two_scalings():
    """``F S + S F = 2 C / beta`` and ``A S + S A = (eps/S) C`` have one solution."""
    root = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    hessian, c = root @ root.T + torch.eye(3, dtype=F64), torch.diag(torch.arange(1.0, 4).double())
    level = pvi.noise.scalings(RATE, BATCH)
    chaudhari = pvi.sgdvi.ou_covariance(hessian, 2 * level.chaudhari_soatto * c)
    # Mandt's unit of time is a step: drift and noise are both multiplied by the rate.
    mandt = pvi.sgdvi.ou_covariance(RATE * hessian, level.mandt * c)
    assert torch.allclose(chaudhari, mandt, rtol=1e-12)


def test_trace_from_samples_from_minibatches_and_from_the_regulariser():
    _, _, noise = measured()
    trace = noise.trace().value
    rows = torch.cat(list(noise.per_sample()))
    generator = torch.Generator().manual_seed(2)
    chosen = torch.rand(20_000, N, generator=generator).argsort(1)[:, :BATCH]
    squared = (
        (rows[chosen].mean(1) - noise.gradient).square().sum(1) * BATCH * (N - 1) / (N - BATCH)
    )
    z = (squared.mean() - trace) / (squared.std() / len(squared) ** 0.5)
    assert abs(float(z)) < 4
    value = pvi.noise.shuffling_regulariser(noise, 4.0, 1, partitions="random").value
    assert value - float(noise.gradient.square().sum()) == pytest.approx(trace, rel=1e-10)


@pytest.mark.parametrize(("noise", "batching"), [("cov", None), ("sgd", "subset")])
def test_noise_of_the_covariance_of_sgd_has_its_stationary_law(noise, batching):
    """On a quadratic: ``S = (I - eta A) S (I - eta A) + eta^2 k A Cov(x) A``, by Kronecker."""
    curvature, rate = torch.tensor([1.0, 3.0], dtype=F64), 0.1
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(4), dtype=F64)
    model = pvi.from_log_likelihood(
        lambda theta: 0.0 * theta.sum(),
        lambda theta, data: -0.5 * ((theta - data).square() * curvature).sum(-1),
        num_params=2,
        num_data=N,
        dtype=F64,
    )
    draws = pvi.sample(
        pvi.sgd(pvi.msgd(model, noise, batch_size=BATCH)),
        x,
        step_size=rate / N,
        initial=x.mean(0).repeat(2000, 1),
        num_warmup=60,
        num_draws=4,
        thin=15,
        progress=False,
    )
    factor = pvi.noise.batch_factor(BATCH, N, batching or "replacement")
    c = factor * curvature[:, None] * x.T.cov(correction=0) * curvature
    keep = 1 - rate * curvature
    expected = rate**2 * c / (1 - keep[:, None] * keep)
    found = draws.particles.flatten(0, 1).T.cov()
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_every_step_of_torch_sgd_keeps_the_law_of_balance():
    net, (x, y), noise = measured()
    (pair,) = noise.balance().pairs
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(3)
    first, second = (net[0].weight, net[0].bias), net[2].weight

    def difference(values):
        incoming = values[0].square().sum(1) + values[1].square()
        return incoming - values[2].square().sum(0)

    assert torch.allclose(pair.first_norm - pair.second_norm, difference((*first, second)).detach())
    for _ in range(20):
        chosen = torch.randint(N, (BATCH,), generator=generator)
        before = difference((*first, second)).detach()
        optimiser.zero_grad()
        nn.functional.mse_loss(net(x[chosen]), y[chosen]).backward()
        slopes = difference((first[0].grad, first[1].grad, second.grad))
        optimiser.step()
        change = difference((*first, second)).detach() - before
        assert torch.allclose(change, RATE**2 * slopes, rtol=0, atol=1e-12)
