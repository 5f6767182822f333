"""The posterior of a module against densities written by hand, in float64."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from scipy import stats
from torch import nn

import particlevi as pvi
from particlevi.potentials.layout import Layout
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

F64 = torch.float64
N, B, P = 30, 6, 4


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def linear(outputs=1):
    return nn.Linear(3, outputs).double()


def weights_of(particles, outputs=1):
    """Weight ``[P, outputs, 3]`` and bias ``[P, outputs]`` of a linear module's particles."""
    return particles[:, : 3 * outputs].view(-1, outputs, 3), particles[:, 3 * outputs : 4 * outputs]


def outputs_of(particles, x, outputs=1):
    weight, bias = weights_of(particles, outputs)
    return torch.stack([x @ w.T + b for w, b in zip(weight, bias, strict=True)])


LIKELIHOODS = {
    "gaussian": (
        pvi.Gaussian(scale=0.7),
        rand(B, 2, seed=1),
        lambda f, y: stats.norm.logpdf(y, f, 0.7).sum(-1),
    ),
    "gaussian_scales": (
        pvi.Gaussian(scale=(0.7, 2.0)),
        rand(B, 2, seed=1),
        lambda f, y: stats.norm.logpdf(y, f, [0.7, 2.0]).sum(-1),
    ),
    "student": (
        pvi.StudentT(df=3.0, scale=0.5),
        rand(B, 2, seed=1),
        lambda f, y: stats.t.logpdf(y, 3.0, f, 0.5).sum(-1),
    ),
    "bernoulli": (
        pvi.Bernoulli(),
        (rand(B, 2, seed=1) > 0).double(),
        lambda f, y: stats.bernoulli.logpmf(y, 1 / (1 + (-f).exp())).sum(-1),
    ),
    "categorical": (
        pvi.Categorical(),
        torch.tensor([0, 1, 1, 0, 1, 0]),
        lambda f, y: torch.stack([row.log_softmax(-1)[range(B), y] for row in f]),
    ),
    "poisson": (
        pvi.Poisson(),
        torch.tensor([[0, 1], [5, 2], [1, 1], [0, 0], [3, 9], [2, 2]]),
        lambda f, y: stats.poisson.logpmf(y, f.exp()).sum(-1),
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_log_likelihood(name):
    likelihood, y, by_hand = LIKELIHOODS[name]
    potential = pvi.from_module(linear(2), likelihood, pvi.Normal(1.0), num_data=N)
    theta, x = rand(P, 8, seed=2), rand(B, 3, seed=3)
    found = potential.log_likelihood(theta, Batch((x, y)))
    expected = torch.as_tensor(by_hand(outputs_of(theta, x, 2), y))
    assert found.shape == (P, B)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    own = Batch((x.expand(P, B, 3), y.expand(P, *y.shape)), per_particle=True)
    torch.testing.assert_close(potential.log_likelihood(theta, own), found, rtol=1e-12, atol=1e-12)


PRIORS = {
    "normal": (pvi.Normal(0.3), lambda w, b: _normal(w, 0.3) + _normal(b, 0.3)),
    "laplace": (pvi.Laplace(0.3), lambda w, b: _laplace(w, 0.3) + _laplace(b, 0.3)),
    "student": (
        pvi.StudentT(df=4.0, scale=0.3),
        lambda w, b: _student(w, 4.0, 0.3) + _student(b, 4.0, 0.3),
    ),
    "scales": (
        pvi.Normal({"weight": 0.3, "*": 2.0}),
        lambda w, b: _normal(w, 0.3) + _normal(b, 2.0),
    ),
    "fan_in": (
        pvi.Normal(0.6, fan_in=True),
        lambda w, b: _normal(w, 0.6 / math.sqrt(3)) + _normal(b, 0.6),
    ),
    "laplace_fan_in": (
        pvi.Laplace({"*": 0.6}, fan_in=True),
        lambda w, b: _laplace(w, 0.6 / math.sqrt(3)) + _laplace(b, 0.6),
    ),
    "by_pattern": (
        {"w*": pvi.Laplace(0.3), "*": pvi.Normal(2.0)},
        lambda w, b: _laplace(w, 0.3) + _normal(b, 2.0),
    ),
}


def _normal(value, scale):
    return stats.norm.logpdf(value, 0, scale).reshape(len(value), -1).sum(1)


def _laplace(value, scale):
    return stats.laplace.logpdf(value, 0, scale).reshape(len(value), -1).sum(1)


def _student(value, df, scale):
    return stats.t.logpdf(value, df, 0, scale).reshape(len(value), -1).sum(1)


@pytest.mark.parametrize("name", PRIORS)
def test_log_prior(name):
    prior, by_hand = PRIORS[name]
    potential = pvi.from_module(linear(2), pvi.Gaussian(1.0), prior, num_data=N)
    theta = rand(P, 8, seed=4)
    expected = torch.as_tensor(by_hand(*weights_of(theta, 2)))
    torch.testing.assert_close(potential.log_prior(theta), expected, rtol=1e-10, atol=1e-10)


def test_the_potential_scales_the_likelihood_and_not_the_prior():
    potential = pvi.from_module(linear(), pvi.Gaussian(0.5), pvi.Normal(0.8), num_data=N)
    theta, x, y = rand(P, 4), rand(B, 3, seed=1), rand(B, 1, seed=2)
    likelihood = stats.norm.logpdf(y, outputs_of(theta, x), 0.5).sum((1, 2))
    expected = -_normal(theta, 0.8) - N / B * likelihood
    found = potential(theta, Batch((x, y)))
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_learned_scale_is_a_parameter_with_a_lognormal_prior(outputs):
    likelihood = pvi.Gaussian(scale="learned", num_outputs=outputs)
    potential = pvi.from_module(linear(outputs), likelihood, pvi.Normal(1.0), num_data=N)
    size = 4 * outputs
    assert potential.num_params == size + outputs
    theta, x, y = rand(P, size + outputs), rand(B, 3, seed=1), rand(B, outputs, seed=2)
    log_scale = theta[:, size:]
    scale = log_scale.exp()
    f = outputs_of(theta, x, outputs)
    expected = stats.norm.logpdf(y, f, scale.unsqueeze(1)).sum(-1)
    found = potential.log_likelihood(theta, Batch((x, y)))
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-10, atol=1e-10)
    prior = torch.as_tensor(_normal(theta[:, :size], 1.0) + _normal(log_scale, 1.0))
    torch.testing.assert_close(potential.log_prior(theta), prior, rtol=1e-10, atol=1e-10)
    named = potential.constrain(theta)
    torch.testing.assert_close(named["likelihood.scale"], scale)
    assert "likelihood.log_scale" not in named


class Image(nn.Module):
    """``[B, 3]`` to images ``[B, 2, 2]``, or with ``flat`` to ``[B]``."""

    def __init__(self, flat=False):
        super().__init__()
        self.layer = nn.Linear(3, 1 if flat else 4).double()
        self.flat = flat

    def forward(self, x):
        return self.layer(x)[:, 0] if self.flat else self.layer(x).view(-1, 2, 2)


@pytest.mark.parametrize("scale", [0.5, "learned"])
@pytest.mark.parametrize("flat", [True, False])
def test_outputs_of_any_shape_have_one_likelihood_per_datum(scale, flat):
    potential = pvi.from_module(Image(flat), pvi.Gaussian(scale), pvi.Normal(1.0), num_data=N)
    theta, x = rand(P, potential.num_params), rand(B, 3, seed=1)
    y = rand(B, seed=2) if flat else rand(B, 2, 2, seed=2)
    scales = theta[:, -1:].exp() if scale == "learned" else torch.full((P, 1), 0.5, dtype=F64)
    f = potential.outputs(theta, Batch((x,))).reshape(P, B, -1)
    expected = stats.norm.logpdf(y.reshape(B, -1), f, scales.unsqueeze(1)).sum(-1)
    found = potential.log_likelihood(theta, Batch((x, y)))
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-10, atol=1e-10)


