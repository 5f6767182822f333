"""Times to leave a basin, against each other and against simulation."""

from __future__ import annotations

import math

import pytest
import torch

import particlevi as pvi
from particlevi.sgdvi import escape_time, eyring_kramers_time

F64 = torch.float64
POINTS = {"minimum": -1.0, "saddle": 0.0, "end": 1.0, "wall": -3.0}


def slope(x):
    return x**3 - x


def uneven(x):
    """More noise in the left basin than at the barrier."""
    return 1 + 0.5 * torch.tanh(-2 * x)


def test_even_noise_has_kramers_law():
    """``2 pi / sqrt(2) exp(1 / (4 T))``, and the exact time tends to it."""
    ratios = []
    for t in (0.08, 0.04, 0.02, 0.01):
        found = escape_time(slope, torch.ones_like, temperature=t, **POINTS)
        wanted = 2 * math.pi / math.sqrt(2) * math.exp(0.25 / t)
        assert found.kramers == pytest.approx(wanted, rel=1e-4)
        ratios.append(found.time / wanted - 1)
    assert ratios[0] > ratios[1] > ratios[2] > ratios[3] > 0
    assert ratios[2] / ratios[3] == pytest.approx(2, rel=0.1)


def test_uneven_noise_tends_to_its_law_too():
    ratios = []
    for t in (0.04, 0.02, 0.01):
        found = escape_time(slope, uneven, temperature=t, **POINTS)
        ratios.append(found.time / found.kramers - 1)
    assert abs(ratios[2]) < 0.05
    assert ratios[1] / ratios[2] == pytest.approx(2, rel=0.25)


def test_noise_that_grows_has_a_law_in_closed_form():
    """With ``C = c + d w^2``, ``2 V = w^2 / d - (c + d) / d^2 log(c + d w^2)``."""
    c, d, t = 0.3, 0.9, 0.01
    barrier = 0.5 * ((c + d) / d**2 * math.log((c + d) / c) - 1 / d)
    wanted = 2 * math.pi * math.sqrt(c / (c + d) / 2) * math.exp(barrier / t)
    found = escape_time(slope, lambda w: c + d * w**2, temperature=t, **POINTS)
    assert found.barrier == pytest.approx(barrier / t, rel=1e-6)
    assert found.kramers == pytest.approx(wanted, rel=1e-4)
    assert found.time == pytest.approx(wanted, rel=0.04)


def test_constant_noise_is_a_temperature():
    one = escape_time(slope, torch.ones_like, temperature=0.1, **POINTS)
    two = escape_time(slope, lambda x: 2 * torch.ones_like(x), temperature=0.05, **POINTS)
    assert one.time == pytest.approx(two.time, rel=1e-10)
    assert two.barrier == pytest.approx(two.barrier_loss, rel=1e-10)


def test_the_mirror_image_takes_as_long():
    left = escape_time(slope, uneven, temperature=0.1, **POINTS)
    mirrored = {name: -value for name, value in POINTS.items()}
    right = escape_time(slope, lambda x: uneven(-x), temperature=0.1, **mirrored)
    assert left.time == pytest.approx(right.time, rel=1e-9)


def test_in_one_dimension_both_laws_are_one():
    found = escape_time(slope, torch.ones_like, temperature=0.05, **POINTS)
    low, top = torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    wanted = eyring_kramers_time(low, top, 0.25, temperature=0.05)
    assert found.kramers == pytest.approx(wanted, rel=1e-4)


def test_the_law_does_not_depend_on_coordinates():
    """With ``y = R^-1 x`` the diffusion ``R R'`` is 1, and the Hessians are ``R'U R``."""
    r = torch.tensor([[1.0, 0.0], [0.7, 2.0]], dtype=F64)
    low = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64)
    top = torch.tensor([[-1.0, 0.2], [0.2, 3.0]], dtype=F64)
    one = eyring_kramers_time(low, top, 0.5, temperature=0.1, diffusion=r @ r.T)
    two = eyring_kramers_time(r.T @ low @ r, r.T @ top @ r, 0.5, temperature=0.1)
    assert one == pytest.approx(two, rel=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [torch.ones_like, uneven], ids=["even", "uneven"])
