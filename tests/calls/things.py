"""Right arguments that many calls share, and functions of a caller who is careless."""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib as mpl
import torch
from torch import nn

import particlevi as pvi
from particlevi import comparison, noise, sgdvi

mpl.use("Agg")

F64 = torch.float64


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bowl(x):
    return 0.5 * x.square().sum(-1)


def nothing(x):
    return None


EYE = torch.eye(2, dtype=F64)
SERIES = normal(12, 10, 2, dtype=F64)
SAMPLES = normal(60, 2, seed=1, dtype=F64)
X, Y = normal(6, 2, seed=2), normal(6, 1, seed=3)
DATA = X, Y
NET = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1))
LINEAR = nn.Linear(2, 1)
NORMAL = pvi.from_log_density(lambda theta: -0.5 * theta.square().sum(), 2)
MODEL = pvi.from_module(LINEAR, pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=6)
CLASSES = pvi.from_module(nn.Linear(2, 3), pvi.Categorical(), pvi.Normal(1.0), num_data=6)
SHORT = {"step_size": 1e-3, "num_particles": 3, "num_draws": 4, "num_warmup": 2, "thin": 1,
         "progress": False}  # fmt: skip
DRAWS = pvi.sample(pvi.sgd(MODEL), DATA, **SHORT)
CHAINS = pvi.sample(pvi.sghmc(MODEL), DATA, **SHORT | {"num_particles": 6})
PARTICLES = pvi.sample(pvi.svgd(MODEL), DATA, **SHORT)
NOISE = noise.measure(LINEAR, DATA, loss_fn=nn.functional.mse_loss)
OTHERS = noise.measure(
    LINEAR, (normal(7, 2, seed=5), Y[[0, 1, 2, 3, 4, 5, 0]]), nn.functional.mse_loss
)
PAIRS = noise.measure(NET, DATA, loss_fn=nn.functional.mse_loss)
LAW = sgdvi.stationary_law(EYE, EYE, learning_rate=0.1, batch_size=5)
CURRENT = sgdvi.probability_current(SERIES, 0.1, EYE, num_grid=3, num_blocks=4)
SPECTRA = sgdvi.spectra(SERIES, num_frequencies=2, max_lag=2)
SLICE = sgdvi.compare_potentials(sgdvi.line(SERIES[0, 0], SERIES[0, 1], num=5), bowl, bowl)
COMPARED = comparison.compare({"a": CHAINS, "b": DRAWS}, DATA, train_data=DATA)
RUNS = [
    noise.SGDRun.from_positions(0.1 * normal(7, 3, seed=seed, dtype=torch.float32), 0.1)
    for seed in range(2)
]
GAUSSIANITY = noise.gaussianity(SAMPLES, num_directions=2, num_bootstrap=19)
TAILS = noise.tail_index(SAMPLES, num_null=19)
BALANCE = noise.balance_along(PAIRS, PAIRS.position.repeat(2, 1))
BOUND = noise.GeneralizationBound(*torch.ones(6, 3).unbind(), gap=(0.1, 0.01))
TRACE = dict.fromkeys(
    ["step", "weight_norm", "gradient_norm", "update_norm"]
    + [f"probe.{name}" for name in ("step", "trace", "error", "curvature", "edge")],
    torch.ones(5),
)
STEP = pvi.suggest_step_size(MODEL, DATA, verbose=False)


def fresh_parameters():
    """Parameters with gradients, for an optimiser that moves them."""

    def fresh():
        made = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 1))]
        for parameter in made:
            parameter.grad = torch.full_like(parameter, 0.1)
        return made

    return fresh


def stepped(optimizer):
    optimizer.step()
    return optimizer


def run(sampler, **options):
    """Two draws, of data or of a density as the sampler's target is."""
    potential = sampler.estimator.potential if hasattr(sampler, "estimator") else None
    data = None if potential is None or not potential.num_data else DATA
    settings = SHORT | {"num_draws": 2, "num_warmup": 0} | options
    return pvi.sample(sampler, data, **settings)


def with_likelihood(outputs):
    def then(likelihood):
        model = pvi.from_module(nn.Linear(2, outputs), likelihood, pvi.Normal(1.0), num_data=6)
        y = torch.arange(6) % 3 if outputs == 3 else Y.abs().round()
        return pvi.sample(pvi.sgld(model), (X, y), **SHORT).predict(X)

    return then


def with_prior(prior):
    model = pvi.from_module(LINEAR, pvi.Gaussian(1.0), prior, num_data=6)
    return pvi.sample(pvi.sgld(model), DATA, **SHORT)


def with_kernel(kernel):
    return pvi.sample(pvi.svgd(MODEL, kernel), DATA, **SHORT)


def with_estimator(estimator):
    return pvi.sample(pvi.sgld(estimator), DATA, **SHORT)


def with_schedule(schedule):
    return [float(schedule(step)) for step in (0, 1, 7, 10**6)]


def with_storage(storage):
    return pvi.sample(pvi.sgld(MODEL), DATA, **SHORT, store=storage)


def with_monitor(monitor):
    return pvi.sample(pvi.sgld(MODEL), DATA, **SHORT, monitor=monitor)


def with_rule(rule):
    return with_monitor(pvi.running.Monitor([rule], every=1))


def with_tuner(sampler):
    def then(tuner):
        options = SHORT | {"num_particles": 4, "num_warmup": 12, "step_size": None}
        return pvi.sample(sampler(MODEL), DATA, **options, tuner=tuner)

    return then


def fresh_optimizer():
    """A stochastic gradient descent of such parameters."""

    def fresh():
        return torch.optim.SGD(fresh_parameters()(), lr=0.1)

    return fresh


def perturbed(optimizer):
    with optimizer.perturbed():
        pass
    optimizer.step()


FOLDER = Path(tempfile.mkdtemp(prefix="calls"))


def saved(name, kind):
    """A checkpoint or a file of draws."""
    path = FOLDER / name
    if kind == "checkpoint":
        pvi.sample(pvi.sgld(MODEL), DATA, **SHORT, checkpoint=path)
    else:
        DRAWS.save(path)
    return path
