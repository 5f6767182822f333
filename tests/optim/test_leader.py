"""Leader SGD over the particle axis."""

from __future__ import annotations

import math

import pytest
import torch

from particlevi.optim import LeaderSGD
from tests.optim.baselines import elastic_step

DTYPE = torch.float64


def workers(*values):
    return torch.tensor(values, dtype=DTYPE, requires_grad=True)


def descend(optimizer, x, steps, curvature=1.0):
    """Steps on ``h |x|^2 / 2`` without noise."""
    for _ in range(steps):
        optimizer.zero_grad()
        losses = curvature * x.square().reshape(len(x), -1).sum(1) / 2
        losses.sum().backward()
        optimizer.step(loss=losses)
    return x.detach()


def test_the_first_step_of_two_workers():
    x = workers(1.0, 3.0)
    found = descend(LeaderSGD([x], lr=0.1, pull=0.5), x, 1)
    assert found.tolist() == pytest.approx([0.9, 1.8], abs=1e-15)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_the_spread_shrinks_by_a_law(steps):
    lr, pull, curvature = 0.1, 0.5, 0.7
    x = workers(1.0, 3.0)
    found = descend(LeaderSGD([x], lr=lr, pull=pull), x, steps, curvature)
    spread = 2 * ((1 - lr * curvature) * (1 - pull)) ** steps
    assert float(found[1] - found[0]) == pytest.approx(spread, rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_leader_follows_plain_sgd_to_the_bit(momentum, nesterov):
    if nesterov and not momentum:
        pytest.skip("Nesterov's momentum needs a momentum")
    x, y = workers([1.0, 0.3], [3.0, -2.0]), workers(1.0, 0.3)
    settings = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.01}
    led = LeaderSGD([x], pull=0.3, **settings)
    plain = torch.optim.SGD([y], **settings)
    for _ in range(30):
        led.zero_grad()
        plain.zero_grad()
        losses = x.pow(4).sum(1)
        losses.sum().backward()
        y.pow(4).sum().backward()
        led.step(loss=losses)
        plain.step()
        assert torch.equal(x[0], y)


def test_the_centre_of_elastic_averaging_moves_where_a_leader_stays():
    # The leader stands at the minimum of its loss; other workers do not.
    at = torch.tensor([0.0, 3.0], dtype=DTYPE)
    x = at.clone().requires_grad_()
    led = descend(LeaderSGD([x], lr=0.1, pull=0.5), x, 1)
    assert led[0] == 0.0
    _, centre = elastic_step(at[:, None], torch.zeros(1, dtype=DTYPE), at[:, None], 0.1, 0.5)
    assert float(centre) == pytest.approx(1.5)


def test_elastic_averaging_is_not_stationary_where_a_worker_is():
    at = torch.tensor([[0.0], [3.0]], dtype=DTYPE)
    moved, _ = elastic_step(at, at.mean(0), at, 0.1, 0.5)
    assert float(moved[0]) > 0.5


def test_pulls_come_every_period():
    x = workers(1.0, 3.0)
    optimizer = LeaderSGD([x], lr=0.0, pull=0.5, period=3)
    seconds = [float(descend(optimizer, x, 1)[1]) for _ in range(7)]
    assert seconds == [3.0, 3.0, 2.0, 2.0, 2.0, 1.5, 1.5]


def test_between_two_pulls_workers_go_to_where_the_leader_was():
    x = workers(1.0, 3.0)
    optimizer = LeaderSGD([x], lr=0.0, pull=0.5, period=3, stale_pull=0.3)
    seconds = [float(descend(optimizer, x, 1)[1]) for _ in range(6)]
    assert seconds == pytest.approx([3.0, 3.0, 2.0, 1.9, 1.81, 1.405])


def test_the_leader_too_is_held_back_by_its_old_place():
    x = workers(1.0, 3.0)
    optimizer = LeaderSGD([x], lr=0.1, pull=0.0, period=2, stale_pull=0.4)
    descend(optimizer, x, 2)
    old = 0.9**2
    assert x.detach().tolist() == pytest.approx([old, 3 * old])
    descend(optimizer, x, 1)
    assert x.detach().tolist() == pytest.approx([0.8 * 0.9 * v + 0.2 * old for v in (old, 3 * old)])


def test_old_leaders_of_groups_and_of_all():
    """By hand: a global pull of old first, then the group's."""
    x = workers(1.0, 3.0, 10.0, 8.0)
    settings = {"pull": 0.0, "global_pull": 0.0, "num_groups": 2, "period": 2, "global_period": 2}
    optimizer = LeaderSGD([x], lr=0.0, stale_pull=0.2, global_stale_pull=0.5, **settings)
    assert descend(optimizer, x, 2).tolist() == [1.0, 3.0, 10.0, 8.0]
    near_all = [1 + 0.75 * (v - 1) for v in (1.0, 3.0, 10.0, 8.0)]
    leaders = (1.0, 1.0, 8.0, 8.0)
    expected = [v + 0.1 * (own - v) for v, own in zip(near_all, leaders, strict=True)]
    assert descend(optimizer, x, 1).tolist() == pytest.approx(expected)


