"""Runs over several processes are those of one process."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi.running.ranks import Transposed
from particlevi.tuning.here import Here, on_grid
from tests.processes import ROOT
from tests.processes import started as started_in
from tests.running import jobs

SIZES = [3, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]

started = partial(started_in, "tests.running.jobs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module", params=SIZES)
def found(request, folder):
    return started(request.param, folder / f"every{request.param}", "every")


@cache
def expected(name: str) -> dict[str, Any]:
    with torch.random.fork_rng():
        return jobs.told(jobs.runs()[name]())


@pytest.mark.parametrize("name", sorted(jobs.runs()))
def test_draws_are_those_of_one_process(found, name):
    there, here = found[0]["same_draws"][name], expected(name)
    assert there["particles"].shape == here["particles"].shape
    np.testing.assert_allclose(there["particles"], here["particles"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["rbf", "imq_adam", "linear_annealed"])
def test_stein_particles_in_different_processes_take_the_same_steps(found, name):
    there = found[0]["by_columns"][name]["particles"]
    here = jobs.transposed()[name]().particles
    np.testing.assert_allclose(there, here, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["rbf", "imq_adam", "linear_annealed"])
def test_norms_of_directions_in_different_processes_are_those_of_one(found, name):
    there, here = found[0]["by_columns"][name]["stats"], jobs.transposed()[name]().stats
    for part in ("attraction_norm", "repulsion_norm"):
        np.testing.assert_allclose(there[part], here[part], rtol=1e-11)


def test_a_transposed_step_sends_three_numbers_for_every_one_that_a_process_holds(found):
    num_particles, num_params, size = 7, 21, len(found)
    sent = sum(part["by_columns"]["sent"] for part in found.values())
    whole = 3 * num_particles * num_params
    # What stays in its process, the diagonal of the exchange, is not sent.
    assert sent == pytest.approx(whole * (1 - 1 / size), rel=0.02)


class Mirror:
    """The first of two peers; the other sends back what it is sent."""

    size, number = 2, 0

    def __init__(self):
        self.places = []

    def swap(self, flat, into, sent, received):
        self.places.append({flat.data_ptr(), into.data_ptr()})
        into.copy_(torch.cat([flat[: sent[0]], flat[: received[1]]]))


def test_messages_are_put_together_in_memory_that_is_kept():
    peers = Mirror()
    exchange, rows = Transposed(peers, 4, 6), torch.arange(12.0).view(2, 6)
    columns = exchange.to_columns([rows, -rows])
    found = exchange.to_rows(columns)
    exchange.to_columns(found)
    assert len(set.intersection(*peers.places)) == 1
    for sign, each, back in zip((1, -1), columns, found, strict=True):
        assert torch.equal(each[:2], sign * rows[:, :3])
        assert torch.equal(back[:, :3], sign * rows[:, :3])


def test_chains_make_their_steps_in_blocks_between_two_looks(found):
    for part in found.values():
        lengths = part["in_blocks"]["lengths"]
        assert sum(lengths) == 7 * jobs.SHORT["num_draws"]
        assert max(lengths) > 1
    assert found[0]["in_blocks"]["looked"] == list(range(5, 42, 5))


def test_blocks_of_steps_over_processes_give_the_draws_of_one(found):
    here = pvi.sample(pvi.sgld(jobs.net()), jobs.data(), **jobs.SHORT, batch_size=8, thin=7)
    there = found[0]["in_blocks"]["particles"]
    np.testing.assert_allclose(there, here.particles.numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("how", ["gathered", "columns"])
def test_steps_that_processes_make_together_are_not_compiled(found, how):
    for part in found.values():
        assert part["never_compiled"][how]["error"] == "ValueError"
        assert "make one step together" in part["never_compiled"][how]["message"]


@pytest.mark.slow
def test_what_is_tuned_over_processes_has_the_law_of_one_process(folder):
    """The path is another, since warm-ups amplify rounding; the posterior is the same."""
    there = started(2, folder / "automatic", "automatic")[0]["particles"]
    here = jobs.automatic(0)["particles"]
    means, errors = [], []
    for draws in (there, here):
        ess = np.asarray(pvi.Draws.from_tensor(torch.tensor(draws)).ess())
        means.append(draws.mean((0, 1)))
        errors.append(draws.std((0, 1)) / ess**0.5)
    z = (means[0] - means[1]) / np.hypot(*errors)
    assert np.abs(z).max() < 4


@pytest.mark.parametrize("name", ["sgld", "hmc_tuned", "svgd", "tempering"])
def test_what_is_known_of_the_draws_is_that_of_one_process(found, name):
    there, here = found[0]["same_draws"][name], expected(name)
    assert {k: v.shape for k, v in there["stats"].items()} == {
        k: v.shape for k, v in here["stats"].items()
    }
    assert there["chains"] == here["chains"]
    assert there["gradients"] == here["gradients"]


def test_every_other_process_has_its_own_chains(found):
    chains = [part["same_draws"]["sgld"]["chains"] for part in found.values()]
    assert chains[0] == list(range(jobs.P))
    others = [chain for part in chains[1:] for chain in part]
    assert others == list(range(jobs.P // len(found), jobs.P))


def test_sharded_draws_stay_where_they_were_made(found):
    whole = expected("sgld")["particles"]
    parts = [part["sharded"]["chains"] for part in found.values()]
    assert [chain for part in parts for chain in part["chains"]] == list(range(jobs.P))
    for part in parts:
        assert len(part["chains"]) < jobs.P
        np.testing.assert_array_equal(part["particles"], whole[part["chains"]])


def test_a_rule_sees_the_draws_of_all_where_they_are_sharded(found):
    assert set(found[0]["sharded"]["seen"]) == {jobs.P}


def test_particles_that_see_each_other_are_in_every_process(found):
    for part in found.values():
        assert part["sharded"]["coupled"]["chains"] == list(range(jobs.P))


def test_a_chain_that_is_lost_keeps_its_number(found):
    lost = found[0]["lost_chain"]
    assert list(lost["diverged"]) == [4]
    assert lost["chains"] == [0, 1, 2, 3, 5]


def test_the_process_of_a_lost_chain_names_it(found):
    warned = [part["lost_chain"]["warnings"] for part in found.values()]
    assert any("Chains diverged: 4 (step" in text for told in warned for text in told)


def test_a_run_without_chains_left_ends_in_every_process(found):
    assert {part["all_lost"]["error"] for part in found.values()} == {"DivergenceError"}


def test_a_run_can_follow_one_that_failed_everywhere(found):
    np.testing.assert_array_equal(
        found[0]["again"]["particles"], found[0]["same_draws"]["sgld"]["particles"]
    )


def test_other_data_in_one_process_are_refused_in_all(found):
    told = {part["other_data"]["message"] for part in found.values()}
    assert len(told) == 1
    assert "do not have the same data: process 1 differs" in told.pop()


def test_fewer_particles_than_processes_are_refused(found):
    assert all("cannot be spread over" in part["few"]["message"] for part in found.values())


def test_masks_that_processes_would_repeat_are_refused(found):
    assert all("repeat each other's" in part["masks"]["message"] for part in found.values())


def test_a_rule_sees_the_draws_of_all(found):
    alone = jobs.rules(0)
    assert found[0]["rules"]["ended_by"] == alone["ended_by"]


def test_a_rule_is_asked_in_the_first_process_only(found):
    assert [bool(part["rules"]["seen"]) for part in found.values()] == [True] + [False] * (
        len(found) - 1
    )


def test_one_process_may_sample_alone(found):
    np.testing.assert_array_equal(
        found[jobs.VICTIM]["one_only"]["particles"], expected("sgld")["particles"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgld", "svgd"])
@pytest.mark.parametrize("size", [2, 4])
def test_data_are_spread_over_the_second_axis_of_a_mesh(folder, size, name):
    parts = started(size, folder / f"mesh{size}", "mesh")
    np.testing.assert_allclose(
        parts[0][name]["particles"], expected(name)["particles"], rtol=1e-9, atol=1e-12
    )


@pytest.fixture(scope="module")
def failed(folder):
    return started(3, folder / "failure", "failure")


def test_an_error_in_one_process_is_told_in_the_others(failed):
    for number in (0, 2):
        assert failed[number]["error"] == "ProcessLostError"
        assert "process 1 (ValueError: log_density failed" in failed[number]["message"]
        assert "the disk is gone" in failed[number]["message"]


def test_an_error_in_one_process_costs_no_draws(failed):
    assert [part["draws"] for part in failed.values()] == [[2, 100, 2], [2, 91, 2], [2, 100, 2]]


def test_a_process_that_dies_is_named(folder):
    left = started(3, folder / "death", "death")
    assert sorted(left) == [0, 2]
    for part in left.values():
        assert "process 1 (it died or was killed)" in part["message"]
        assert part["draws"] == [2, 100, 2]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (3, 2),
        pytest.param(1, 3, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_is_gone_on_with_by_any_number_of_processes(folder, first, second):
    place = str(folder / f"from{first}")
    found = [
        jobs.saved(0, place) if first == 1 else started(first, folder / "s", "saved", place)[0],
        jobs.resumed(0, place)
        if second == 1
        else started(second, folder / "r", "resumed", place)[0],
    ]
    for name, (sampler, options) in jobs.resumable().items():
        whole = pvi.sample(sampler, jobs.data(), **jobs.QUIET, num_particles=jobs.P, **options)
        after = found[1][name]["particles"]
        assert found[0][name]["ended_by"] == "half way"
        if name == "tuned":
            np.testing.assert_allclose(after, whole.particles, rtol=1e-9)
        else:
            np.testing.assert_array_equal(after, whole.particles)
        if name == "kept":
            np.testing.assert_array_equal(found[1][name]["mean"], whole.moments.mean)
            np.testing.assert_array_equal(found[1][name]["end"], whole.end)


def test_torchrun_spreads_a_script_that_knows_nothing_of_it(folder):
    script = folder / "script.py"
    script.write_text(
        "import pickle, sys\n"
        "from tests.running import jobs\n"
        "found = jobs.told(jobs.runs()['sgld']())\n"
        "if len(found['chains']) == jobs.P:\n"
        "    open(sys.argv[1], 'wb').write(pickle.dumps(found))\n"
    )
    place = folder / "torchrun"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
            *("--master-port=0", "--standalone", str(script), str(place)),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = pickle.loads(place.read_bytes())
    np.testing.assert_array_equal(found["particles"], expected("sgld")["particles"])


def test_an_unknown_choice_of_processes_is_refused():
    with pytest.raises(ValueError, match=r"processes.* must be one of 'all', 'one'"):
        pvi.sample(pvi.sgld(jobs.net()), jobs.data(), **jobs.SHORT, processes="some")


def test_sums_do_not_depend_on_who_adds_first():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(501, 7, generator=generator, dtype=torch.float64)
    values *= torch.randn(501, 1, generator=generator, dtype=torch.float64).exp() ** 3
    rounded = Here().grid(values)
    halves = rounded[:17].sum(0) + rounded[17:].flip(0).sum(0)
    assert torch.equal(halves, rounded.sum(0))
    assert not torch.equal(values[:17].sum(0) + values[17:].flip(0).sum(0), values.sum(0))


def test_the_grid_is_as_fine_as_it_says():
    values = torch.tensor([3.0, 1 / 3])
    rounded = on_grid(values, torch.tensor(3.0), 20)
    assert float((rounded - values.double()).abs().max()) <= 4 * 2.0**-21
