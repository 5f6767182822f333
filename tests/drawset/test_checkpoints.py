"""Draws from the files that a training leaves behind."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import particlevi as pvi


def make(batch_norm=False):
    middle = [nn.BatchNorm1d(4)] if batch_norm else []
    net = nn.Sequential(nn.Linear(3, 4), *middle, nn.Linear(4, 1))
    net(torch.randn(8, 3))
    return net, pvi.from_module(net, pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=8)


def states(net, count):
    found = []
    for k in range(count):
        state = {name: value.clone() for name, value in net.state_dict().items()}
        state["0.bias"] = torch.full((4,), float(k))
        found.append(state)
    return found


def biases(draws):
    return draws.model().unravel(draws.particles)["0.bias"][0, :, 0].tolist()


def test_files_come_in_the_order_of_their_numbers(tmp_path):
    net, model = make()
    for k, state in enumerate(states(net, 12)):
        if k % 2:
            save_file(state, tmp_path / f"step{k}.safetensors")
        else:
            torch.save(state, tmp_path / f"step{k}.pt")
    (tmp_path / "notes.txt").write_text("no checkpoint")
    draws = pvi.Draws.from_checkpoints(model, tmp_path)
    assert biases(draws) == list(range(12))
    assert biases(pvi.Draws.from_checkpoints(model, tmp_path, pattern="*.pt")) == [
        0,
        2,
        4,
        6,
        8,
        10,
    ]
    listed = [tmp_path / "step4.pt", tmp_path / "step2.pt"]
    assert biases(pvi.Draws.from_checkpoints(model, listed)) == [4, 2]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state, "loss": 0.1},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    ],
)
def test_weights_are_found_where_trainers_put_them(tmp_path, wrapped):
    net, model = make()
    torch.save(wrapped(states(net, 3)[2]), tmp_path / "last.pt")
    assert biases(pvi.Draws.from_checkpoints(model, tmp_path)) == [2]


def test_a_prefix_and_the_folders_of_a_trainer(tmp_path):
    net, model = make()
    for k, state in enumerate(states(net, 3)):
        folder = tmp_path / f"checkpoint-{k * 100}"
        folder.mkdir()
        named = {f"net.{name}": value for name, value in state.items()}
        save_file({**named, "head": torch.ones(1)}, folder / "model.safetensors")
        torch.save({"state": {}}, folder / "optimizer.pt")
    draws = pvi.Draws.from_checkpoints(model, tmp_path, prefix="net.")
    assert biases(draws) == [0, 1, 2]


NETS = {
    "batch": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)),
    "first": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)),
    "images": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2), nn.BatchNorm1d(4), nn.Flatten(), nn.Tanh(),
        nn.Linear(8, 1),
    ),
    "instance": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 4, 2),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(8, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("make_net", NETS.values(), ids=NETS)
def test_every_checkpoint_predicts_with_its_own_running_statistics(make_net):
    """As its module does in evaluation mode."""
    net = make_net().double()
    nets = []
    for shift in (0.0, 5.0, -2.0):
        net.train()(shift + (1 + abs(shift)) * torch.randn(16, 3, dtype=torch.float64))
        with torch.no_grad():
            for weight in net.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.3)
        nets.append(copy.deepcopy(net).eval())
    model = pvi.from_module(nets[1], pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=16)
    draws = pvi.Draws.from_state_dicts(model, [each.state_dict() for each in nets])
    x = torch.randn(7, 3, dtype=torch.float64)
    expected = torch.stack([each(x) for each in nets]).detach()
    torch.testing.assert_close(draws.outputs(x)[0], expected)
    torch.testing.assert_close(draws.predict(x).mean, expected.mean(0))
    torch.testing.assert_close(draws.to_module().members(x), expected)


def test_the_weights_of_the_potentials_own_module_stay_as_they_are():
    net, model = make(batch_norm=True)
    own = torch.cat([p.detach().flatten() for p in net.parameters()])
    draws = pvi.Draws.from_state_dicts(model, [net.state_dict()])
    assert torch.equal(draws.particles[0, 0], own)


@pytest.mark.parametrize(
    ("layer", "sample", "words"),
    [
        (nn.BatchNorm1d(4, affine=False), None, "1.running_mean"),
        (nn.BatchNorm1d(4), "2.*", "1.running_var"),
        (nn.Identity(), "2.*", "0.weight"),
    ],
)
def test_what_differs_and_is_not_sampled_is_told(tmp_path, layer, sample, words):
    net = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 1))
    net(torch.randn(8, 3))
    model = pvi.from_module(net, pvi.Gaussian(1.0), pvi.Normal(1.0), 8, sample=sample)
    torch.save(net.state_dict(), tmp_path / "0.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pvi.Draws.from_checkpoints(model, tmp_path)
    net(torch.randn(8, 3) + 5)
    with torch.no_grad():
        net[0].weight += 1
    torch.save(net.state_dict(), tmp_path / "1.pt")
    with pytest.warns(pvi.ParticleviWarning, match=words):
        pvi.Draws.from_checkpoints(model, tmp_path)


class Thing:
    pass


def test_code_in_a_file_is_not_run(tmp_path):
    _, model = make()
    torch.save({"weights": Thing()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="more than weights"):
        pvi.Draws.from_checkpoints(model, tmp_path)


def test_what_is_missing_is_named(tmp_path):
    _, model = make()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        pvi.Draws.from_checkpoints(model, tmp_path)
    torch.save({"0.bias": torch.ones(4)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="lacks"):
        pvi.Draws.from_checkpoints(model, tmp_path)
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(ValueError, match="no tensors"):
        pvi.Draws.from_checkpoints(model, tmp_path / "b.pt")
