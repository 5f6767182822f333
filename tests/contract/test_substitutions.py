"""A run is not gone on with by something else: 25 substitutions, each of one ingredient."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import particlevi as pvi
from particlevi.storage import checkpoint as files
from tests.contract.test_resume import case, settings_of
from tests.registry import SAMPLERS

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(24, 3, generator=GENERATOR)
Y = X.sum(1, keepdim=True).tanh() + 0.1 * torch.randn(24, 1, generator=GENERATOR)
ORDER = torch.randperm(24, generator=GENERATOR).tolist()


class Net(nn.Module):
    """A net whose activation is a function, so that its name shows in no description."""

    def __init__(self, activation: Any):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.activation(self.first(x)))


def net(activation: Any = torch.tanh, scale: float = 0.5, prior: float = 1.0) -> Any:
    """The net as a potential."""
    torch.manual_seed(1)
    return pvi.from_module(Net(activation), pvi.Gaussian(scale), pvi.Normal(prior), num_data=24)


def density(function: Any) -> Any:
    """A density without data."""
    return pvi.from_log_density(function, num_params=3)


def normal(scale: float) -> Any:
    """The logarithm of a normal density, its scale in a closure."""
    return lambda theta: -0.5 * (theta**2).sum() / scale


def regression(power: float = 2.0, width: float = 1.0) -> Any:
    """Regression with functions of the user's own for likelihood and prior."""
    return pvi.from_log_likelihood(
        lambda theta: -0.5 * (theta / width).square().sum(),
        lambda theta, batch: -((batch[1][:, 0] - batch[0] @ theta).abs() ** power),
        num_params=3,
        num_data=24,
    )


def linear(slope: float) -> Any:
    """A schedule of the user's own."""

    def schedule(step: int) -> float:
        return 0.01 / (1 + slope * step)

    return schedule


def stepped(first: float) -> Any:
    """A schedule that is another one at its first step only."""
    return lambda step: first if step == 0 else 0.01


def loader(**options: Any) -> DataLoader[Any]:
    """The data in batches."""
    return DataLoader(TensorDataset(X, Y), batch_size=8, **options)


def centred(at: float) -> Any:
    """A control variate around a point."""
    potential = regression()
    return pvi.sgld(pvi.control_variate(potential, (X, Y), torch.full((3,), at)))


def structured(groups: list[int]) -> Any:
    """Groups of parameters by number."""
    return pvi.sgld(pvi.structured(net(), torch.tensor(groups)))


def noisy(last: float) -> Any:
    """Compensation of a noise that is given per parameter."""
    return pvi.sghmc(regression(), gradient_noise=torch.tensor([0.1, 0.2, last]))


DATA = {"data": (X, Y), "batch_size": 8}
FULL = {"data": (X, Y)}
Run = tuple[Any, dict[str, Any]]


def svgd(**options: Any) -> Run:
    """SVGD on a density."""
    return pvi.svgd(density(normal(1.0)), **options), {"num_particles": 5}


