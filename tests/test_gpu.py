"""The whole road on a CUDA device; skipped where there is none.

``PARTICLEVI_DEVICE=cpu`` runs all but NCCL on a CPU, to see that the tests themselves are right.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import particlevi as pvi
from tests import registry
from tests.registry import SAMPLERS

ROOT = Path(__file__).parents[1]
DEVICE = torch.device(os.environ.get("PARTICLEVI_DEVICE", "cuda"))
F64 = torch.float64
QUIET = {"progress": False, "seed": 0}
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"
)


def gaussian():
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=F64, device=DEVICE)
    return pvi.from_log_density(
        lambda theta: -0.5 * (theta / scale).square().sum(), 3, dtype=F64, device=DEVICE
    )


def net(dtype: torch.dtype = F64):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(DEVICE, dtype)
    potential = pvi.from_module(module, pvi.Gaussian(scale=0.5), pvi.Normal(1.0), num_data=20)
    return potential, registry.module(dtype).data


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws_there(name):
    case = SAMPLERS[name]
    potential, data = (gaussian(), None) if case.all_data else net()
    draws = pvi.sample(
        case(potential),
        data,
        batch_size=None if data is None else 4,
        num_particles=4,
        num_warmup=4,
        num_draws=4,
        step_size=case.step_size,
        **QUIET,
    )
    assert torch.isfinite(draws.particles).all()


def test_a_law_holds_there():
    draws = pvi.sample(
        pvi.hmc(gaussian(), num_leapfrog=5),
        num_particles=1000,
        num_warmup=200,
        num_draws=20,
        thin=5,
        step_size=0.5,
        **QUIET,
    )
    variance = draws.particles.double().flatten(0, 1).var(0).cpu()
    torch.testing.assert_close(
        variance, torch.tensor([0.25, 1.0, 4.0], dtype=F64), rtol=0.05, atol=0
    )


@pytest.fixture(scope="module")
def chains():
    potential, data = net()
    options = {"num_particles": 8, "num_draws": 50, "step_size": 1e-2, **QUIET}
    return pvi.sample(pvi.sghmc(potential), data, **options), data


USES = {
    "predict": lambda draws, data: draws.predict(data[0]),
    "outputs": lambda draws, data: draws.outputs(data[0]),
    "ess": lambda draws, data: draws.ess(),
    "temperatures": lambda draws, data: draws.temperatures(data),
    "diagnose": lambda draws, data: draws.diagnose(data),
    "check_invariance": lambda draws, data: draws.check_invariance(data),
    "to_arviz": lambda draws, data: draws.to_arviz(data=data),
    "summary": lambda draws, data: draws.summary(),
    "compare": lambda draws, data: pvi.compare({"a": draws, "b": draws}, data),
    "to_module": lambda draws, data: draws.to_module()(data[0].to(DEVICE)),
}


@pytest.mark.filterwarnings("ignore::particlevi.ParticleviWarning")
@pytest.mark.parametrize("use", USES)
def test_draws_are_used_there(chains, use):
    USES[use](*chains)


def test_draws_come_back_from_disk(chains, tmp_path):
    draws, _ = chains
    draws.save(tmp_path / "draws")
    assert torch.equal(pvi.load(tmp_path / "draws").particles.cpu(), draws.particles.cpu())


def test_a_run_goes_on_bit_for_bit_there(tmp_path):
    potential, data = net()
    options = {"num_particles": 3, "num_draws": 12, "step_size": 1e-2, "batch_size": 4, **QUIET}
    whole = pvi.sample(pvi.sghmc(potential), data, **options)

    class Stop(Exception):
        pass

    def stop(look):
        raise Stop

    folder = tmp_path / "run"
    with pytest.raises(Stop):
        pvi.sample(
            pvi.sghmc(potential),
            data,
            checkpoint=folder,
            monitor=pvi.running.Every(6, stop),
            **options,
        )
    again = pvi.resume(folder, pvi.sghmc(potential), data, progress=False)
    assert torch.equal(again.particles, whole.particles)


def test_compiled_steps_draw_the_same_there():
    potential, data = net(torch.float32)
    options = {"num_particles": 3, "num_draws": 20, "step_size": 1e-3, "batch_size": 4, **QUIET}
    eager = pvi.sample(pvi.sgld(potential), data, **options)
    compiled = pvi.sample(pvi.sgld(potential), data, compile=True, **options)
    torch.testing.assert_close(compiled.particles, eager.particles, rtol=1e-4, atol=1e-4)


def test_a_posterior_without_numbers_there():
    potential, data = net(torch.float32)
    draws = pvi.sample(potential, data, num_particles=8, num_draws=100, **QUIET)
    assert torch.isfinite(draws.particles).all()
    assert draws.summary()


RANKED = """
import torch, torch.distributed as dist, particlevi as pvi
torch.cuda.set_device(0)
dist.init_process_group("nccl")
from tests.test_gpu import gaussian
draws = pvi.sample(pvi.sghmc(gaussian()), num_particles=4, num_draws=5, step_size=0.01,
                   seed=0, progress=False)
layer = torch.nn.Linear(3, 1, device="cuda")
leader = pvi.optim.LeaderSGD(layer.parameters(), lr=0.1, workers=pvi.optim.Processes())
for _ in range(3):
    def closure():
        leader.zero_grad()
        loss = layer(torch.ones(2, 3, device="cuda")).square().mean()
        loss.backward()
        return loss
    leader.step(closure)
print(dist.get_backend(), tuple(draws.particles.shape))
dist.destroy_process_group()
"""


@pytest.mark.skipif(DEVICE.type != "cuda", reason="NCCL needs a CUDA device")
def test_a_process_of_nccl_runs(tmp_path):
    script = tmp_path / "ranked.py"
    script.write_text(RANKED)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", str(script)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "nccl (4, 5, 3)" in done.stdout