def test_a_target_without_its_last_dimension_is_not_broadcast():
    """The trap of ``[B, 1] - [B] = [B, B]``."""
    potential = pvi.from_module(linear(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    flat = pvi.from_module(Image(True), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    theta, x, y = rand(P, 4), rand(B, 3, seed=1), rand(B, 1, seed=2)
    expected = potential.log_likelihood(theta, Batch((x, y)))
    for model in (potential, flat):
        for target in (y, y[:, 0]):
            found = model.log_likelihood(theta, Batch((x, target)))
            assert torch.equal(found, expected)
            own = Batch((x.expand(P, B, 3), target.expand(P, *target.shape)), True)
            torch.testing.assert_close(model.log_likelihood(theta, own), expected)


def test_per_particle_batches_are_each_particles_own():
    potential = pvi.from_module(linear(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    theta, x, y = rand(P, 4), rand(P, B, 3, seed=1), rand(P, B, 1, seed=2)
    found = potential(theta, Batch((x, y), per_particle=True))
    for i in range(P):
        alone = potential(theta[i : i + 1], Batch((x[i], y[i])))
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-12, atol=1e-12)


class Tied(nn.Module):
    """A linear map that is used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False).double()
        self.second = nn.Linear(3, 3).double()
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())


def test_tied_parameters_appear_once_and_act_twice():
    potential = pvi.from_module(Tied(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    assert dict(potential.layout.shapes) == {"first.weight": (3, 3), "second.bias": (3,)}
    theta, x = rand(P, 12), rand(B, 3, seed=1)
    weight, bias = theta[:, :9].view(P, 3, 3), theta[:, 9:]
    hidden = torch.einsum("pij,bj->pbi", weight, x).tanh()
    expected = torch.einsum("pij,pbj->pbi", weight, hidden) + bias.unsqueeze(1)
    torch.testing.assert_close(potential.outputs(theta, Batch((x,))), expected)
    assert potential.init(2).shape == (2, 12)


def test_frozen_parameters_stay_and_the_module_is_copied():
    net = nn.Sequential(linear(3), nn.Tanh(), linear())
    net[0].requires_grad_(False)
    potential = pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    assert list(potential.layout.shapes) == ["2.weight", "2.bias"]
    x, theta = rand(B, 3), rand(P, 4)
    hidden = net[0](x).tanh().detach()
    expected = outputs_of(theta, hidden)
    with torch.no_grad():
        net[0].weight.zero_()
    torch.testing.assert_close(potential.outputs(theta, Batch((x,))), expected)
    current = potential.init(2, method="current")
    with torch.no_grad():
        net[2].weight.zero_()
    assert torch.equal(potential.init(2, method="current"), current)


def test_sample_names_what_is_sampled_and_freezes_the_rest():
    """As if all else had been frozen by hand, also where everything was frozen before."""
    net = nn.Sequential(linear(3), nn.Tanh(), linear())
    arguments = (pvi.Gaussian(0.5), pvi.Normal(1.0))
    whole = copy.deepcopy(net).requires_grad_(False)
    net[0].requires_grad_(False)
    by_hand = pvi.from_module(net, *arguments, num_data=N)
    named = pvi.from_module(whole, *arguments, num_data=N, sample="2.*")
    assert named.fingerprint == by_hand.fingerprint
    batch, theta = Batch((rand(B, 3), rand(B, 1))), rand(P, 4)
    assert torch.equal(named(theta, batch), by_hand(theta, batch))
    assert not whole[2].weight.requires_grad
    with pytest.raises(ValueError, match=r"\['head\.\*'\] match none of the parameters"):
        pvi.from_module(whole, *arguments, num_data=N, sample=["2.*", "head.*"])


class Two(nn.Module):
    """Two inputs, by position or by name."""

    def __init__(self):
        super().__init__()
        self.layer = linear()

    def forward(self, left, right):
        return self.layer(left * right)


def test_several_inputs_by_position_and_by_name():
    potential = pvi.from_module(Two(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    plain = pvi.from_module(linear(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    theta = rand(P, 4)
    left, right, y = rand(B, 3, seed=1), rand(B, 3, seed=2), rand(B, 1, seed=3)
    expected = plain(theta, Batch((left * right, y)))
    torch.testing.assert_close(potential(theta, Batch((left, right, y))), expected)
    named = Batch(({"right": right, "left": left}, y))
    torch.testing.assert_close(potential(theta, named), expected)
    data = ({"right": rand(N, 3, seed=4), "left": rand(N, 3, seed=5)}, rand(N, 1, seed=6))
    options = {"num_particles": 2, "num_draws": 2, "step_size": 1e-4, "progress": False}
    draws = pvi.sample(pvi.sgld(potential), data, batch_size=4, **options)
    again = pvi.sample(
        pvi.sgld(potential), (data[0]["left"], data[0]["right"], data[1]), batch_size=4, **options
    )
    assert torch.equal(draws.particles, again.particles)


def test_dropout_is_an_explicit_choice():
    net = nn.Sequential(linear(8), nn.Dropout(0.5), nn.Linear(8, 1).double())
    arguments = (net, pvi.Gaussian(0.5), pvi.Normal(1.0), N)
    with pytest.raises(ValueError, match=r"dropout in \['1'\].*dropout='off'.*dropout='sample'"):
        pvi.from_module(*arguments)
    off = pvi.from_module(*arguments, dropout="off")
    x = rand(B, 3)
    theta = off.init(1, method="current").repeat(P, 1)
    expected = net.eval()(x).expand(P, B, 1)
    torch.testing.assert_close(off.outputs(theta, Batch((x,))), expected)
    masked = pvi.from_module(*arguments, dropout="sample")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = masked.outputs(theta, Batch((x,)))
        second = masked.outputs(theta, Batch((x,)))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    quiet = pvi.from_module(linear(), pvi.Gaussian(0.5), pvi.Normal(1.0), N, dropout="off")
    assert quiet.num_params == 4


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_batch_norm_rules(norm):
    layer = norm(5, affine=True, track_running_stats=True)
    net = nn.Sequential(
        nn.Linear(3, 5), nn.Unflatten(1, (5, 1)), layer, nn.Flatten(), nn.Linear(5, 1)
    )
    net = net.double()
    if norm is nn.InstanceNorm1d:
        net[1] = nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Upsample(scale_factor=2, mode="nearest"))
        net[4] = nn.Linear(10, 1).double()
    arguments = (net, pvi.Gaussian(0.5), pvi.Normal(1.0), N)
    with pytest.raises(ValueError, match=r"'2' has no running statistics.*batch_norm='batch'"):
        pvi.from_module(*arguments)
    x = 2 + 3 * rand(B, 3)
    with torch.no_grad():
        net.train()(x)
    frozen = pvi.from_module(*arguments)
    theta = frozen.init(1, method="current")
    whole = frozen.outputs(theta, Batch((x,)))
    torch.testing.assert_close(whole[0], net.eval()(x).detach())
    torch.testing.assert_close(frozen.outputs(theta, Batch((x[:2],))), whole[:, :2])
    layer.running_mean.add_(1)
    assert frozen.fingerprint != pvi.from_module(*arguments).fingerprint
    batch = pvi.from_module(*arguments, batch_norm="batch")
    found = batch.outputs(theta, Batch((x,)))
    torch.testing.assert_close(found[0], net.train()(x).detach())


def test_a_conv_net():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1),
        nn.GroupNorm(1, 2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).double()
    potential = pvi.from_module(net, pvi.Categorical(), pvi.Normal(1.0, fan_in=True), num_data=N)
    x, y = rand(B, 1, 4, 4), torch.arange(B) % 3
    theta = potential.init(P)
    found = potential.log_likelihood(theta, Batch((x, y)))
    for i in range(P):
        weights = {name: value[i] for name, value in potential.unravel(theta).items()}
        logits = torch.func.functional_call(net, weights, (x,))
        torch.testing.assert_close(found[i], logits.log_softmax(-1)[range(B), y])


class Recurrent(nn.Module):
    """An LSTM, which vmap cannot do."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def test_a_module_that_vmap_cannot_do_is_looped_over_with_one_warning():
    net = Recurrent().double()
    potential = pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    x, y, theta = rand(N, 5, 3), rand(N, 1, seed=1), potential.init(P)
    with pytest.warns(UserWarning, match="Recurrent cannot be vectorised.*The reason: ") as caught:
        found = potential.outputs(theta, Batch((x,)))
        potential.outputs(theta, Batch((x,)))
    assert len(caught) == 1
    for i in range(P):
        weights = {name: value[i] for name, value in potential.unravel(theta).items()}
        torch.testing.assert_close(found[i], torch.func.functional_call(net, weights, (x,)))
    draws = pvi.sample(
        pvi.sghmc(potential),
        (x, y),
        batch_size=5,
        num_particles=2,
        num_draws=3,
        step_size=1e-3,
        progress=False,
    )
    assert draws.particles.shape == (2, 3, potential.num_params)
    assert torch.isfinite(draws.particles).all()


def test_module_init_has_the_modules_law_independently_and_leaves_the_generator():
    net = nn.Sequential(nn.Linear(9, 50), nn.ReLU(), nn.Linear(50, 1))
    potential = pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    before = torch.get_rng_state()
    draws = potential.init(400, ParticleStreams(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws, potential.init(400, ParticleStreams(3)))
    assert not torch.equal(draws, potential.init(400, ParticleStreams(4)))
    weight = potential.unravel(draws)["0.weight"]
    assert weight.abs().max() <= 1 / 3
    flat = weight.reshape(400, -1).double()
    assert stats.kstest(3 * flat.flatten()[:20_000], stats.uniform(-1, 2).cdf).pvalue > 1e-6
    sums = flat.sum(1)
    assert abs(sums.var() / (450 / 27) - 1) < 5 * math.sqrt(2 / 400)
    assert len(draws[:, 0].unique()) > 390


def test_prior_init_has_the_priors_law():
    prior = pvi.Normal({"weight": 0.3, "*": 2.0})
    potential = pvi.from_module(linear(), pvi.Gaussian("learned"), prior, num_data=N)
    before = torch.get_rng_state()
    draws = potential.init(4000, ParticleStreams(0), "prior")
    assert torch.equal(torch.get_rng_state(), before)
    expected = torch.tensor([0.09, 0.09, 0.09, 4.0, 1.0], dtype=F64)
    assert ((draws.var(0) / expected - 1).abs() < 5 * math.sqrt(2 / 4000)).all()
    assert (draws.mean(0).abs() < 5 * (expected / 4000).sqrt()).all()
    correlation = draws.T.corrcoef()
    assert (correlation - torch.eye(5, dtype=F64)).abs().max() < 5 / math.sqrt(4000)


def test_current_init_is_the_module_as_it_is():
    net = linear()
    potential = pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    weights = torch.cat([net.weight.flatten(), net.bias]).detach()
    assert torch.equal(potential.init(3, method="current"), weights.repeat(3, 1))


class Raw(nn.Module):
    """A parameter of its own, without ``reset_parameters``."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=F64))

    def forward(self, x):
        return (x * self.scale).sum(-1, keepdim=True)


def test_a_module_without_initialisation_starts_where_it_is_and_says_so():
    with pytest.warns(UserWarning, match=r"\['scale'\].*start from the module's present weights"):
        potential = pvi.from_module(Raw(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)
    assert potential.starts.default() == "jittered"
    with pytest.raises(ValueError, match="method must be one of 'default', 'current', 'jittered'"):
        potential.init(2, method="fresh")


def test_the_dtype_of_the_module_is_that_of_the_particles():
    for dtype in (torch.float32, torch.float64):
        net = nn.Linear(3, 1).to(dtype)
        potential = pvi.from_module(net, pvi.Gaussian("learned"), pvi.Normal(1.0), num_data=N)
        assert potential.init(2).dtype == dtype
        assert potential.init(2, method="prior").dtype == dtype
        batch = Batch((torch.zeros(B, 3, dtype=dtype), torch.zeros(B, 1, dtype=dtype)))
        assert potential(potential.init(2), batch).dtype == dtype


LAYOUT = Layout({"a.weight": (2, 3), "a.bias": (2,), "b.weight": (1, 2), "scale": ()})


def test_ravel_and_unravel_are_inverse_and_share_memory():
    theta = rand(2, P, 11)
    named = LAYOUT.unravel(theta)
    assert [tuple(v.shape) for v in named.values()] == [
        (2, P, 2, 3),
        (2, P, 2),
        (2, P, 1, 2),
        (2, P),
    ]
    assert torch.equal(LAYOUT.ravel(named), theta)
    named["b.weight"].zero_()
    assert (theta[..., 8:10] == 0).all()
    with pytest.raises(KeyError, match=r"missing \['scale'\], unknown \['c'\]"):
        LAYOUT.ravel({**{n: v for n, v in named.items() if n != "scale"}, "c": theta})
    with pytest.raises(ValueError, match=r"a.bias must have shape \[..., 2\], got \[2, 4, 3\]"):
        LAYOUT.ravel({**named, "a.bias": rand(2, P, 3)})
    with pytest.raises(ValueError, match=r"\[..., 11\], got \[2, 4, 10\]"):
        LAYOUT.unravel(theta[..., :10])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("tensor", [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3]),
        ("layer", [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2]),
        ("neuron", [0, 0, 0, 1, 1, 1, 0, 1, 2, 2, 3]),
        ("parameter", list(range(11))),
        (torch.tensor([0, 1] * 5 + [2]), [0, 1] * 5 + [2]),
    ],
)
def test_groups(rule, expected):
    assert LAYOUT.groups(rule).tolist() == expected


def test_random_groups_are_balanced_and_seeded():
    groups = LAYOUT.groups(("random", 4), seed=1)
    assert torch.bincount(groups).tolist() == [3, 3, 3, 2]
    assert torch.equal(groups, LAYOUT.groups(("random", 4), seed=1))
    assert not torch.equal(groups, LAYOUT.groups(("random", 4), seed=2))


@pytest.mark.parametrize(
    ("rule", "error", "match"),
    [
        ("rows", ValueError, "'rows'"),
        (("random", 0), ValueError, "at least 1, got 0"),
        (("random", 12), ValueError, "12 random groups"),
        (torch.zeros(10, dtype=torch.long), ValueError, r"LongTensor \[11\].*\[10\]"),
        (torch.zeros(11), ValueError, "float32"),
        (torch.tensor([0, 2] * 5 + [2]), ValueError, "without gaps"),
        ([0] * 11, TypeError, "got list"),
    ],
)
def test_groups_that_are_none(rule, error, match):
    with pytest.raises(error, match=match):
        LAYOUT.groups(rule)


def test_coordinate_names():
    assert LAYOUT.coordinate_names()[4:] == [
        "a.weight[1,1]",
        "a.weight[1,2]",
        "a.bias[0]",
        "a.bias[1]",
        "b.weight[0,0]",
        "b.weight[0,1]",
        "scale",
    ]


@pytest.mark.parametrize("name", ["gaussian", "bernoulli", "categorical", "poisson"])
def test_predictions_are_the_mixture_over_draws(name):
    likelihood, y, _ = LIKELIHOODS[name]
    potential = pvi.from_module(linear(2), likelihood, pvi.Normal(1.0), num_data=B)
    data = (rand(B, 3, seed=3), y)
    draws = pvi.sample(
        pvi.sgld(potential), data, num_particles=3, num_draws=5, step_size=1e-3, progress=False
    )
    x = rand(7, 3, seed=5)
    f = outputs_of(draws.flat(), x, 2)
    found = draws.predict(x, batch_size=3, chunk_size=4)
    mean = {
        "gaussian": lambda: f,
        "bernoulli": f.sigmoid,
        "categorical": lambda: f.softmax(-1),
        "poisson": f.exp,
    }[name]()
    between = mean.var(0, unbiased=False)
    within = {
        "gaussian": lambda: torch.full_like(mean, 0.49),
        "bernoulli": lambda: mean * (1 - mean),
        "categorical": lambda: torch.zeros_like(mean),
        "poisson": lambda: mean,
    }[name]().mean(0)
    torch.testing.assert_close(found.mean, mean.mean(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.epistemic_std, between.sqrt(), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(found.std, (between + within).sqrt(), rtol=1e-7, atol=1e-10)
    assert (found.probs is not None) == (name in ("bernoulli", "categorical"))
    density = draws.log_predictive_density(data)
    each = potential.log_likelihood(draws.flat(), Batch(data))
    torch.testing.assert_close(density, each.logsumexp(0) - math.log(15))


def test_quantiles_of_a_gaussian_prediction():
    potential = pvi.from_module(linear(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=B)
    theta = torch.zeros(1, 4, dtype=F64)
    draws = pvi.Draws(particles=theta.expand(4, 2500, 4), stats={}, potential=potential)
    found = draws.predict(rand(2, 3), quantiles=(0.1, 0.5)).quantiles
    expected = torch.tensor(stats.norm.ppf([0.1, 0.5]) * 0.5).view(2, 1, 1)
    assert found.shape == (2, 2, 1)
    assert (found - expected).abs().max() < 5 * 0.5 * 1.71 / 100


def test_importing_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pvi.from_module(linear(), pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=N)


def test_neurons_of_layers_of_one_width_are_different_groups():
    layout = Layout({"a.weight": (2, 3), "a.bias": (2,), "b.weight": (2, 2), "b.bias": (2,)})
    expected = [0, 0, 0, 1, 1, 1, 0, 1, 2, 2, 3, 3, 2, 3]
    assert layout.groups("neuron").tolist() == expected