SUBSTITUTIONS: dict[str, tuple[Any, Any]] = {
    "density": (
        lambda: (pvi.sgld(density(normal(1.0))), {}),
        lambda: (pvi.sgld(density(lambda theta: -theta.abs().sum())), {}),
    ),
    "constant in a closure": (
        lambda: (pvi.sgld(density(normal(1.0))), {}),
        lambda: (pvi.sgld(density(normal(1.01))), {}),
    ),
    "activation function": (
        lambda: (pvi.sgld(net()), DATA),
        lambda: (pvi.sgld(net(torch.relu)), DATA),
    ),
    "similar activation function": (
        lambda: (pvi.sgld(net(nn.functional.gelu)), DATA),
        lambda: (pvi.sgld(net(partial(nn.functional.gelu, approximate="tanh"))), DATA),
    ),
    "scale of the likelihood": (
        lambda: (pvi.sgld(net()), DATA),
        lambda: (pvi.sgld(net(scale=0.51)), DATA),
    ),
    "prior of a module": (
        lambda: (pvi.sgld(net()), DATA),
        lambda: (pvi.sgld(net(prior=2.0)), DATA),
    ),
    "likelihood function": (
        lambda: (pvi.sgld(regression()), DATA),
        lambda: (pvi.sgld(regression(power=1.5)), DATA),
    ),
    "prior function": (
        lambda: (pvi.sgld(regression()), DATA),
        lambda: (pvi.sgld(regression(width=2.0)), DATA),
    ),
    "data": (
        lambda: (pvi.sgld(regression()), DATA),
        lambda: (pvi.sgld(regression()), DATA | {"data": (X, Y + 1e-6)}),
    ),
    "order of the data": (
        lambda: (pvi.sgld(regression()), DATA),
        lambda: (pvi.sgld(regression()), DATA | {"data": (X.flip(0), Y.flip(0))}),
    ),
    "order of a loader": (
        lambda: (pvi.sgld(regression()), {"data": loader(sampler=list(range(24)))}),
        lambda: (pvi.sgld(regression()), {"data": loader(sampler=ORDER)}),
    ),
    "shuffling of a loader": (
        lambda: (pvi.sgld(regression()), {"data": loader()}),
        lambda: (pvi.sgld(regression()), {"data": loader(shuffle=True)}),
    ),
    "centre of a control variate": (
        lambda: (centred(0.5), DATA),
        lambda: (centred(0.6), DATA),
    ),
    "schedule of the step size": (
        lambda: (pvi.sgld(regression()), DATA | {"step_size": linear(0.1)}),
        lambda: (pvi.sgld(regression()), DATA | {"step_size": linear(0.2)}),
    ),
    "first step of a schedule": (
        lambda: (pvi.sgld(regression()), DATA | {"step_size": stepped(0.01)}),
        lambda: (pvi.sgld(regression()), DATA | {"step_size": stepped(0.02)}),
    ),
    "schedule of the temperature": (
        lambda: (pvi.sgld(regression(), temperature=linear(0.1)), DATA),
        lambda: (pvi.sgld(regression(), temperature=linear(0.2)), DATA),
    ),
    "noise of the gradient": (
        lambda: (noisy(0.3), DATA),
        lambda: (noisy(0.4), DATA),
    ),
    "friction": (
        lambda: (pvi.sghmc(regression()), DATA),
        lambda: (pvi.sghmc(regression(), friction=1.1), DATA),
    ),
    "integrator": (
        lambda: (pvi.sghmc(regression()), DATA),
        lambda: (pvi.sghmc(regression(), integrator="symplectic"), DATA),
    ),
    "number of leapfrog steps": (
        lambda: (pvi.hmc(regression(), num_leapfrog=3), FULL),
        lambda: (pvi.hmc(regression(), num_leapfrog=4), FULL),
    ),
    "kernel": (
        lambda: svgd(kernel=pvi.kernels.rbf(1.0)),
        lambda: svgd(kernel=pvi.kernels.imq()),
    ),
    "bandwidth": (
        lambda: svgd(kernel=pvi.kernels.rbf(1.0)),
        lambda: svgd(kernel=pvi.kernels.rbf(1.1)),
    ),
    "annealing": (
        lambda: svgd(annealing=linear(0.1)),
        lambda: svgd(annealing=linear(0.2)),
    ),
    "arguments of an optimizer": (
        lambda: (pvi.optimizer(regression(), make=partial(torch.optim.AdamW, eps=1e-2)), DATA),
        lambda: (pvi.optimizer(regression(), make=partial(torch.optim.AdamW, eps=1e-1)), DATA),
    ),
    "groups of parameters": (
        lambda: (structured([0] * 12 + [1] * 9), DATA),
        lambda: (structured([0] * 13 + [1] * 8), DATA),
    ),
}


def start(made: Any, folder: Any) -> dict[str, Any]:
    """Save a run that has ended; what it was started with."""
    sampler, options = made()
    given = {"step_size": 0.01, "num_particles": 2, "num_draws": 6, "progress": False, **options}
    pvi.sample(sampler, **given, checkpoint=folder)
    return given


