"""A potential has the arithmetic of its particles, whatever its caller has switched on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.typing import Batch

N = 20
X = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))


def potentials():
    a = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))

    class Own:
        num_params, num_data = 50, None

        def __call__(self, particles, batch=None):
            return (particles @ a).square().sum(1)

    return {
        "module": (pvi.from_module(net(), pvi.Gaussian(0.1), pvi.Normal(), N), (X, Y)),
        "density": (pvi.from_log_density(lambda t: -(a @ t).square().sum(), 50), None),
        "own": (Own(), None),
    }


def run(potential, data, **options):
    return pvi.sample(
        pvi.sghmc(potential), data, step_size=1e-3, num_particles=3, num_draws=5, seed=1,
        progress=False, **options,
    ).particles  # fmt: skip


@pytest.mark.parametrize("name", ["module", "density", "own"])
def test_autocast_changes_nothing(name):
    plain = run(*potentials()[name])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(run(*potentials()[name]), plain)


@pytest.mark.slow
def test_autocast_changes_no_compiled_step():
    torch._dynamo.reset()
    plain = run(*potentials()["module"], compile=True)
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(*potentials()["module"], compile=True)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_autocast_changes_no_outputs():
    potential, (x, _) = potentials()["module"]
    theta = potential.init(2)
    plain = potential.outputs(theta, Batch((x,)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = potential.outputs(theta, Batch((x,)))
    assert torch.equal(found, plain) and found.dtype == torch.float32


@pytest.mark.parametrize("name", ["module", "density", "own"])
def test_inference_mode_is_named(name):
    potential, data = potentials()[name]
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inference_mode\(\) is on"):
        run(potential, data)


def test_no_grad_does_no_harm():
    potential, data = potentials()["module"]
    plain = run(potential, data)
    with torch.no_grad():
        assert torch.equal(run(potential, data), plain)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pvi.from_module(net(), pvi.Gaussian(0.1), pvi.Normal(), N, batch_norm=True),
        lambda: pvi.from_module(net(), pvi.Gaussian(0.1), pvi.Normal(), N, dropout=True),
        lambda: pvi.from_log_density(lambda t: t.sum(), 2, vectorized=1),
        lambda: pvi.from_log_density(lambda t: t.sum(), 2, vectorized="no"),
    ],
)
def test_flags_take_their_own_type_only(make):
    with pytest.raises((TypeError, ValueError), match="must be"):
        make()


class TestAutocast:
    @pytest.mark.parametrize(
        "layers",
        [
            [nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1)],
            [nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 8, 2), nn.Flatten()],
            [nn.Unflatten(1, (3, 4)), nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)],
        ],
        ids=["linear", "convolution", "attention"],
    )
    def test_outputs_are_those_of_half_precision_in_the_dtype_of_the_particles(self, layers):
        module = nn.Sequential(*layers).eval()
        x = torch.randn(N, 12, generator=torch.Generator().manual_seed(0))
        potential = pvi.from_module(
            module, pvi.Gaussian(0.1), pvi.Normal(), N, autocast=torch.bfloat16
        )
        theta = torch.cat([p.detach().flatten() for p in module.parameters()])[None]
        expected = module(x).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounding = float((module(x).detach().float() - expected).square().mean().sqrt())
        found = potential.outputs(theta, Batch((x,)))[0]
        error = float((found - expected).square().mean().sqrt())
        assert found.dtype == torch.float32
        assert 0.3 * rounding < error < 3 * rounding

    def test_a_last_layer_that_ends_in_half_precision_does_not_reach_the_likelihood(self):
        module = nn.Linear(3, 1, bias=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module(X).dtype == torch.bfloat16
        potential = pvi.from_module(
            module, pvi.Gaussian(0.1), pvi.Normal(), N, autocast=torch.bfloat16
        )
        theta = potential.init(2)
        assert potential.outputs(theta, Batch((X,))).dtype == torch.float32

    def test_a_run_is_not_resumed_in_another_precision(self, tmp_path):
        def potential(autocast):
            return pvi.from_module(net(), pvi.Gaussian(0.1), pvi.Normal(), N, autocast=autocast)

        run(potential(torch.bfloat16), (X, Y), checkpoint=tmp_path)
        with pytest.raises(ValueError, match="autocast"):
            pvi.resume(tmp_path, pvi.sghmc(potential(None)), (X, Y), progress=False)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, "bfloat16"])
    def test_other_precisions_are_refused(self, dtype):
        with pytest.raises(ValueError, match=r"autocast must be torch\.bfloat16"):
            pvi.from_module(net(), pvi.Gaussian(0.1), pvi.Normal(), N, autocast=dtype)

    @pytest.mark.slow
    def test_the_law_stays_that_of_single_precision(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(200, 5, generator=generator)
        y = x.sum(1, keepdim=True) + 0.5 * torch.randn(200, 1, generator=generator)
        potential = pvi.from_module(
            nn.Linear(5, 1), pvi.Gaussian(0.5), pvi.Normal(1.0), 200, autocast=torch.bfloat16
        )
        draws = pvi.sample(
            pvi.sghmc(potential), (x, y), step_size=0.005, num_particles=32, num_warmup=4000,
            num_draws=4000, seed=1, progress=False, compile=True,
        )  # fmt: skip
        design = torch.cat([x, torch.ones(200, 1)], 1).double()
        exact = torch.linalg.inv(design.T @ design / 0.25 + torch.eye(6)).diagonal()
        ratio = draws.particles.flatten(0, 1).double().var(0) / exact
        assert abs(float(ratio.mean()) - 1.0) < 0.03
