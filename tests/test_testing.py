"""The checks of ``particlevi.testing`` find what is broken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import particlevi as pvi
from particlevi.samplers import Info, assemble, configurational_temperature, gaussian
from particlevi.testing import check_estimator, check_kernel, check_potential, check_sampler
from particlevi.typing import Gradient


def sampler_with(transition, **declared):
    def factory(target):
        return assemble("broken", target, transition, noise=gaussian, **declared)

    return factory


def sound(position, memory, gradient_at, noise, controls):
    g, potential = gradient_at(position)
    info = Info(potential, configurational_temperature(position, g))
    return position - controls["step_size"] * g + 0.01 * noise, memory, info


def in_place(position, memory, gradient_at, noise, controls):
    _, memory, info = sound(position, memory, gradient_at, noise, controls)
    position += noise
    return position.clone(), memory, info


def random(position, memory, gradient_at, noise, controls):
    moved, memory, info = sound(position, memory, gradient_at, noise, controls)
    return moved + 0.1 * torch.randn_like(moved), memory, info


def centred(position, memory, gradient_at, noise, controls):
    moved, memory, info = sound(position, memory, gradient_at, noise, controls)
    return moved - moved.mean(0), memory, info


def double(position, memory, gradient_at, noise, controls):
    moved, memory, info = sound(position, memory, gradient_at, noise, controls)
    return moved, memory, Info(*(value.double() for value in info))


def no_noise(position, memory, gradient_at, noise, controls):
    moved, memory, info = sound(position, memory, gradient_at, 0 * noise, controls)
    return 0 * moved, memory, info


def branching(position, memory, gradient_at, noise, controls):
    moved, memory, info = sound(position, memory, gradient_at, noise, controls)
    return moved if float(moved.sum()) > -1e9 else position, memory, info


class Other(NamedTuple):
    temperature: Tensor


def other_info(position, memory, gradient_at, noise, controls):
    moved, memory, info = sound(position, memory, gradient_at, noise, controls)
    return moved, memory, Other(info.potential)


def test_a_sound_sampler_passes():
    check_sampler(sampler_with(sound), 1e-3)


@pytest.mark.parametrize(
    ("transition", "message"),
    [
        (in_place, "a step changes its arguments"),
        (random, "a step uses torch's global generator"),
        (centred, "moves otherwise among others"),
        (double, "is torch.float64 where the potential is torch.float32"),
        (no_noise, "runs with different seeds agree"),
        (other_info, "first field is the potential"),
    ],
)
def test_broken_samplers_are_found(transition, message):
    with pytest.raises(AssertionError, match=message) as caught:
        check_sampler(sampler_with(transition), 1e-3, compile=False)
    assert "broken with minibatch on density" in caught.value.__notes__[0]


def test_a_step_that_does_not_compile_is_found():
    with pytest.raises(torch._dynamo.exc.UserError):
        check_sampler(sampler_with(branching), 1e-3)


def test_a_label_of_nothing_is_found():
    with pytest.raises(AssertionError, match="shown names"):
        check_sampler(sampler_with(sound, shown={"acceptance": "A"}), 1e-3, compile=False)


@dataclass(frozen=True, eq=False)
class Scaled:
    """The plain estimator with its gradient or shape spoilt."""

    inner: Any
    spoil: Any
    conservative: bool = True
    interacting: bool = False
    name: str = "scaled"
    gradients: int = 1

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, *arguments):
        return self.spoil(self.inner(*arguments))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: g._replace(gradient=1.01 * g.gradient), "is not that of the potential"),
        (lambda g: g._replace(gradient=g.gradient[:, :2]), "gradients .* are not"),
        (lambda g: g._replace(gradient=g.gradient - g.gradient.mean(0)), "is another among others"),
        (lambda g: g._replace(potential=g.potential.sum()), "are not \\[P\\]"),
        (lambda g: Gradient(g.gradient.float(), g.potential), "an estimate is torch.float32"),
        (tuple, "is no Gradient"),
    ],
)
def test_broken_estimators_are_found(spoil, message):
    with pytest.raises(AssertionError, match=message):
        check_estimator(lambda problem: Scaled(pvi.gradients.minibatch(problem.potential), spoil))


X = torch.linspace(-1, 1, 6, dtype=torch.float64)


def likelihood(theta, x):
    return -0.5 * (x - theta[..., :1]).square()


def potential_of(log_likelihood=likelihood, num_data=6):
    return pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        log_likelihood,
        num_params=2,
        num_data=num_data,
        dtype=torch.float64,
    )


POINTS = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_sound_potentials_pass():
    check_potential(potential_of(), X, particles=POINTS)
    check_potential(potential_of(), X, particles=POINTS[:1])


def test_broken_potentials_are_found():
    plain = potential_of()
    spoilt = replace(plain, log_prior_fn=lambda theta: -theta.square().sum() + 0 * theta[:, 0])
    with pytest.raises(AssertionError, match="depends on the others"):
        check_potential(spoilt, X, particles=POINTS)
    with pytest.raises(AssertionError, match="are not \\[P, 2\\]"):
        check_potential(plain, X, particles=POINTS[0])
    mean = potential_of(lambda theta, x: likelihood(theta, x) + x.shape[-1] * theta[..., :1])
    with pytest.raises(AssertionError, match="on a minibatch is not unbiased"):
        check_potential(mean, X, particles=POINTS)
    detached = potential_of(lambda theta, x: likelihood(theta, x) + theta.detach()[1] ** 2)
    with pytest.raises(AssertionError, match="the gradient is wrong"):
        check_potential(detached, X, particles=POINTS)


def test_broken_kernels_are_found():
    class Halved(pvi.kernels.rbf):
        def direction(self, x, scores, width=None):
            toward, away = super().direction(x, scores, width)
            return toward, 0.5 * away

    class Negative(pvi.kernels.rbf):
        def __call__(self, x, y, width=None):
            return -super().__call__(x, y, width)

    with pytest.raises(AssertionError, match="the repulsion is wrong"):
        check_kernel(Halved(2.0))
    with pytest.raises(AssertionError, match="not positive definite"):
        check_kernel(Negative(2.0))
