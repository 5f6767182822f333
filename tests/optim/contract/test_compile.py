"""torch.compile of a step."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.optim.contract.cases import CASES, advance, close, fresh


class Stepped:
    """An optimiser whose step is compiled."""

    def __init__(self, optimizer, step):
        self.inner, self.step = optimizer, step

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Run(NamedTuple):
    """Five compiled steps and two more at other learning rates."""

    params: list[torch.Tensor]
    expected: list[torch.Tensor]
    graphs: int
    graphs_of_a_new_lr: int


@functools.cache
def run(name):
    case = next(case for case in CASES if case.name == name)
    torch.compiler.reset()
    counter = CompileCounter()
    ends, graphs = [], []
    for compiles in (True, False):
        params = fresh()
        optimizer = case(params, weight_decay=0.1, lr=torch.tensor(0.05, dtype=torch.float64))
        if compiles:
            step = torch.compile(optimizer.step, fullgraph=True, backend=counter)
            optimizer = Stepped(optimizer, step)
        for k in range(7):
            if k >= 5:
                optimizer.param_groups[0]["lr"].fill_(0.05 / k)
            advance(case, optimizer, params, start=k)
            graphs.append(counter.frame_count)
        ends.append(params)
    return Run(*ends, graphs[4], graphs[6] - graphs[4])


def test_a_compiled_step_has_no_graph_break_and_the_same_iterates(case):
    # fullgraph=True makes of any graph break an error.
    found = run(case.name)
    assert close(found.params, found.expected, 1e-6)


def test_a_step_is_compiled_without_state_and_with_it(case):
    assert 1 <= run(case.name).graphs <= 2


def test_a_new_lr_compiles_nothing_new(case):
    assert run(case.name).graphs_of_a_new_lr == 0


# Inductor lowers the product of matrices with a function that torch has deprecated.
@pytest.mark.filterwarnings("ignore:`torch._prims_common.check`:FutureWarning")
@pytest.mark.slow
def test_inductor_compiles_it(case):
    torch.compiler.reset()
    ends = []
    for compiles in (True, False):
        params = fresh()
        optimizer = case(params, lr=torch.tensor(0.05, dtype=torch.float64))
        if compiles:
            optimizer = Stepped(optimizer, torch.compile(optimizer.step, fullgraph=True))
        advance(case, optimizer, params, 3)
        ends.append(params)
    assert close(*ends, 1e-6)
