"""Where particles start: what a trained net, a fresh one, a state_dict and draws lead to."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.potentials.starts import starting_points

N = 40


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 3, generator=generator)
    return x, x.sum(1, keepdim=True).sin()


def net(seed=0, width=16):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def trained(optimiser=torch.optim.Adam, steps=60, rate=1e-2, **options):
    x, y = data()
    made = net()
    steps_of = optimiser(made.parameters(), lr=rate, **options)
    for _ in range(steps):
        steps_of.zero_grad()
        (made(x) - y).square().mean().backward()
        steps_of.step()
    return made


def posterior(module, likelihood=None):
    return pvi.from_module(module, likelihood or pvi.Gaussian(0.3), pvi.Normal(1.0), num_data=N)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("seed", range(10))
def test_a_fresh_net_gives_every_particle_an_initialisation_of_its_own(seed):
    potential = posterior(net(seed))
    points = starting_points(potential, 4, None, 0)
    assert potential.starts.default() == "fresh"
    assert torch.equal(points, starting_points(potential, 4, "fresh", 0))
    assert (points - flat(net(seed))).abs().mean() > 0.05


@pytest.mark.parametrize(
    "fresh",
    [
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)),
        nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 2)),
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        nn.LSTM(3, 4),
        nn.ConvTranspose2d(2, 3, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_fresh_layers_of_all_kinds_are_known_as_fresh(fresh):
    potential = pvi.from_module(
        fresh, pvi.Categorical(), pvi.Normal(1.0), num_data=N, batch_norm="batch"
    )
    assert potential.starts.default() == "fresh"


@pytest.mark.parametrize(
    "module",
    [
        trained(),
        trained(torch.optim.SGD, rate=0.1, steps=100),
        trained(torch.optim.SGD, rate=0.05, momentum=0.9, weight_decay=1e-3),
    ],
    ids=["adam", "sgd", "momentum"],
)
def test_a_trained_net_is_kept(module):
    potential = posterior(module)
    points = starting_points(potential, 5, None, 0)
    weights = flat(module)
    assert torch.equal(points[0], weights)
    assert not torch.equal(points[1], points[2])
    shift = points[1:] - weights
    for part, own in zip(
        shift.split(potential.layout.sizes, 1), weights.split(potential.layout.sizes), strict=True
    ):
        assert part.abs().max() < 0.05 * own.square().mean().sqrt()


def test_the_start_of_a_trained_net_keeps_its_fit():
    x, y = data()
    module = trained()
    potential = posterior(module)
    points = starting_points(potential, 8, None, 0)
    errors = (potential.outputs(points, pvi.typing.Batch((x,))) - y).square().mean((1, 2))
    own = (module(x) - y).square().mean()
    assert (errors < own + 0.01).all()


def test_a_net_set_by_hand_is_kept():
    module = net()
    nn.init.constant_(module[2].bias, 3.0)
    assert posterior(module).starts.default() == "jittered"


def test_sampling_goes_on_from_a_trained_net():
    module = trained()
    draws = pvi.sample(
        pvi.sgld(posterior(module)),
        data(),
        step_size=1e-12,
        num_particles=1,
        num_draws=1,
        progress=False,
    )
    assert (draws.particles[0, 0] - flat(module)).abs().max() < 1e-4


def test_a_learned_scale_starts_from_its_prior():
    module = trained()
    potential = posterior(module, pvi.Gaussian("learned"))
    points = starting_points(potential, 3, None, 0)
    assert torch.equal(points[0, :-1], flat(module))
    assert len(points[:, -1].unique()) == 3


def test_a_state_dict_is_where_all_particles_start():
    potential, other = posterior(net()), net(1)
    points = starting_points(potential, 3, other.state_dict(), 0)
    assert torch.equal(points[0], flat(other))
    assert 0 < (points[1] - flat(other)).abs().max() < 0.05
    assert starting_points(potential, None, other.state_dict(), 0).shape == (1, len(flat(other)))


def test_a_list_of_state_dicts_is_one_per_particle():
    potential, ensemble = posterior(net()), [net(seed) for seed in (1, 2, 3)]
    points = starting_points(potential, None, [each.state_dict() for each in ensemble], 0)
    assert torch.equal(points, torch.stack([flat(each) for each in ensemble]))


def test_a_state_dict_may_hold_the_likelihoods_parameters():
    potential = posterior(net(), pvi.Gaussian("learned"))
    given = net(1).state_dict() | {"likelihood.log_scale": torch.tensor([-2.0])}
    assert starting_points(potential, 2, given, 0)[:, -1].tolist() == [-2.0, -2.0]


def test_a_state_dict_with_other_running_statistics_is_refused():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    module.train()(data()[0])
    potential = posterior(module)
    later = copy.deepcopy(module)
    later(data()[0] + 1)
    with pytest.raises(ValueError, match=r"\['1.running_mean', .* are not sampled and differ"):
        starting_points(potential, 2, later.state_dict(), 0)
    assert starting_points(potential, 2, module.state_dict(), 0).shape[0] == 2


def test_draws_are_gone_on_with_from_their_last_states():
    potential = posterior(net())
    draws = pvi.sample(
        pvi.sgld(potential), data(), step_size=1e-4, num_particles=3, num_draws=5, progress=False
    )
    assert torch.equal(starting_points(potential, None, draws, 0), draws.particles[:, -1])
    assert torch.equal(starting_points(potential, 3, draws, 0), draws.particles[:, -1])
    many = starting_points(potential, 10, draws, 0)
    rows = draws.particles.reshape(15, -1)
    found = [(rows == point).all(1).nonzero().item() for point in many]
    assert len(set(found)) == 10
    assert torch.equal(many, starting_points(potential, 10, draws, 0))
    again = pvi.sample(
        pvi.sgld(potential), data(), step_size=1e-12, initial=draws, num_draws=1, progress=False
    )
    assert (again.particles[:, 0] - draws.particles[:, -1]).abs().max() < 1e-4


def scaled(y=None):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=torch.zeros(2))


def test_values_of_pyro_sites_are_given_on_their_supports():
    potential = pvi.from_pyro(scaled)
    values = {"scale": torch.tensor(0.5), "mean": torch.tensor([1.0, 2.0])}
    points = starting_points(potential, 3, values, 0)
    found = potential.constrain(points[:1])
    torch.testing.assert_close(found["scale"], torch.tensor([0.5]))
    torch.testing.assert_close(found["mean"], torch.tensor([[1.0, 2.0]]))
    assert (points[1:] - points[0]).abs().max() < 0.1
    with pytest.raises(ValueError, match=r"missing \['mean'\]"):
        starting_points(potential, 1, {"scale": torch.tensor(1.0)}, 0)
    with pytest.raises(ValueError, match="'scale' is outside"):
        starting_points(potential, 1, values | {"scale": torch.tensor(-1.0)}, 0)


def test_draws_of_pyro_sites_are_given_on_their_supports():
    potential = pvi.from_pyro(scaled)
    scales = [0.5, 2.0, 0.1]
    values = [{"scale": torch.tensor(s), "mean": torch.tensor([s, -s])} for s in scales]
    found = pvi.Draws.from_state_dicts(potential, values, kind="independent").constrained()
    torch.testing.assert_close(found["scale"], torch.tensor([scales]))
    torch.testing.assert_close(found["mean"][0, :, 1], -torch.tensor(scales))
    with pytest.raises(ValueError, match=r"lacks \['mean'\], .* it has \['scale'\]\.$"):
        pvi.Draws.from_state_dicts(potential, [{"scale": torch.tensor(1.0)}])
    with pytest.raises(ValueError, match="'scale' is outside"):
        pvi.Draws.from_state_dicts(potential, [values[0] | {"scale": torch.tensor(-1.0)}])


POTENTIAL = posterior(net())
REFUSED = {
    "no number": (None, None, ValueError, "Give num_particles"),
    "unknown name": (2, "module", ValueError, "method must be one of .*'fresh'"),
    "a net": (2, net(), TypeError, "got Sequential"),
    "a flat tensor": (None, torch.zeros(81), ValueError, "unsqueeze"),
    "two numbers": (3, torch.zeros(2, 81), ValueError, "holds 2 particles but num_particles is 3"),
    "infinite": (None, torch.full((1, 81), torch.inf), ValueError, "must be finite"),
    "no state_dicts": (None, [], ValueError, "empty list"),
    "missing": (1, {"0.weight": torch.zeros(16, 3)}, ValueError, r"missing \['0.bias'"),
    "unknown": (1, net().state_dict() | {"x": torch.zeros(1)}, ValueError, r"unknown \['x'\]"),
    "wrong shape": (1, net(width=8).state_dict(), ValueError, r"shape \[16, 3\], got \[8, 3\]"),
    "other draws": (None, pvi.Draws(torch.zeros(2, 3, 5), {}), ValueError, "run without keep="),
    "too few draws": (9, pvi.Draws(torch.zeros(2, 3, 81), {}), ValueError, "holds 6 draws"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_starts_that_are_none(case):
    number, initial, error, match = REFUSED[case]
    with pytest.raises(error, match=match):
        starting_points(POTENTIAL, number, initial, 0)


def test_interacting_particles_never_start_at_one_point():
    zeros = {name: torch.zeros_like(value) for name, value in net().state_dict().items()}
    points = starting_points(posterior(net()), 3, zeros, 0)
    assert not points[0].any()
    assert (points[1] != points[2]).all() and points.abs().max() < 0.06