def go_on(made: Any, folder: Any) -> None:
    """Resume it by what ``made`` gives."""
    sampler, options = made()
    known = {name: options[name] for name in ("data", "step_size") if name in options}
    pvi.resume(folder, sampler, progress=False, **known)


@pytest.mark.parametrize("name", SUBSTITUTIONS)
def test_a_substitute_is_refused_and_the_same_is_not(name, tmp_path):
    made, substitute = SUBSTITUTIONS[name]
    start(made, tmp_path)
    with pytest.raises(ValueError, match="not resumed"):
        go_on(substitute, tmp_path)
    go_on(made, tmp_path)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_probed(name, tmp_path):
    made, data, step_size = case(name, "minibatch", "function")
    batching = "subset" if made.requires.independent_data else "epoch"
    options = settings_of("full" if made.requires.all_data else batching)
    pvi.sample(made, data, **options, step_size=step_size, checkpoint=tmp_path)
    _, known = files.read(tmp_path / "probe.safetensors")
    assert None not in known["values"].values()


def test_what_differs_is_named(tmp_path):
    made, substitute = SUBSTITUTIONS["activation function"]
    start(made, tmp_path)
    with pytest.raises(ValueError, match="the potential, the gradient, a step of the sampler"):
        go_on(substitute, tmp_path)


def test_a_schedule_that_differs_at_its_first_step_is_named(tmp_path):
    made, substitute = SUBSTITUTIONS["first step of a schedule"]
    start(made, tmp_path)
    with pytest.raises(ValueError, match="the schedule of step_size"):
        go_on(substitute, tmp_path)


def test_probing_leaves_the_draws_as_they_are(tmp_path):
    sampler, options = SUBSTITUTIONS["shuffling of a loader"][1]()
    given = {"step_size": 0.01, "num_particles": 2, "num_draws": 6, "progress": False, **options}
    plain = pvi.sample(sampler, **given)
    saved = pvi.sample(sampler, **given, checkpoint=tmp_path)
    assert torch.equal(plain.particles, saved.particles)


def test_a_difference_far_from_the_start_is_not_seen(tmp_path):
    """The limit of probing: functions that agree near the start are taken for one."""
    start(SUBSTITUTIONS["density"][0], tmp_path)
    walled = density(lambda theta: normal(1.0)(theta) - (theta.abs() - 50).clamp(min=0).sum())
    pvi.resume(tmp_path, pvi.sgld(walled), progress=False)


@pytest.mark.parametrize(("relative", "same"), [(1e-11, True), (1e-8, False)])
def test_values_may_differ_by_rounding_and_no_more(relative, same, tmp_path):
    def sampler(scale):
        normal = pvi.from_log_density(
            lambda theta: -0.5 * (theta**2).sum() / scale, num_params=3, dtype=torch.float64
        )
        return pvi.sgld(normal)

    options = {"step_size": 0.1, "num_particles": 2, "num_draws": 4, "progress": False}
    pvi.sample(sampler(1.0), checkpoint=tmp_path, **options)
    if same:
        assert pvi.resume(tmp_path, sampler(1 + relative), progress=False).particles.shape[1] == 4
    else:
        with pytest.raises(ValueError, match="not what they were: the potential"):
            pvi.resume(tmp_path, sampler(1 + relative), progress=False)


def test_schedules_are_compared_all_over_the_run_and_not_beyond(tmp_path):
    """Many steps apart from the ends: at least one between a tenth and half of the run."""
    num_steps, asked = 200, set()

    def step_size(step):
        asked.add(step)
        return 0.1

    target = density(normal(1.0))
    options = {"num_particles": 2, "num_draws": num_steps, "progress": False}
    pvi.sample(pvi.sgld(target), step_size=step_size, checkpoint=tmp_path, **options)
    asked.clear()
    pvi.resume(tmp_path, pvi.sgld(target), step_size=step_size, progress=False)
    assert max(asked) < num_steps
    assert any(0.1 * num_steps < step < 0.5 * num_steps for step in asked)
