"""Losses one datum at a time: weights, ignored targets, smoothing, models that need a loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from tests.noise.test_covariance import N, data, net

W = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)


def measured(loss_fn, targets=None):
    x, y = data()
    return pvi.noise.measure(net(), (x, y if targets is None else targets), loss_fn=loss_fn)


def full_gradient(loss: torch.Tensor, module: nn.Module) -> torch.Tensor:
    module.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()]).clone()


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_weights_do_not_cancel(reduction):
    x, y = data()
    noise = measured(nn.CrossEntropyLoss(weight=W, reduction=reduction))
    module = net().eval()
    plain = nn.functional.cross_entropy(module(x), y, reduction="none")
    wanted = full_gradient((W[y] * plain).sum() / N, module)
    assert torch.allclose(noise.gradient, wanted, atol=1e-12)
    rows = torch.cat(list(noise.per_sample()))
    unweighted = torch.cat(list(measured(nn.functional.cross_entropy).per_sample()))
    assert torch.allclose(rows, W[y][:, None] * unweighted, atol=1e-12)


def test_weights_divided_by_their_mean_keep_the_scale_of_the_weighted_mean():
    x, y = data()
    noise = measured(nn.CrossEntropyLoss(weight=W / W[y].mean(), reduction="none"))
    module = net().eval()
    wanted = full_gradient(nn.CrossEntropyLoss(weight=W)(module(x), y), module)
    assert torch.allclose(noise.gradient, wanted, atol=1e-12)


def test_a_mean_over_weights_is_refused_with_the_way_out():
    for loss_fn in (
        nn.CrossEntropyLoss(weight=W),
        nn.CrossEntropyLoss(weight=W, label_smoothing=0.1),
        lambda out, y: nn.functional.cross_entropy(out, y, weight=W),
    ):
        with pytest.raises(ValueError, match='reduction="none"'):
            measured(loss_fn)


def test_ignored_targets():
    x, y = data()
    partly = torch.where(torch.arange(N) % 5 == 0, -100, y)
    with pytest.raises(ValueError, match="ignored"):
        measured(nn.CrossEntropyLoss(), partly)
    noise = measured(nn.CrossEntropyLoss(reduction="none"), partly)
    rows = torch.cat(list(noise.per_sample()))
    assert rows[::5].abs().max() == 0
    module = net().eval()
    wanted = full_gradient(nn.CrossEntropyLoss(reduction="sum")(module(x), partly) / N, module)
    assert torch.allclose(noise.gradient, wanted, atol=1e-12)


def test_ignored_targets_of_the_last_datum_alone_are_seen():
    _, y = data()
    last = y.clone()
    last[-1] = -100
    with pytest.raises(ValueError, match="ignored"):
        measured(nn.CrossEntropyLoss(), last)


def test_smoothing_is_a_mean_of_the_data():
    x, y = data()
    noise = measured(nn.CrossEntropyLoss(label_smoothing=0.2))
    module = net().eval()
    wanted = full_gradient(nn.CrossEntropyLoss(label_smoothing=0.2)(module(x), y), module)
    assert torch.allclose(noise.gradient, wanted, atol=1e-12)


class Recurrent(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body, self.head = body, nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.body(x)[0][:, -1])


class Cells(nn.Module):
    """A cell in a loop over steps."""

    def __init__(self, kind: type[nn.RNNCellBase]):
        super().__init__()
        self.cell, self.head = kind(2, 3), nn.Linear(3, 1)

    def forward(self, x):
        states = None
        for step in x.unbind(1):
            states = self.cell(step, states)
        return self.head(states[0] if isinstance(states, tuple) else states)


class Branching(Recurrent):
    """Looks at its inputs, which ``vmap`` does not let it do."""

    def forward(self, x):
        return super().forward(x) if bool(x.isfinite().all()) else super().forward(0 * x)


def sequences(module: nn.Module):
    """The noise of a module on five sequences, and its gradients ``[5, D]`` one by one."""
    torch.manual_seed(0)
    module = module.double()
    x, y = torch.randn(5, 4, 2).double(), torch.randn(5, 1).double()
    rows = [
        full_gradient(nn.functional.mse_loss(module(x[k : k + 1]), y[k : k + 1]), module)
        for k in range(5)
    ]
    noise = pvi.noise.measure(module, (x, y), loss_fn=nn.functional.mse_loss)
    return noise, torch.stack(rows)


RECURRENT = {
    "rnn": lambda: Recurrent(nn.RNN(2, 3, batch_first=True)),
    "lstm": lambda: Recurrent(nn.LSTM(2, 5, proj_size=3, batch_first=True)),
    "gru of two layers": lambda: Recurrent(nn.GRU(2, 3, 2, batch_first=True)),
    "gru cell": lambda: Cells(nn.GRUCell),
    "lstm cell": lambda: Cells(nn.LSTMCell),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_modules_are_vectorised_over_data(name):
    noise, rows = sequences(RECURRENT[name]())
    assert not noise.samples.looping
    assert torch.allclose(torch.cat(list(noise.per_sample())), rows, atol=1e-12)


@pytest.mark.parametrize(
    "make", [*RECURRENT.values(), lambda: Branching(nn.GRU(2, 3, batch_first=True))]
)
def test_products_with_the_noise_of_sequences(make):
    noise, rows = sequences(make())
    v = torch.randn(noise.num_params).double()
    assert torch.allclose(noise.slopes(v), rows @ v, atol=1e-10)


def test_modules_that_vmap_does_not_know_go_one_datum_at_a_time():
    noise, rows = sequences(Branching(nn.GRU(2, 3, batch_first=True)))
    assert noise.samples.looping
    assert torch.allclose(noise.dense(), torch.cov(rows.T, correction=0), atol=1e-12)


def test_recurrent_modules_with_masks_go_one_datum_at_a_time():
    torch.manual_seed(0)
    module = Recurrent(nn.GRU(2, 3, 2, dropout=0.5, batch_first=True)).double()
    x, y = torch.randn(5, 4, 2).double(), torch.randn(5, 1).double()
    noise = pvi.noise.measure(module, (x, y), loss_fn=nn.functional.mse_loss, mode="train")
    rows = torch.cat(list(noise.per_sample()))
    v = torch.randn(noise.num_params).double()
    assert torch.allclose(noise.slopes(v), rows @ v, atol=1e-10)


def test_modules_that_mix_their_data_are_refused():
    class Mixing(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    x, y = data()
    with pytest.raises(ValueError, match="depend on the others"):
        pvi.noise.measure(Mixing(4, 3).double(), (x, y), loss_fn=nn.functional.cross_entropy)


def test_modules_without_one_output_per_datum():
    with pytest.raises(ValueError, match="one output per datum"):
        pvi.noise.measure(
            nn.Sequential(nn.Linear(4, 3).double(), nn.Flatten(0)),
            data(),
            loss_fn=nn.functional.cross_entropy,
        )
