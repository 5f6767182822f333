"""What a step does with settings, closures and learning rates."""

from __future__ import annotations

import pytest
import torch

from tests.optim.contract.cases import (
    DTYPE,
    advance,
    close,
    fresh,
    gradients,
    losses_at,
    ran,
    same,
)


def test_a_step_moves_every_parameter(case):
    assert not any(torch.equal(a, b) for a, b in zip(ran(case), fresh(), strict=True))


def test_groups_have_their_own_lr(case):
    params = fresh()
    groups = [{"params": params[:1], "lr": 0.0, **case.still}, {"params": params[1:]}]
    optimizer = case(groups)
    advance(case, optimizer, params, 3)
    moved = [not torch.equal(p, q) for p, q in zip(params, fresh(), strict=True)]
    assert moved == [False, True, True]


def test_groups_have_their_own_weight_decay(case):
    decayed, plain = fresh(), fresh()
    groups = [{"params": decayed[:1], "weight_decay": 0.3}, {"params": decayed[1:]}]
    advance(case, case(groups), decayed)
    groups = [{"params": plain[:1]}, {"params": plain[1:]}]
    advance(case, case(groups), plain)
    equal = [torch.equal(p, q) for p, q in zip(decayed, plain, strict=True)]
    assert equal == [False, True, True]


def test_a_group_added_later_has_the_defaults(case):
    params = fresh()
    optimizer = case(params[:1])
    optimizer.add_param_group({"params": params[1:]})
    names = optimizer.param_groups[0].keys() & optimizer.defaults.keys()
    assert names <= optimizer.param_groups[1].keys()
    advance(case, optimizer, params)
    assert not any(torch.equal(p, q) for p, q in zip(params, fresh(), strict=True))


def test_named_parameters_change_nothing(case):
    params = fresh()
    advance(case, case(list(zip("abc", params, strict=True))), params, 5)
    assert same([p.detach() for p in params], ran(case))


def test_names_are_in_the_state_dict(case):
    optimizer = case(list(zip("abc", fresh(), strict=True)))
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["a", "b", "c"]


def test_closure_gives_the_same_iterates(case):
    params = fresh()
    optimizer = case(params)
    for step in range(5):

        def closure(step=step):
            optimizer.zero_grad()
            losses = losses_at(params, step)
            losses.sum().backward()
            return losses

        optimizer.step(closure)
    assert same([p.detach() for p in params], ran(case))


def test_step_returns_the_loss_of_the_closure(case):
    params = fresh()
    optimizer = case(params)
    losses = losses_at(params, 0)

    def closure():
        losses.sum().backward()
        return losses

    assert optimizer.step(closure) is losses


def test_step_without_a_closure_returns_none(case):
    params = fresh()
    optimizer = case(params)
    losses = gradients(case, optimizer, params, 0)
    assert optimizer.step(**case.arguments(losses)) is None


def test_closure_runs_with_gradients_under_no_grad(case):
    params = fresh()
    optimizer = case(params)

    def closure():
        optimizer.zero_grad()
        losses = losses_at(params, 0)
        losses.sum().backward()
        return losses

    with torch.no_grad():
        optimizer.step(closure)
    assert not same([p.detach() for p in params], fresh())


@pytest.mark.parametrize("enabled", [True, False])
def test_the_grad_mode_is_left_as_it_was(case, enabled):
    params = fresh()
    optimizer = case(params)
    losses = gradients(case, optimizer, params, 0)
    with torch.set_grad_enabled(enabled):
        optimizer.step(**case.arguments(losses))
        assert torch.is_grad_enabled() is enabled


def test_maximising_is_minimising_the_negative(case, monkeypatch):
    up = ran(case, maximize=True)
    monkeypatch.setattr(
        "tests.optim.contract.cases.losses_at", lambda params, step: -losses_at(params, step)
    )
    assert same(up, ran(case))


def test_foreach_changes_nothing(case):
    assert same(ran(case, foreach=True), ran(case, foreach=False))


def test_capturable_changes_nothing_but_rounding(case):
    assert close(ran(case, capturable=True), ran(case), 1e-6)


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("foreach", [True, False])
def test_tensor_lr_is_as_a_number(case, shape, foreach):
    lr = torch.full(shape, 0.05, dtype=DTYPE)
    assert close(ran(case, lr=lr, foreach=foreach), ran(case))
    assert lr.unique().item() == 0.05


@pytest.mark.parametrize("as_tensor", [True, False])
def test_a_scheduler_sets_the_lr(case, as_tensor):
    params, others = fresh(), fresh()
    lr = torch.tensor(0.05, dtype=DTYPE) if as_tensor else 0.05
    scheduled, by_hand = case(params, lr=lr), case(others)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(scheduled, 0.5)
    for step in range(4):
        advance(case, scheduled, params, start=step)
        scheduler.step()
        by_hand.param_groups[0]["lr"] = 0.05 * 0.5**step
        advance(case, by_hand, others, start=step)
    assert close(params, others)


def test_decoupled_weight_decay_shrinks_the_point_first(case):
    params = fresh()
    optimizer = case(params, weight_decay=0.4)
    losses = gradients(case, optimizer, params, 0)
    shrunk = [p.detach().clone() * (1 - 0.05 * 0.4) for p in params]
    grads = [p.grad.clone() for p in params]
    optimizer.step(**case.arguments(losses))

    for p, q in zip(others := fresh(), shrunk, strict=True):
        p.data.copy_(q)
    plain = case(others)
    gradients(case, plain, others, 0)
    for p, g in zip(others, grads, strict=True):
        p.grad = g
    plain.step(**case.arguments(losses))
    assert close(params, others, 1e-15)


def test_coupled_weight_decay_is_part_of_the_gradient(case):
    if case.mixes_gradients:
        pytest.skip("weight decay is added to what was made of the gradients")
    params, others = fresh(), fresh()
    coupled = case(params, weight_decay=0.4, decoupled_weight_decay=False)
    advance(case, coupled, params)
    plain = case(others)
    losses = gradients(case, plain, others, 0)
    for p in others:
        p.grad = p.grad + 0.4 * p.detach()
    plain.step(**case.arguments(losses))
    assert close(params, others, 1e-15)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -0.1}, "lr"),
        ({"lr": torch.tensor([0.1, 0.2])}, "one element"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_bad_settings_are_refused(case, settings, message):
    with pytest.raises(ValueError, match=message):
        case(fresh(), **settings)


def test_no_parameters_are_refused(case):
    with pytest.raises(ValueError, match="empty"):
        case([])
