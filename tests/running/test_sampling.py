"""The loop: what it keeps, how it ends, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from safetensors.torch import load_file

import particlevi as pvi
from particlevi.storage import recording
from tests import registry
from tests.registry import SAMPLERS, SamplerCase

DENSITY = registry.density(torch.float64).potential
QUIET = {"progress": False, "step_size": 0.01}
WARMUP = pvi.storage.InMemory(warmup=True)


def kept(what):
    """Storage that keeps a part."""
    return pvi.storage.InMemory(what)


def counts(**options):
    """After which steps draws were kept: a particle that moves by minus one at every step."""
    potential = pvi.from_log_density(lambda theta: -theta.sum(), 1)
    initial = torch.zeros(1, 1)
    options = {"step_size": 1.0, "progress": False, **options}
    return pvi.sample(pvi.sgd(potential), initial=initial, **options)


def steps_of(values):
    """Positions as step numbers."""
    return (-values[0, :, 0]).round().long().tolist()


@pytest.mark.parametrize(
    ("warmup", "draws", "thin"), [(0, 3, 1), (5, 3, 1), (0, 4, 3), (7, 2, 5), (2, 1, 4)]
)
def test_warmup_and_thinning_count_steps(warmup, draws, thin):
    found = counts(num_warmup=warmup, num_draws=draws, thin=thin, store=WARMUP)
    assert steps_of(found.particles) == [warmup + thin * (k + 1) for k in range(draws)]
    assert steps_of(found.warmup) == list(range(thin, warmup + 1, thin))
    assert found.stats["step"].tolist() == steps_of(found.particles)
    assert found.warmup_stats["step"].tolist() == steps_of(found.warmup)
    assert found.num_steps == warmup + thin * draws
    assert not found.interrupted


def test_the_step_size_follows_its_schedule():
    schedule = pvi.schedules.polynomial(0.5, delay=2.0, power=1.0)
    found = counts(num_warmup=1, num_draws=5, step_size=schedule)
    assert found.stats["step_size"].tolist() == [schedule(k) for k in range(1, 6)]
    total = torch.tensor([schedule(k) for k in range(6)]).cumsum(0)[1:]
    torch.testing.assert_close(-found.particles[0, :, 0], total)


def test_the_temperature_follows_its_schedule():
    schedule = pvi.schedules.cosine(2.0, num_steps=4, final=0.5)
    sampler = pvi.sgld(DENSITY, temperature=schedule)
    found = pvi.sample(sampler, num_particles=2, num_draws=6, **QUIET)
    expected = torch.tensor([schedule(k) for k in range(6)], dtype=torch.float64)
    torch.testing.assert_close(found.stats["temperature"].double(), expected)


def test_a_cycle_keeps_its_sampling_part():
    schedule = pvi.schedules.cyclical(1.0, period=10, exploration=0.7)
    found = counts(num_warmup=4, num_draws=8, step_size=schedule)
    assert found.stats["step"].tolist() == [8, 9, 10, 18, 19, 20, 28, 29]
    thinned = counts(num_draws=4, thin=2, step_size=schedule)
    assert thinned.stats["step"].tolist() == [9, 18, 20, 29]
    temperature = schedule.temperature(2.0)
    assert [temperature(k) for k in (0, 6, 7, 9, 10)] == [0.0, 0.0, 2.0, 2.0, 0.0]


def test_cycles_that_never_sample_are_refused(monkeypatch):
    monkeypatch.setattr("particlevi.running.kept._LONGEST_GAP", 1000)
    sampler = pvi.sgld(DENSITY, temperature=pvi.schedules.cyclical(1.0, period=2, exploration=0.5))
    sizes = pvi.schedules.cyclical(0.1, period=2, exploration=0.5)

    class Shifted:
        """Samples when the temperature's cycle explores."""

        def __call__(self, step):
            return sizes(step + 1)

        def keep(self, step):
            return sizes.keep(step + 1)

    with pytest.raises(ValueError, match="never sample at one time"):
        pvi.sample(sampler, num_particles=1, num_draws=3, step_size=Shifted(), progress=False)


