"""Leader and safeguard SGD over four processes are what they are over four rows of one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from particlevi.optim import Processes
from tests.optim.processes import SIZE, VICTIM, in_one_process
from tests.processes import run

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = [n for n in range(SIZE) if n != VICTIM]


@pytest.fixture(scope="module")
def found():
    told = run(sys.executable, "-m", "tests.optim.processes")
    return json.loads(told.splitlines()[-1])  # gloo of torch 2.9 tells its connections first


@pytest.fixture(scope="module")
def expected():
    return in_one_process()


def test_all_but_the_one_that_died_come_to_the_end(found):
    assert sorted(map(int, found)) == SURVIVORS


@pytest.mark.parametrize("number", SURVIVORS)
@pytest.mark.parametrize("part", ["led", "sign", "nan", "death"])
def test_processes_take_the_path_of_rows(found, expected, part, number):
    assert found[str(number)][part]["point"] == pytest.approx(
        expected[part]["point"][number], rel=1e-12, abs=1e-14
    )


@pytest.mark.parametrize("number", SURVIVORS)
@pytest.mark.parametrize(
    ("part", "bad"), [("sign", SIZE - 1), ("nan", SIZE - 1), ("death", VICTIM)]
)
def test_the_bad_worker_is_removed_in_every_process(found, part, bad, number):
    assert found[str(number)][part]["good"] == [n != bad for n in range(SIZE)]


@pytest.mark.parametrize("number", SURVIVORS)
def test_no_step_is_lost_to_a_death(found, expected, number):
    assert found[str(number)]["death"]["steps"] == expected["death"]["steps"]


@pytest.mark.parametrize("number", SURVIVORS)
def test_the_average_of_processes_is_that_of_rows(found, expected, number):
    assert found[str(number)]["led"]["average"] == pytest.approx(expected["led"]["average"][0])
    assert found[str(number)]["led"]["back"]


@pytest.mark.slow
def test_torchrun_starts_the_workers(tmp_path, expected):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={SIZE}"]
    run(sys.executable, *launcher, "-m", "tests.optim.processes", str(tmp_path))
    for number in range(SIZE):
        found = json.loads((tmp_path / str(number)).read_text())
        for part in ("led", "sign"):
            assert torch.allclose(
                torch.tensor(found[part]["point"]), torch.tensor(expected[part]["point"][number])
            )


def test_processes_need_a_process_group():
    with pytest.raises(RuntimeError, match="init_process_group"):
        Processes()
