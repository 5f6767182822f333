"""Long SGHMC runs against Pyro's NUTS and posteriordb, on Pyro models.

Every functional is compared by its z-score, with the Monte-Carlo errors of both sides; the second
moments are about a fixed centre, so that they tell the spread.
"""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

import particlevi as pvi
from particlevi.diagnostics.arviz import ess, mcse

SCHOOLS_Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
SCHOOLS_SCALE = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)

# eight_schools-eight_schools_noncentered of posteriordb (Stan's NUTS, 10 000 draws): mu, tau, their
# squares, theta.
SCHOOLS_MOMENTS = [4.41052, 3.60206, 30.403, 23.204]
SCHOOLS_THETA = [6.1505, 4.9396, 3.9059, 4.7960, 3.6144, 4.0511, 6.3172, 4.8840]
NUTS_DRAWS = 2000

# Pyro compiles NUTS with torch.jit.trace.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

X = torch.linspace(-2, 2, 16, dtype=torch.float64)
Y = torch.sin(1.5 * X) + 0.6 * torch.cos(17.0 * X)
PROBES = torch.tensor([-3.0, -1.5, -0.3, 0.6, 2.0, 3.0], dtype=torch.float64)
HIDDEN = 3
NOISE = 0.5


def schools():
    mu = pyro.sample("mu", dist.Normal(SCHOOLS_Y.new_zeros(()), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(SCHOOLS_Y.new_full((), 5.0)))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(SCHOOLS_Y.new_zeros(()), 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, SCHOOLS_SCALE), obs=SCHOOLS_Y)


def net(x, y=None):
    zero = x.new_zeros(())
    w1 = pyro.sample("w1", dist.Normal(zero, 1.0).expand([1, HIDDEN]).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(zero, 1.0).expand([HIDDEN]).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(zero, 1.0).expand([HIDDEN]).to_event(1))
    mean = torch.tanh(x.unsqueeze(-1) @ w1 + b1) @ w2
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, NOISE), obs=y)


def net_functionals(draws):
    """The net's output at the probes, ``[P, T, 6]``."""
    hidden = torch.tanh(PROBES.unsqueeze(-1) * draws["w1"] + draws["b1"].unsqueeze(-2))
    return (hidden * draws["w2"].unsqueeze(-2)).sum(-1).numpy()


def schools_functionals(draws):
    """mu, log tau and theta, ``[P, T, 10]``."""
    theta = draws["mu"].unsqueeze(-1) + draws["tau"].unsqueeze(-1) * draws["eta"]
    return torch.cat(
        [draws["mu"].unsqueeze(-1), draws["tau"].log().unsqueeze(-1), theta], -1
    ).numpy()


def sghmc(model, data, friction, **options):
    potential = pvi.from_pyro(model, example_batch=data)
    sampler = pvi.sghmc(potential, friction)
    draws = pvi.sample(sampler, data, progress=False, **options)
    assert not draws.diverged
    return draws.constrained()


def nuts(model, data, **options):
    pyro.set_rng_seed(0)
    kernel = NUTS(model, jit_compile=True, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, disable_progbar=True, **options)
    mcmc.run(*data)
    return {name: value.unsqueeze(0) for name, value in mcmc.get_samples().items()}


def moments(values, centre):
    """Means and mean squares about a centre with their Monte-Carlo errors, ``[2, K]`` each."""
    both = values, (values - centre) ** 2
    return np.stack([v.mean((0, 1)) for v in both]), np.stack([mcse(v) for v in both])


def check(ours, theirs):
    """No mean and no second moment differs."""
    centre = theirs.mean((0, 1))
    (a, a_error), (b, b_error) = moments(ours, centre), moments(theirs, centre)
    z = (a - b) / np.hypot(a_error, b_error)
    # How many errors a standard deviation that is 5 % too large would be away.
    print("z", z.round(2), "5 %", (0.1025 * theirs.var((0, 1)) / np.hypot(a_error, b_error)[1]))
    assert np.abs(z).max() < 5


SCHOOLS_RUN = {"friction": 0.6, "step_size": 0.2, "initial": "uniform"}
NET_RUN = {"friction": 1.0, "step_size": 0.05}


def test_eight_schools_against_posteriordb():
    draws = sghmc(
        schools, None, **SCHOOLS_RUN, num_particles=300, num_warmup=150, num_draws=50, thin=7
    )
    theta = draws["mu"].unsqueeze(-1) + draws["tau"].unsqueeze(-1) * draws["eta"]
    mu, tau = (draws[name].unsqueeze(-1) for name in ("mu", "tau"))
    values = torch.cat([mu, tau, mu**2, tau**2, theta], -1).numpy()
    # Ten thousand draws that are almost independent.
    error = np.hypot(mcse(values), values.std((0, 1)) / 100)
    z = (values.mean((0, 1)) - [*SCHOOLS_MOMENTS, *SCHOOLS_THETA]) / error
    print("z", z.round(2), "ESS", ess(values, "mean").round())
    assert np.abs(z).max() < 5


@pytest.mark.slow
def test_eight_schools_against_nuts():
    """A density without data, with a site on the half line."""
    run = {"num_particles": 400, "num_warmup": 200, "num_draws": 100, "thin": 10}
    ours = schools_functionals(sghmc(schools, None, **SCHOOLS_RUN, **run))
    theirs = schools_functionals(nuts(schools, (), num_samples=NUTS_DRAWS, warmup_steps=1000))
    check(ours, theirs)


@pytest.mark.slow
def test_predictions_of_a_net_against_nuts():
    """Its hidden units can be exchanged, so that outputs are compared and not weights."""
    run = {"num_particles": 400, "num_warmup": 300, "num_draws": 60, "thin": 10}
    ours = net_functionals(sghmc(net, (X, Y), **NET_RUN, **run))
    theirs = net_functionals(nuts(net, (X, Y), num_samples=NUTS_DRAWS, warmup_steps=500))
    check(ours, theirs)
