"""Things that are kept of a draw are what they say, together and alone, in memory and on disk."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from tests import registry
from tests.contract.test_resume import Killed, fail, killed_after

pytest.importorskip("zarr")

RUN = {"step_size": 1e-3, "num_particles": 3, "num_warmup": 4, "num_draws": 10, "progress": False}
InMemory, OnDisk = pvi.storage.InMemory, pvi.storage.OnDisk


def problem():
    """A net with data, and a sampler of it."""
    made = registry.module(torch.float64)
    return pvi.sghmc(made.potential), made.data


D = problem()[0].potential.num_params
POINTS = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
MATRIX = torch.linspace(-1, 1, D * 2, dtype=torch.float64).view(D, 2).sin()


def everything():
    """One of each kind."""
    return [
        pvi.storage.parameters("2.*"),
        pvi.outputs_at(POINTS),
        pvi.storage.projections(MATRIX),
        pvi.storage.moments(),
    ]


def run(store=None, **options):
    sampler, data = problem()
    return pvi.sample(sampler, data, store=store, **{**RUN, **options})


def stores(tmp_path, **options):
    """In memory and on disk."""
    return {
        "memory": InMemory(warmup=True, **options),
        "disk": OnDisk(tmp_path / "draws.zarr", warmup=True, **options),
    }


@pytest.fixture(scope="module")
def whole():
    return run(InMemory(warmup=True))


@pytest.fixture(params=["memory", "disk"])
def several(request, tmp_path):
    return run(stores(tmp_path, keep=everything())[request.param])


def test_moments_are_those_of_the_draws(several, whole):
    found, values = several.moments, whole.particles.double()
    assert found.count == values.shape[1]
    assert torch.allclose(found.mean, values.mean(1), rtol=1e-12, atol=1e-12)
    assert torch.allclose(found.variance, values.var(1), rtol=1e-12, atol=1e-12)
    assert found.mean.dtype == torch.float64


def test_moments_far_from_zero_lose_no_digits():
    from particlevi.drawset.moments import RunningMoments

    values = 1e8 + torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)).double()
    running = RunningMoments(2, 3, torch.device("cpu"))
    for k in range(50):
        running.update(values[:, k])
    found = running.moments(slice(None))
    assert torch.allclose(found.variance, (values - 1e8).var(1), rtol=1e-6)


def test_projections_are_products_with_the_matrix(several, whole):
    part = several.only("projections")
    assert torch.allclose(part.particles.clone(), whole.particles @ MATRIX, rtol=1e-12)
    assert torch.allclose(part.warmup.clone(), whole.warmup @ MATRIX, rtol=1e-12)


def test_parameters_beside_others_are_the_parameters(several, whole):
    part = several.only("parameters")
    assert torch.equal(part.particles.clone(), whole.particles[..., part.coordinates])


def test_outputs_beside_others_are_the_outputs(several, whole):
    part = several.only("outputs")
    wanted = whole.outputs(POINTS).reshape(part.particles.shape)
    assert torch.allclose(part.particles.clone(), wanted, rtol=1e-12)
    assert part.output_shape == (2, *wanted.shape[3:], wanted.shape[-1] // 2)


def test_random_projections_are_those_of_their_seed(whole):
    kept = pvi.storage.projections(3, seed=5)
    wanted = whole.particles @ kept.directions(D, torch.float64)
    assert torch.allclose(run(InMemory(keep=kept)).particles, wanted, rtol=1e-12)
    other = pvi.storage.projections(3, seed=6).directions(D, torch.float64)
    assert not torch.equal(other, kept.directions(D, torch.float64))


def test_all_parameters_beside_others_predict(whole):
    draws = run(InMemory(keep=[pvi.storage.parameters(), pvi.storage.projections(2)]))
    with pytest.raises(ValueError, match=r'draws\.only\("parameters"\)'):
        draws.predict(POINTS)
    found = draws.only("parameters").predict(POINTS)
    assert torch.equal(found.mean, whole.predict(POINTS).mean)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_moments_alone_keep_no_draws(where, tmp_path, whole):
    draws = run(stores(tmp_path, keep=pvi.storage.moments())[where])
    assert draws.particles.shape == (3, 10, 0)
    assert torch.allclose(draws.moments.mean, whole.particles.mean(1), rtol=1e-12)
    assert torch.equal(draws.stats["potential"], whole.stats["potential"])


def test_strings_beside_things_are_parameters(whole):
    draws = run(InMemory(keep=["2.*", "0.bias", pvi.storage.moments()]))
    assert torch.equal(draws.particles, whole.particles[..., draws.coordinates])


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_is_kept_comes_back_from_a_file(where, tmp_path):
    draws = run(stores(tmp_path, keep=everything())[where])
    path = tmp_path / "draws.zarr"
    if where == "memory":
        path = tmp_path / "draws.safetensors"
        draws.save(path)
    again = pvi.load(path, draws.potential)
    assert again.kept == draws.kept
    assert torch.equal(again.particles.clone(), draws.particles.clone())
    for name in ("mean", "variance"):
        assert torch.equal(getattr(again.moments, name), getattr(draws.moments, name))
    assert again.moments.count == draws.moments.count


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_resumed_run_keeps_the_same(where, tmp_path):
    sampler, data = problem()
    uninterrupted = run(InMemory(keep=everything(), warmup=True))
    store = stores(tmp_path, keep=everything())[where]
    saving = pvi.storage.Checkpoint(tmp_path / "run", every=4)
    with pytest.raises(Killed):
        pvi.sample(killed_after(sampler, 11, fail), data, store=store, checkpoint=saving, **RUN)
    resumed = pvi.resume(tmp_path / "run", sampler, data, store=store, progress=False)
    assert torch.equal(resumed.particles.clone(), uninterrupted.particles)
    assert torch.equal(resumed.moments.mean, uninterrupted.moments.mean)
    assert torch.equal(resumed.moments.variance, uninterrupted.moments.variance)


def test_a_run_is_not_resumed_with_other_things(tmp_path):
    sampler, data = problem()
    run(InMemory(keep=everything()), checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="keep"):
        other = InMemory(keep=everything()[:-1])
        pvi.resume(tmp_path / "run", sampler, data, store=other, progress=False)


def test_readers_find_each_thing_by_its_name(tmp_path):
    xarray = pytest.importorskip("xarray")
    draws = run(OnDisk(tmp_path / "draws.zarr", keep=everything()))
    tree = xarray.open_datatree(tmp_path / "draws.zarr", engine="zarr")
    given = draws.to_arviz()["posterior"]
    assert tree["posterior"]["projections"].shape == (3, 10, 2)
    assert {"2.weight", "2.bias", "outputs", "projections"} <= set(tree["posterior"].data_vars)
    for name in ("outputs", "projections"):
        assert (given[name].values == tree["posterior"][name].values).all()
    mean = torch.from_numpy(tree["constant_data"]["moments_mean"].values)
    assert torch.equal(mean, draws.moments.mean)


def test_moments_are_of_all_draws_of_their_chains(several):
    assert torch.equal(several[1].moments.mean, several.moments.mean[[1]])
    assert several[:, 5:].moments is None


def test_chains_that_diverged_have_no_moments():
    quartic = pvi.from_log_density(lambda theta: -0.25 * (theta**4).sum(), num_params=2)
    start = torch.tensor([[0.0, 0.0], [99, 0], [0.1, 0]])
    kept = InMemory(keep=[pvi.storage.parameters(), pvi.storage.moments()])
    options = {"step_size": 0.05, "num_draws": 10, "progress": False, "initial": start}
    with pytest.warns(UserWarning, match="diverged: 1"):
        draws = pvi.sample(pvi.sgld(quartic), store=kept, **options)
    assert torch.allclose(draws.moments.mean, draws.particles.double().mean(1))


BAD = {
    "twice": ([pvi.outputs_at(POINTS), pvi.outputs_at(POINTS)], ValueError, "twice"),
    "rows": (pvi.storage.projections(MATRIX[:-1]), ValueError, rf"\[{D}, K\]"),
    "thing": ([pvi.storage.moments(), 3], TypeError, "name patterns"),
    "nothing": ([], ValueError, "match none"),
}


@pytest.mark.parametrize("why", BAD)
def test_what_cannot_be_kept_is_refused(why):
    keep, kind, words = BAD[why]
    with pytest.raises(kind, match=words):
        run(InMemory(keep=keep))


@pytest.mark.parametrize("given", [MATRIX.long(), MATRIX[0], "three", 2.5])
def test_what_is_no_matrix_is_refused_when_it_is_made(given):
    with pytest.raises(TypeError, match=r"matrix \[D, K\] or a number"):
        pvi.storage.projections(given)


def test_a_run_goes_on_from_draws_that_were_kept_in_part():
    potential = pvi.from_log_density(lambda x: -0.5 * x.square().sum(-1), 4)
    run = {"num_particles": 2, "num_draws": 3, "step_size": 0.1, "progress": False}
    whole = pvi.sample(pvi.sgld(potential), **run)
    store = pvi.storage.InMemory(keep=pvi.storage.projections(2))
    part = pvi.sample(pvi.sgld(potential), store=store, **run)
    assert torch.equal(part.last(), whole.particles[:, -1])
