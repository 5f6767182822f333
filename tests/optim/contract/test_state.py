"""State: saved and loaded to the bit, copied, pickled, hooked."""

from __future__ import annotations

import copy
import io
import pickle

import torch

from tests.optim.contract.cases import advance, fresh, same


def points(params):
    return [p.detach() for p in params]


def after(case, steps):
    params = fresh()
    optimizer = case(params, weight_decay=0.01)
    advance(case, optimizer, params, steps)
    return params, optimizer


def test_state_dict_goes_on_to_the_bit(case):
    params, optimizer = after(case, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = [p.detach().clone().requires_grad_() for p in params]
    loaded = case(others, lr=0.9)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    advance(case, optimizer, params, 4, start=3)
    advance(case, loaded, others, 4, start=3)
    assert same(points(params), points(others))


def test_state_dict_is_what_was_loaded(case):
    params, optimizer = after(case, 3)
    others = [p.detach().clone().requires_grad_() for p in params]
    loaded = case(others)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    was, now = optimizer.state_dict(), loaded.state_dict()
    assert str(was) == str(now)
    assert was["state"].keys() == now["state"].keys()
    for key, state in was["state"].items():
        assert all(torch.equal(value, now["state"][key][name]) for name, value in state.items())


def test_a_settings_key_that_a_saved_state_lacks_takes_its_default(case):
    _params, optimizer = after(case, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0]["maximize"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["maximize"] is False


def test_a_deepcopy_goes_on_to_the_bit(case):
    params, optimizer = after(case, 3)
    others, copied = copy.deepcopy((params, optimizer))
    advance(case, optimizer, params, 2, start=3)
    advance(case, copied, others, 2, start=3)
    assert same(points(params), points(others))
    assert others[0] is not params[0]


def test_a_pickle_goes_on_to_the_bit(case):
    params, optimizer = after(case, 3)
    others, loaded = pickle.loads(pickle.dumps((params, optimizer)))
    advance(case, optimizer, params, 2, start=3)
    advance(case, loaded, others, 2, start=3)
    assert same(points(params), points(others))


def test_step_hooks_are_called_once(case):
    params, optimizer = after(case, 1)
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append("before"))
    optimizer.register_step_post_hook(lambda *args: calls.append("after"))
    advance(case, optimizer, params, 2, start=1)
    assert calls == ["before", "after"] * 2


def test_state_hooks_are_called_once(case):
    _, optimizer = after(case, 1)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda o: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda o, state: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: calls.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["save", "saved", "load", "loaded"]


def test_zero_grad_clears_the_gradients(case):
    params, optimizer = after(case, 1)
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad.abs().max() == 0 for p in params)
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)


def test_it_prints_its_settings(case):
    assert "lr: 0.05" in repr(case(fresh()))
