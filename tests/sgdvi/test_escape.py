"""Times to leave a basin, against each other and against simulation."""

from __future__ import annotations

import math

import pytest
import torch

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