def test_groups_follow_their_own_leader():
    x = workers(1.0, 3.0, 10.0, 8.0)
    found = descend(LeaderSGD([x], lr=0.0, pull=0.5, num_groups=2), x, 1)
    assert found.tolist() == [1.0, 2.0, 9.0, 8.0]


def test_global_pulls_follow_the_leader_of_all():
    x = workers(1.0, 3.0, 10.0, 8.0)
    settings = {"pull": 0.5, "num_groups": 2, "global_pull": 0.25, "global_period": 2}
    optimizer = LeaderSGD([x], lr=0.0, **settings)
    assert descend(optimizer, x, 1).tolist() == [1.0, 2.0, 9.0, 8.0]
    assert descend(optimizer, x, 1).tolist() == [1.0, 1.375, 6.625, 6.25]


def given_losses(optimizer, x, losses):
    for loss in losses:
        x.grad = torch.zeros_like(x)
        optimizer.step(loss=torch.tensor(loss, dtype=DTYPE))


def test_the_running_loss_is_the_mean_of_the_last_steps():
    x = workers(1.0, 3.0)
    optimizer = LeaderSGD([x], window=3)
    given_losses(optimizer, x, [[9.0, 1.0], [4.0, 5.0], [2.0, 2.0], [0.0, 8.0]])
    assert optimizer.running_losses().tolist() == [2.0, 5.0]


def test_the_running_loss_is_not_biased_towards_zero():
    x = workers(1.0, 3.0)
    optimizer = LeaderSGD([x], window=100)
    given_losses(optimizer, x, [[4.0, 2.0], [4.0, 4.0]])
    assert optimizer.running_losses().tolist() == [4.0, 3.0]


def test_a_worker_with_a_nan_loss_does_not_lead():
    x = workers(1.0, 3.0)
    optimizer = LeaderSGD([x], lr=0.0, pull=0.5)
    given_losses(optimizer, x, [[math.nan, 7.0]])
    assert x.tolist() == [2.0, 3.0]


def test_momentum_is_left_alone_by_the_pull():
    x = workers(1.0, 3.0)
    optimizer = LeaderSGD([x], lr=0.1, pull=0.5, momentum=0.9)
    descend(optimizer, x, 1)
    assert optimizer.state[x]["momentum_buffer"].tolist() == [1.0, 3.0]


def test_the_average_is_offered_and_taken_back_to_the_bit():
    x = workers([0.1, 0.2], [0.4, 0.7])
    optimizer = LeaderSGD([x])
    before = x.detach().clone()
    with optimizer.averaged():
        assert torch.allclose(x, torch.tensor([0.25, 0.45], dtype=DTYPE).expand(2, 2))
    assert torch.equal(x.detach(), before)


def test_buffers_are_averaged_on_request_only():
    x = workers(1.0, 3.0)
    running, count = torch.tensor([0.0, 4.0]), torch.tensor([3, 5])
    optimizer = LeaderSGD([x], pull=0.5)
    descend(optimizer, x, 3)
    assert running.tolist() == [0.0, 4.0]
    with optimizer.averaged([running, count]):
        assert running.tolist() == [2.0, 2.0]
        assert count.tolist() == [3, 5]
    assert running.tolist() == [0.0, 4.0]


def test_several_parameters_follow_one_leader():
    x, y = workers(1.0, 3.0), workers([5.0], [1.0])
    optimizer = LeaderSGD([x, y], lr=0.0, pull=0.5)
    for p in (x, y):
        p.grad = torch.zeros_like(p)
    optimizer.step(loss=torch.tensor([0.0, 1.0]))
    assert (x.tolist(), y.tolist()) == ([1.0, 2.0], [[5.0], [3.0]])


def test_a_step_without_its_loss_is_refused():
    x = workers(1.0, 3.0)
    with pytest.raises(RuntimeError, match="loss"):
        LeaderSGD([x]).step()


def test_losses_of_the_wrong_number_are_refused():
    x = workers(1.0, 3.0)
    with pytest.raises(ValueError, match="2 workers are here"):
        LeaderSGD([x]).step(loss=torch.ones(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pull": 1.0}, "pull"),
        ({"stale_pull": 1.0}, "stale_pull"),
        ({"pull": 0.6, "global_pull": 0.5}, "pull"),
        ({"period": 0}, "period"),
        ({"window": 0}, "window"),
        ({"num_groups": 3}, "3 groups"),
        ({"momentum": 1.0}, "momentum"),
        ({"nesterov": True}, "nesterov"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LeaderSGD([workers(1.0, 3.0)], **settings)


def test_parameters_without_a_common_first_axis_are_refused():
    with pytest.raises(ValueError, match="first axis"):
        LeaderSGD([workers(1.0, 3.0), workers(1.0, 2.0, 3.0)])