def net():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1))
    potential = pvi.from_module(module, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=20)
    return potential, registry.module(torch.float32).data


def test_what_is_kept():
    potential, data = net()
    options = {"num_particles": 2, "num_draws": 3, "step_size": 1e-3, "progress": False}
    whole = pvi.sample(pvi.sgld(potential), data, **options)
    bias = pvi.sample(pvi.sgld(potential), data, store=kept("*.bias"), **options)
    assert bias.coordinates.tolist() == [6, 7, 10]
    assert torch.equal(bias.particles, whole.particles[..., [6, 7, 10]])
    some = pvi.sample(pvi.sgld(potential), data, store=kept(torch.tensor([9, 0])), **options)
    assert torch.equal(some.particles, whole.particles[..., [9, 0]])
    probe = data[0][:4]
    outputs = pvi.sample(pvi.sgld(potential), data, store=kept(pvi.outputs_at(probe)), **options)
    assert outputs.output_shape == (4, 1)
    torch.testing.assert_close(
        outputs.particles.view(2, 3, 4, 1), whole.outputs(probe), rtol=1e-6, atol=1e-6
    )
    array = pvi.outputs_at(probe.double().numpy())
    again = pvi.sample(pvi.sgld(potential), data, store=kept(array), **options)
    assert torch.equal(again.particles, outputs.particles)
    for part in (bias, outputs):
        with pytest.raises(ValueError, match="keep"):
            part.predict(probe)


def test_the_storage_dtype():
    options = {"num_particles": 2, "num_draws": 3, **QUIET}
    whole = pvi.sample(pvi.sgld(DENSITY), **options)
    half = pvi.sample(
        pvi.sgld(DENSITY), store=pvi.storage.InMemory(dtype=torch.bfloat16), **options
    )
    assert half.particles.dtype == torch.bfloat16
    assert torch.equal(half.particles, whole.particles.bfloat16())