def test_simulated_sgd_escapes_when_it_should(noise):
    t, eta, runs = 0.12, 0.005, 3000
    exact = escape_time(slope, noise, temperature=t, **POINTS).time
    generator = torch.Generator().manual_seed(0)
    x = torch.full((runs,), -1.0, dtype=F64)
    taken = torch.full((runs,), math.inf, dtype=F64)
    alive = torch.arange(runs)
    for k in range(120_000):
        kick = torch.randn(len(x), generator=generator, dtype=F64)
        x = x - eta * slope(x) + (2 * t * eta * noise(x)).sqrt() * kick
        out = x >= 1.0
        if out.any():
            taken[alive[out]] = (k + 1) * eta
            x, alive = x[~out], alive[~out]
        if not len(x):
            break
    times = taken[torch.isfinite(taken)]
    assert len(times) == runs
    error = float(times.std()) / math.sqrt(runs)
    assert abs(float(times.mean()) - exact) < 4 * error + 0.02 * exact


VAR_A, VAR_B, RATE, STEPS = 7.5, 2.5, 0.02, 5000


def minibatch_noise(w):
    return VAR_A + VAR_B * (1 + w) ** 2


def minibatch_well():
    """``f = (w^2 - 1)^2 / 4`` of data ``f + a w + b (w + w^2 / 2)``, with a and b of mean 0."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(400, 2, generator=generator, dtype=F64)
    data = torch.linalg.qr(data - data.mean(0))[0] * 20 * torch.tensor([VAR_A, VAR_B]).sqrt()

    def log_likelihood(w, each):
        w = w[:, :1]
        return -((w**2 - 1) ** 2) / 4 - each[..., 0] * w - each[..., 1] * (w + w**2 / 2)

    potential = pvi.from_log_likelihood(
        lambda w: 0 * w[:, 0], log_likelihood, 1, len(data), vectorized=True, dtype=F64
    )
    return potential, data


@pytest.fixture(scope="module")
def run():
    """Constant-rate SGD on single data, 500 chains from either mode, ``[1000, T]``."""
    potential, data = minibatch_well()
    draws = pvi.sample(
        pvi.sgd(potential),
        data,
        step_size=RATE / len(data),
        batch_size=1,
        initial=torch.tensor([-1.0, 1.0], dtype=F64).repeat_interleave(500)[:, None],
        num_draws=STEPS,
        num_warmup=0,
        progress=False,
    )
    return draws.particles[..., 0]


def escape_from(mode):
    points = {"minimum": mode, "saddle": 0.0, "end": -mode, "wall": 3 * mode}
    t = pvi.noise.temperature(RATE, 1)
    return escape_time(slope, minibatch_noise, temperature=t, **points)


@pytest.mark.parametrize("mode", [-1.0, 1.0])
def test_minibatches_leave_a_mode_when_the_law_says(run, mode):
    chains = run[:500] if mode < 0 else run[500:]
    arrived = mode * chains <= -1
    some, first = arrived.any(1), arrived.double().argmax(1) + 1
    # Chains that are still there have waited all along: the mean of exponential times.
    waited = RATE * torch.where(some, first, STEPS).double().sum()
    count = int(some.sum())
    exact = escape_from(mode)
    assert abs(float(waited) / count / exact.time - 1) < 3 / math.sqrt(count) + 0.03


def share_of_the_left_mode():
    """Of ``exp(-V / T) / C``; by the loss alone the modes are even."""
    t = pvi.noise.temperature(RATE, 1)
    w = torch.linspace(-3, 3, 60_001, dtype=F64)
    v = torch.cumsum(slope(w) / minibatch_noise(w), 0) * (w[1] - w[0]) / t
    density = torch.exp(-v + v.min()) / minibatch_noise(w)
    return float(density[w < 0].sum() / density.sum())


def test_the_modes_are_visited_as_the_effective_potential_says(run):
    left = (run[:, STEPS // 2 :] < 0).double().mean(1)
    error = float(left.std()) / math.sqrt(len(left))
    assert error < 0.02
    assert abs(float(left.mean()) - share_of_the_left_mode()) < 3 * error + 0.01


def test_the_ratio_of_the_times_is_that_of_the_visits():
    there, back = escape_from(-1.0).time, escape_from(1.0).time
    assert there / (there + back) == pytest.approx(share_of_the_left_mode(), abs=0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"end": -0.5}, "in this order"),
        ({"temperature": 0.0}, "temperature"),
        ({"noise": lambda x: x}, "above 0"),
        ({"slope": lambda x: x}, "rise at the minimum and fall"),
        ({"slope": lambda x: x[:3]}, "must map"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        escape_time(
            **{"slope": slope, "noise": torch.ones_like, "temperature": 0.1, **POINTS} | change
        )


def test_what_is_no_saddle_is_refused():
    with pytest.raises(ValueError, match="one negative"):
        eyring_kramers_time(torch.eye(2), torch.eye(2), 1.0, temperature=0.1)
