import pytest
import torch

import particlevi as pvi
from particlevi import sgdvi
from tests.sgdvi.test_stationary import relative

N, B, D = 200, 10, 4


def regression():
    """Linear regression under a wide prior, in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    x = x @ torch.diag(torch.tensor([1.0, 0.7, 1.5, 1.0]).double())
    y = x @ torch.ones(D).double() + 0.5 * torch.randn(N, generator=generator, dtype=x.dtype)
    net = torch.nn.Linear(D, 1, bias=False).double()
    potential = pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(10.0), num_data=N)
    return potential, (x, y[:, None])


def run(draws=400, thin=1, eta=0.02, chains=200, **options):
    potential, data = regression()
    x, y = data
    hessian = x.T @ x / 0.25 / N + torch.eye(D).double() / 100 / N
    best = torch.linalg.solve(hessian, x.T @ y[:, 0] / 0.25 / N)
    found = pvi.sample(
        pvi.sgd(potential),
        data,
        step_size=eta / N,
        batch_size=B,
        initial=best.expand(chains, -1),
        num_warmup=150,
        num_draws=draws,
        thin=thin,
        progress=False,
        **options,
    )
    return found, potential, data, hessian, best


def test_sgd_draws_have_the_law_that_noise_and_hessian_predict():
    draws, potential, data, hessian, best = run(draws=40, thin=10, chains=400, eta=0.01)
    noise = pvi.noise.measure(potential, data, position=best).dense()
    settings = {"learning_rate": 0.01, "batch_size": B}
    law = sgdvi.exact_law(hessian, noise, **settings)
    flat = draws.particles.flatten(0, 1)
    # The noise of a regression grows away from the optimum: C(x) = C + O(|x - x*|^2), which adds a
    # few per cent at this rate.
    assert relative(torch.cov(flat.T), law.covariance) < 0.06
    subset, *_ = run(draws=40, thin=10, chains=400, eta=0.01, batching="subset")
    ratio = torch.cov(subset.particles.flatten(0, 1).T).trace() / torch.cov(flat.T).trace()
    assert float(ratio) == pytest.approx((N - B) / (N - 1), rel=0.03)


def test_swag_covariance_is_its_formula():
    draws, *_ = run(draws=60, thin=5, chains=2)
    many = sgdvi.swag(draws, num_draws=40000, rank=20, scale=0.5)
    for chain in range(2):
        values = draws.particles[chain]
        deviation = values - values.mean(0)
        diagonal = torch.diag(deviation.square().mean(0))
        columns = deviation[-20:]
        wanted = 0.5 * (diagonal + columns.T @ columns / 19)
        found = many.particles[chain]
        assert relative(torch.cov(found.T), wanted) < 0.03
        error = (wanted.diagonal() / 40000).sqrt()
        assert ((found.mean(0) - values.mean(0)).abs() < 5 * error).all()
    assert many.attrs["sampler"] == "swag"
    mean, _ = many.predict(torch.ones(3, D), thin=100)
    assert mean.shape == (3, 1)


def test_iterate_averages_have_the_covariance_of_theory():
    # Long windows: Cov -> (1/(T b)) F^-1 C F^-1, here T = 1000 with eta T lambda_min near 60.
    draws, potential, data, hessian, best = run(draws=1000, chains=600, eta=0.04)
    noise = pvi.noise.measure(potential, data, position=best).dense()
    averages = sgdvi.iterate_average(draws, window=1000)
    assert averages.particles.shape == (600, 1, D)
    inverse = torch.linalg.inv(hessian)
    wanted = inverse @ noise @ inverse / (1000 * B)
    found = torch.cov(averages.particles[:, 0].T)
    assert relative(found, wanted) < 0.25
    assert float(found.trace() / wanted.trace()) == pytest.approx(1, abs=0.2)
    short = sgdvi.iterate_average(draws, window=300).particles
    assert torch.allclose(short[:, -1], draws.particles[:, -300:].mean(1))
    assert short.shape[1] == 3


def test_bad_input():
    draws, *_ = run(draws=2, chains=2)
    with pytest.raises(ValueError, match="at least 3 draws"):
        sgdvi.swag(draws)
    with pytest.raises(ValueError, match="at least 5 draws"):
        sgdvi.iterate_average(draws, 5)
    with pytest.raises(TypeError, match="Draws"):
        sgdvi.swag(draws.particles)
    part, *_ = run(draws=4, chains=2, store=pvi.storage.InMemory(torch.tensor([0])))
    with pytest.raises(ValueError, match="part of the parameters"):
        sgdvi.swag(part)