def test_the_global_generator_is_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = pvi.sample(pvi.sgld(DENSITY), num_particles=2, num_draws=3, **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    second = pvi.sample(pvi.sgld(DENSITY), num_particles=2, num_draws=3, **QUIET)
    assert torch.equal(first.particles, second.particles)


def cliff(edge=30.0):
    """``U = -theta`` up to a cliff beyond which it is not finite: chains arrive there in turn."""

    def log_density(theta):
        value = theta.sum()
        return value + torch.where(value < edge, 0.0, torch.inf)

    return pvi.from_log_density(log_density, 1, dtype=torch.float64)


@pytest.mark.parametrize("check_every", [1, 4, 50])
def test_a_lost_chain_is_reported_with_its_step_and_left_out(check_every):
    initial = torch.tensor([[0.0], [17.5], [-50.0]], dtype=torch.float64)
    run = {"initial": initial, "num_draws": 25, "step_size": 1.0, "progress": False}
    with pytest.warns(UserWarning, match=r"Chains diverged: 1 \(step 13\).*step size"):
        draws = pvi.sample(pvi.sgd(cliff()), **run, monitor=pvi.running.Monitor(every=check_every))
    assert draws.chains == [0, 2]
    assert draws.diverged == {1: 13}
    expected = initial[[0, 2]] + torch.arange(1.0, 26, dtype=torch.float64)
    torch.testing.assert_close(draws.particles[..., 0], expected)
    assert draws.stats["potential"].shape == (2, 25)


def test_when_all_chains_are_lost_the_sound_draws_of_the_last_come_with_the_error():
    initial = torch.tensor([[17.5], [0.0]], dtype=torch.float64)
    run = {"initial": initial, "num_draws": 100, "step_size": 1.0, "progress": False}
    with pytest.warns(UserWarning, match="diverged: 0"), pytest.raises(pvi.DivergenceError) as got:
        pvi.sample(pvi.sgd(cliff()), **run, monitor=pvi.running.Monitor(every=10))
    draws = got.value.draws
    assert "1 (step 30)" in str(got.value)
    assert draws.diverged == {0: 13, 1: 30}
    assert draws.chains == [1]
    assert draws.particles[0, :, 0].tolist() == [float(k) for k in range(1, 30)]


def test_a_run_away_that_stays_finite_is_found():
    with pytest.raises(pvi.DivergenceError, match="try a tenth"):
        pvi.sample(pvi.sgd(DENSITY), num_particles=2, num_draws=200, step_size=1.5, progress=False)


def test_of_interacting_particles_one_lost_is_all_lost():
    case = SamplerCase(pvi.svgd, 1.0)
    initial = torch.tensor([[0.0], [20.5]], dtype=torch.float64)
    with pytest.raises(pvi.DivergenceError, match="Particles diverged") as got:
        pvi.sample(case(cliff()), initial=initial, num_draws=500, step_size=1.0, progress=False)
    draws = got.value.draws
    assert draws.particles.shape[0] == 2
    assert 0 < draws.particles.shape[1] < 500
    assert torch.isfinite(cliff()(draws.particles[:, -1])).all()


def test_an_error_on_the_way_leaves_with_what_was_drawn():
    """The ninth pass is broken and the first two are trials: six draws were made."""
    potential = pvi.from_log_likelihood(
        lambda t: -t.square().sum(), lambda t, xs: -(t - xs[0]).square(), 1, 8, dtype=torch.float64
    )
    good = torch.arange(8.0, dtype=torch.float64)
    options = {"num_particles": 2, **QUIET}

    class Broken:
        passes = 0

        def __iter__(self):
            self.passes += 1
            yield (good if self.passes < 8 else good * torch.inf,)

    with pytest.raises(ValueError, match=r"a batch\[0\]") as got:
        pvi.sample(pvi.sgld(potential), Broken(), num_draws=20, **options)
    whole = pvi.sample(pvi.sgld(potential), [(good,)], num_draws=6, **options)
    assert torch.equal(got.value.draws.particles, whole.particles)
    assert "6 of 20 draws" in got.value.__notes__[0]


def test_draws_and_errors_travel_between_processes():
    with pytest.raises(pvi.DivergenceError) as got:
        pvi.sample(pvi.sgd(DENSITY), num_particles=2, num_draws=200, step_size=1.5, progress=False)
    again = pickle.loads(pickle.dumps(got.value))
    assert str(again) == str(got.value)
    assert torch.equal(again.draws.particles, got.value.draws.particles)
    assert again.draws.potential is None
    assert got.value.draws.potential is not None


def test_every_batch_of_a_loader_has_its_targets_checked():
    net = torch.nn.Linear(2, 3)
    potential = pvi.from_module(net, pvi.Categorical(), pvi.Normal(), num_data=8)
    x, y = torch.ones(4, 2), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="Categorical"):
        pvi.sample(pvi.sgld(potential), [(x, y), (x, y + 1)], num_particles=2, **QUIET)


def interrupting(sampler, step, how, probed=True):
    """The sampler, but at one of its steps Ctrl-C is pressed; a checkpoint begins by probing."""
    count = -probed

    def move(*arguments):
        nonlocal count
        count += 1
        if count == step:
            how()
        return sampler.step(*arguments)

    return dataclasses.replace(sampler, step=move)


def test_a_kill_between_two_checks_does_not_change_the_step_of_a_divergence(tmp_path):
    def kill():
        raise RuntimeError("killed")

    initial = torch.tensor([[0.0], [17.5], [-50.0]], dtype=torch.float64)
    sampler = pvi.sgd(cliff())
    with pytest.warns(UserWarning, match="diverged: 1"), pytest.raises(RuntimeError, match="kill"):
        pvi.sample(
            interrupting(sampler, 20, kill),
            initial=initial,
            num_draws=25,
            step_size=1.0,
            progress=False,
            checkpoint=pvi.storage.Checkpoint(tmp_path, every=15),
        )
    assert pvi.resume(tmp_path, sampler, progress=False).diverged == {1: 13}


