"""What a step reads and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.optim.contract.cases import (
    DTYPE,
    SHAPES,
    WORKERS,
    advance,
    fresh,
    gradients,
    losses_at,
    same,
)


def given(case, params, grads, steps=2, **settings):
    """Steps on given gradients."""
    optimizer = case(params, **settings)
    for _ in range(steps):
        with case.around(optimizer):
            pass
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step(**case.arguments(torch.arange(float(WORKERS))))
    return optimizer


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_gradients_are_not_modified(case, foreach, maximize, lr):
    params = fresh()
    settings = {"weight_decay": 0.1, "decoupled_weight_decay": False}
    optimizer = case(params, lr=lr, foreach=foreach, maximize=maximize, **settings)
    losses = gradients(case, optimizer, params, 0)
    grads = [p.grad for p in params]
    before = [(g.clone(), g._version) for g in grads]
    optimizer.step(**case.arguments(losses))
    assert all(p.grad is g for p, g in zip(params, grads, strict=True))
    assert all(
        torch.equal(g, was) and g._version == version
        for g, (was, version) in zip(grads, before, strict=True)
    )


def test_a_parameter_without_gradient_is_left_alone(case):
    params = fresh()
    idle = torch.ones(WORKERS, dtype=DTYPE, requires_grad=True)
    optimizer = case([*params, idle], weight_decay=0.1)
    advance(case, optimizer, params, 2)
    assert torch.equal(idle, torch.ones(WORKERS, dtype=DTYPE))
    assert idle not in optimizer.state


def test_steps_are_counted_per_parameter(case):
    params = fresh()
    optimizer = case(params)
    advance(case, optimizer, params, 2)
    losses = gradients(case, optimizer, params, 2)
    params[0].grad = None
    optimizer.step(**case.arguments(losses))
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 3, 3]


def test_step_is_a_single_number(case):
    params = fresh()
    optimizer = case(params)
    advance(case, optimizer, params)
    step = optimizer.state[params[0]]["step"]
    assert step.shape == ()
    assert step.dtype == torch.float32


def test_no_gradient_at_all_is_no_step(case):
    params = fresh()
    given(case, params, [None] * len(params))
    assert same([p.detach() for p in params], [p.detach() for p in fresh()])


def test_sparse_gradients_are_refused_by_name(case):
    params = fresh()
    name = case.name.removeprefix("power-").partition("-")[0]
    with pytest.raises(RuntimeError, match=f"{name} takes dense gradients"):
        given(case, params, [torch.ones(shape, dtype=DTYPE).to_sparse() for shape in SHAPES])


def test_complex_parameters_move_as_pairs_of_real_numbers(case):
    generator = torch.Generator().manual_seed(3)
    point, grad = torch.randn(2, WORKERS, 4, 2, generator=generator, dtype=DTYPE)
    pair = point.clone().requires_grad_()
    number = torch.view_as_complex(point.clone()).requires_grad_()
    given(case, [pair], [grad])
    given(case, [number], [torch.view_as_complex(grad)])
    assert torch.allclose(torch.view_as_real(number.detach()), pair.detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_kept(case, dtype):
    params = fresh(dtype=dtype)
    optimizer = given(case, params, [torch.ones_like(p) for p in params])
    kinds = {v.dtype for p in params for k, v in optimizer.state[p].items() if k != "step"}
    assert {p.dtype for p in params} == {dtype}
    assert kinds <= {dtype}


@pytest.mark.parametrize("foreach", [True, False])
def test_a_group_of_mixed_dtypes(case, foreach):
    single, double = torch.zeros(WORKERS, requires_grad=True), fresh()[2]
    given(case, [single, double], [torch.ones_like(p) for p in (single, double)], foreach=foreach)
    assert single.detach().abs().min() > 0
    assert not torch.equal(double, fresh()[2])


def test_empty_parameters(case):
    empty = torch.zeros(WORKERS, 0, dtype=DTYPE, requires_grad=True)
    params = [empty, fresh()[2]]
    given(case, params, [torch.ones_like(p) for p in params])
    assert empty.shape == (WORKERS, 0)


def test_the_memory_format_is_kept(case):
    weight = torch.randn(WORKERS, 4, 2, 2).to(memory_format=torch.channels_last)
    weight.requires_grad_()
    optimizer = given(case, [weight], [torch.ones_like(weight)])
    kept = [weight, *(v for v in optimizer.state[weight].values() if v.ndim == 4)]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in kept)


def test_a_loss_scale_changes_nothing(case):
    params, others = fresh(), fresh()
    scaled, plain = case(params), case(others)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        scaled.zero_grad()
        with case.around(scaled):
            losses = losses_at(params, step)
            scaler.scale(losses.sum()).backward()
        scaler.step(scaled, **case.arguments(losses.detach()))
        scaler.update()
        advance(case, plain, others, start=step)
    assert same([p.detach() for p in params], [p.detach() for p in others])


def test_an_overflow_skips_the_step(case):
    params = fresh()
    optimizer = case(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with case.around(optimizer):
        scaler.scale(losses_at(params, 0).sum()).backward()
    params[0].grad[0] = torch.inf
    scaler.step(optimizer, **case.arguments(torch.ones(WORKERS)))
    scaler.update()
    assert same([p.detach() for p in params], [p.detach() for p in fresh()])
    assert scaler.get_scale() == 2.0**9


def test_the_graph_is_kept_through_differentiable_steps(differentiable_case):
    def end(start, lr):
        point = start.clone()
        # A setting of a parameter group, so that the point may be no leaf.
        optimizer = differentiable_case(
            [torch.zeros(3, dtype=DTYPE, requires_grad=True)], differentiable=True
        )
        group = optimizer.param_groups[0]
        group["params"], group["lr"] = [point], lr
        for step in range(3):
            point.retain_grad()
            point.grad = torch.sin(point.clone() + step) * start
            optimizer.step()
        return point

    start = torch.tensor([0.3, -1.0, 2.0], dtype=DTYPE, requires_grad=True)
    lr = torch.tensor(0.1, dtype=DTYPE, requires_grad=True)
    assert torch.autograd.gradcheck(end, (start, lr))


def test_a_differentiable_step_moves_as_any_other(differentiable_case):
    plain, kept = fresh(), [p.detach().clone().requires_grad_() for p in fresh()]
    points = [p.clone() for p in kept]
    optimizer = differentiable_case(kept, differentiable=True)
    optimizer.param_groups[0]["params"] = points
    grads = [torch.full_like(p, 0.7) for p in points]
    given(differentiable_case, plain, grads)
    for _ in range(2):
        for p, g in zip(points, grads, strict=True):
            p.grad = g
        optimizer.step()
    assert all(
        torch.allclose(p, q, rtol=1e-6, atol=1e-7) for p, q in zip(plain, points, strict=True)
    )


def test_foreach_and_differentiable_exclude_each_other(differentiable_case):
    with pytest.raises(ValueError, match="foreach"):
        differentiable_case([nn.Parameter(torch.ones(3))], foreach=True, differentiable=True)
