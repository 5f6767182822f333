"""torch.compile of a step."""

from __future__ import annotations

import torch
from torch._dynamo.testing import CompileCounter

from tests.optim.contract.cases import advance, close, fresh


class Stepped:
    """An optimiser whose step is compiled."""

    def __init__(self, optimizer, step):
        self.inner, self.step = optimizer, step

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_a_compiled_step_has_no_graph_break_and_the_same_iterates(case):
    torch.compiler.reset()
    params, others = fresh(), fresh()
    counter = CompileCounter()
    settings = {"weight_decay": 0.1, "lr": torch.tensor(0.05, dtype=torch.float64)}
    compiled, plain = case(params, **settings), case(others, **settings)
    step = torch.compile(compiled.step, fullgraph=True, backend=counter)
    advance(case, Stepped(compiled, step), params, 5)
    advance(case, plain, others, 5)
    assert close(params, others, 1e-6)
    assert counter.frame_count <= 2  # without and with state


def test_a_new_lr_compiles_nothing_new(case):
    torch.compiler.reset()
    params = fresh()
    counter = CompileCounter()
    optimizer = case(params, lr=torch.tensor(0.05, dtype=torch.float64))
    compiled = Stepped(optimizer, torch.compile(optimizer.step, fullgraph=True, backend=counter))
    advance(case, compiled, params, 3)
    before = counter.frame_count
    for step, lr in enumerate([0.04, 0.03], start=3):
        optimizer.param_groups[0]["lr"].fill_(lr)
        advance(case, compiled, params, start=step)
    assert counter.frame_count == before