def test_ctrl_c_returns_what_was_drawn(tmp_path):
    def press():
        os.kill(os.getpid(), signal.SIGINT)

    options = {"num_particles": 2, "num_warmup": 5, "num_draws": 20, **QUIET}
    whole = pvi.sample(pvi.sgld(DENSITY), **options)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match=r"after 12 of 25 steps.*7 of 20 draws.*resume"):
        draws = pvi.sample(
            interrupting(pvi.sgld(DENSITY), 12, press), checkpoint=tmp_path / "run", **options
        )
    assert signal.getsignal(signal.SIGINT) is handler
    assert draws.interrupted
    assert torch.equal(draws.particles, whole.particles[:, :7])
    assert draws.stats["potential"].shape == (2, 7)
    resumed = pvi.resume(tmp_path / "run", pvi.sgld(DENSITY), progress=False)
    assert torch.equal(resumed.particles, whole.particles)
    with pytest.warns(UserWarning, match="0 of 20 draws"):
        empty = pvi.sample(interrupting(pvi.sgld(DENSITY), 2, press, probed=False), **options)
    assert empty.particles.shape == (2, 0, 3)
    with pytest.raises(ValueError, match="no draws"):
        empty.flat()


def test_ctrl_c_twice_ends_at_once():
    def press():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        signal.sigpending()

    with pytest.raises(KeyboardInterrupt):
        pvi.sample(interrupting(pvi.sgld(DENSITY), 3, press), num_particles=1, **QUIET)


def test_sigint_from_outside():
    code = """
import particlevi as pvi

def step_size(k):
    if k == 100:
        print("running", flush=True)
    return 0.1

normal = pvi.from_log_density(lambda theta: -0.5 * theta.square().sum(), 2)
draws = pvi.sample(
    pvi.sgld(normal), num_particles=2, num_draws=10**6, step_size=step_size, progress=False
)
print(draws.interrupted, 100 <= draws.particles.shape[1] < 10**6)
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == "True True\n"
    assert "Interrupted after" in err


def test_in_another_thread_the_signals_are_left_alone():
    found = []

    def work():
        found.append(pvi.sample(pvi.sgld(DENSITY), num_particles=2, num_draws=3, **QUIET))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0].particles.shape == (2, 3, 3)


def test_a_run_that_cannot_fit_is_refused_with_the_ways_out(monkeypatch):
    monkeypatch.setattr(recording, "available_memory", lambda: 60_000)
    fits = {"num_particles": 4, "num_draws": 100, "step_size": 0.1, "progress": False}
    pvi.sample(pvi.sgld(DENSITY), **fits)
    with pytest.raises(MemoryError) as got:
        pvi.sample(pvi.sgld(DENSITY), **(fits | {"num_draws": 10**15}))
    for word in ("96000", "thin", "fewer particles", "bfloat16", "keep=", "outputs_at"):
        assert word in str(got.value)
    few = {"store": pvi.storage.InMemory(torch.tensor([0]), torch.bfloat16)}
    pvi.sample(pvi.sgld(DENSITY), **(fits | {"num_draws": 1000}), **few)
    data = registry.module(torch.float64)
    big = pvi.from_module(
        torch.nn.Linear(3, 1).double(), pvi.Gaussian(1.0), pvi.Normal(), num_data=20
    )
    epoch = {"num_particles": 100, "num_draws": 1, "step_size": 1e-4, "progress": False}
    with pytest.raises(MemoryError, match="order of the data"):
        pvi.sample(pvi.sgld(big), data.data, batch_size=4, batching="epoch", **epoch)


@pytest.fixture
def checkpoint(tmp_path):
    problem = registry.function(torch.float64)
    sampler = pvi.sgld(problem.potential)
    options = {"num_particles": 2, "num_draws": 4, "step_size": 1e-3, "progress": False}
    pvi.sample(sampler, problem.data, checkpoint=tmp_path, store=kept(torch.tensor([1])), **options)
    return tmp_path, problem, kept(torch.tensor([1]))


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(checkpoint):
    folder, problem, keep = checkpoint
    sampler, data = pvi.sgld(problem.potential), problem.data

    def refused(match, sampler=sampler, data=data, **options):
        with pytest.raises(ValueError, match=match):
            pvi.resume(folder, sampler, data, progress=False, **{"store": keep, **options})

    refused('sampler was "sgld", is "sgd"', pvi.sgd(problem.potential))
    refused("temperature.value was 1.0, is 0.5", pvi.sgld(problem.potential, temperature=0.5))
    other = pvi.control_variate(problem.potential, data, problem.center)
    refused('estimator was "minibatch"', pvi.sgld(other))
    refused("potential.num_params was 4, is 3", pvi.sgld(DENSITY))
    refused("data was", data=(data[0] + 1e-9, data[1]))
    refused("data was", data=(data[0].flip(0), data[1].flip(0)))
    refused("keep", store=None)
    refused("keep", store=kept(torch.tensor([2])))
    refused("step_size.value was 0.001, is 0.002", step_size=0.002)
    pvi.resume(folder, sampler, data, store=keep, step_size=0.001, progress=False)


def test_a_module_is_recognised_by_all_that_matters(tmp_path):
    def made(scale=0.5, prior=1.0, width=2, frozen=0.0):
        module = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Linear(width, 1))
        with torch.no_grad():
            module[0].bias.fill_(frozen).requires_grad_(False)
        potential = pvi.from_module(module, pvi.Gaussian(scale), pvi.Normal(prior), num_data=20)
        return pvi.sgld(potential)

    data = registry.module(torch.float32).data
    options = {"num_particles": 1, "num_draws": 1, "step_size": 1e-4, "progress": False}
    pvi.sample(made(), data, checkpoint=tmp_path, **options)
    pvi.resume(tmp_path, made(), data, progress=False)
    for change, match in (
        ({"scale": 0.6}, "likelihood.scale was 0.5, is 0.6"),
        ({"prior": 2.0}, "prior.*scale was 1.0, is 2.0"),
        ({"width": 3}, "shapes"),
        ({"frozen": 1.0}, "fixed_tensors"),
    ):
        with pytest.raises(ValueError, match=match):
            pvi.resume(tmp_path, made(**change), data, progress=False)


def test_a_folder_holds_one_run(checkpoint):
    folder, problem, _ = checkpoint
    sampler = pvi.sgld(problem.potential)
    with pytest.raises(FileExistsError, match=r"pvi\.resume"):
        pvi.sample(sampler, problem.data, num_particles=2, checkpoint=folder, **QUIET)
    file = folder / "state.safetensors"
    with pytest.raises(FileExistsError, match="must be a folder"):
        pvi.sample(sampler, problem.data, num_particles=2, checkpoint=file, **QUIET)
    with pytest.raises(FileNotFoundError, match="no file"):
        pvi.resume(folder / "nothing", sampler, problem.data)


def test_no_file_is_ever_unpickled(checkpoint, monkeypatch):
    folder, problem, keep = checkpoint
    for file in folder.iterdir():
        load_file(file)

    def forbidden(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", forbidden)
    monkeypatch.setattr(pickle, "loads", forbidden)
    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    draws = pvi.resume(
        folder, pvi.sgld(problem.potential), problem.data, store=keep, progress=False
    )
    draws.save(folder / "draws")
    assert torch.equal(pvi.load(folder / "draws").particles, draws.particles)


def test_damaged_and_foreign_files_are_refused(checkpoint, tmp_path):
    folder, problem, keep = checkpoint
    state = folder / "state.safetensors"
    whole = state.read_bytes()
    for damaged in (b"", whole[:100], whole[:-10], b"\x80\x04" + whole):
        state.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            pvi.resume(folder, pvi.sgld(problem.potential), problem.data, store=keep)
    header = json.dumps({"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    state.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="not written by particlevi"):
        pvi.resume(folder, pvi.sgld(problem.potential), problem.data, store=keep)


def test_saved_draws_are_the_draws(tmp_path):
    potential, data = net()
    options = {"num_particles": 1, "num_warmup": 4, "num_draws": 3, "step_size": 1e-3}
    draws = pvi.sample(pvi.sgld(potential), data, store=WARMUP, progress=False, **options)
    draws.save(tmp_path / "draws")
    found = pvi.load(tmp_path / "draws", potential=net()[0])
    for name in ("particles", "warmup"):
        assert torch.equal(getattr(found, name), getattr(draws, name))
    for name, value in draws.stats.items():
        assert torch.equal(found.stats[name], value)
    assert found.chains == draws.chains
    torch.testing.assert_close(found.predict(data[0]).mean, draws.predict(data[0]).mean)
    with pytest.raises(ValueError, match="another potential"):
        pvi.load(tmp_path / "draws", potential=DENSITY)


def test_chains_can_be_selected():
    options = {"num_particles": 4, "num_warmup": 2, "num_draws": 3, "store": WARMUP, **QUIET}
    draws = pvi.sample(pvi.sgld(DENSITY), **options)
    for chosen, rows in ((slice(1, 3), [1, 2]), ([3, 0], [3, 0])):
        some = draws.select(chosen)
        assert some.chains == rows
        assert torch.equal(some.particles, draws.particles[rows])
        assert torch.equal(some.warmup, draws.warmup[rows])
        assert torch.equal(some.stats["potential"], draws.stats["potential"][rows])
        assert torch.equal(some.stats["step"], draws.stats["step"])
    for bad in ([], [4], [0.5], slice(9, 12)):
        with pytest.raises(ValueError, match="chains"):
            draws.select(bad)


@pytest.mark.parametrize("kind", ["density", "module"])
def test_compiled_by_inductor_it_draws_the_same(kind):
    problem = registry.PROBLEMS[kind](torch.float64)
    case = SAMPLERS["sghmc"]
    options = {"num_particles": 2, "num_draws": 5, "step_size": case.step_size, "progress": False}
    options |= {} if problem.data is None else {"batch_size": 4}
    eager = pvi.sample(case(problem.potential), problem.data, **options)
    compiled = pvi.sample(case(problem.potential), problem.data, compile=True, **options)
    torch.testing.assert_close(compiled.particles, eager.particles, rtol=1e-9, atol=1e-9)


def test_progress_tells_potential_and_temperature(capsys):
    with warnings.catch_warnings():
        pvi.sample(pvi.sgld(DENSITY), num_particles=2, num_draws=100, step_size=0.01)
    shown = capsys.readouterr().err
    assert "sgld" in shown
    assert "potential=" in shown
    assert "T_conf" in shown


def test_a_sampler_says_what_it_is():
    sampler = pvi.sghmc(pvi.from_log_density(lambda t: -t.sum(), 3), friction=2.0)
    assert repr(sampler).startswith("sghmc(friction=2.0, ")
    assert repr(sampler).endswith("ModelPotential(log_density, D=3, N=None, float32)")


def test_a_schedule_that_fails_is_named_with_its_step():
    with pytest.raises(ValueError, match="schedule of step_size failed at step 0: TypeError"):
        pvi.sample(
            pvi.sgld(registry.density(torch.float64).potential), step_size=torch.nn.Linear(1, 1),
            num_particles=2, num_draws=2, progress=False,
        )  # fmt: skip
