"""The law of balance: which pairs are found, the exact identity of every step, the mean drift."""

import pytest
import torch
from torch import nn

import particlevi as pvi

# torch's attention has no rule for torch.func, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")

F64 = torch.float64
N = 12


class Attention(nn.Module):
    """One layer of attention, by torch's own module or by four linear layers."""

    def __init__(self, own: bool):
        super().__init__()
        if own:
            self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
            self.out = nn.Linear(4, 4)
        else:
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.own = own

    def forward(self, x):
        if not self.own:
            return self.attention(x, x, x, need_weights=False)[0].mean(1)[:, :1].tanh()
        weights = (self.q(x) @ self.k(x).transpose(1, 2)).softmax(-1)
        return self.out(weights @ self.v(x)).mean(1)[:, :1].tanh()


def relu_net():
    return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))


def conv_net():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)
    )


NETS = {
    "relu": (relu_net, (3,), {("0", "2.weight"), ("2", "4.weight")}),
    "linear": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)),
        (3,),
        {("0", "1.weight")},
    ),
    "convolution": (conv_net, (1, 5, 5), {("0", "2.weight"), ("2", "5.weight")}),
    "attention": (lambda: Attention(True), (3, 4), {("v", "out.weight"), ("q", "k")}),
    "torch attention": (
        lambda: Attention(False),
        (3, 4),
        {
            ("attention.in_proj[v]", "attention.out_proj.weight"),
            ("attention.in_proj[q]", "attention.in_proj[k]"),
        },
    ),
}


def measured(name):
    make, shape, _ = NETS[name]
    torch.manual_seed(0)
    net = make().double()
    x = torch.randn(N, *shape, dtype=F64)
    y = torch.randn(N, 1, dtype=F64)
    return pvi.noise.measure(net, (x, y), nn.functional.mse_loss)


@pytest.mark.parametrize("name", NETS)
def test_pairs_are_found_unit_by_unit(name):
    found = measured(name).balance().pairs
    assert {(pair.first, pair.second) for pair in found} == NETS[name][2]
    assert all(len(pair.first_norm) > 1 for pair in found)
    assert all(pair.identity_error < 1e-10 for pair in found)


def test_balance_without_per_sample_gradients(monkeypatch):
    noise = measured("relu")
    monkeypatch.delattr(type(noise.samples), "gradients")
    assert len(noise.balance().pairs) == 2


@pytest.mark.parametrize("name", ["relu", "linear", "convolution", "attention"])
def test_every_step_of_sgd_obeys_the_identity(name):
    noise = measured(name)
    generator = torch.Generator().manual_seed(1)
    rate, before = 0.05, noise.balance().pairs
    for _ in range(3):
        chosen = torch.randint(N, (3,), generator=generator)
        rows = torch.cat(list(noise.per_sample()))[chosen]
        noise = noise.at(noise.position - rate * rows.mean(0))
        after = noise.balance().pairs
        for old, new, (u, w) in zip(before, after, squares(rows.mean(0), noise), strict=True):
            change = (new.first_norm - new.second_norm) - (old.first_norm - old.second_norm)
            assert torch.allclose(change, rate**2 * (u - w), rtol=0, atol=1e-10)
        before = after


def squares(gradient, noise):
    """``|g_u|^2`` and ``|g_w|^2`` of a gradient, for every pair."""
    from particlevi.noise.balance import _symmetries

    for s in _symmetries(noise):
        yield tuple(gradient[index].square().sum(1) for index in (s.u, s.w))


def test_mean_drift_over_all_batches_of_two():
    noise, rate = measured("relu"), 0.03
    rows = torch.cat(list(noise.per_sample()))
    pairs = list(zip(noise.balance().pairs, squares(rows[0], noise), strict=True))
    pick = torch.cartesian_prod(torch.arange(N), torch.arange(N))
    means = (rows[pick[:, 0]] + rows[pick[:, 1]]) / 2
    from particlevi.noise.balance import _symmetries

    for (pair, _), s in zip(pairs, _symmetries(noise), strict=True):
        u, w = (means[:, index].square().sum(2).mean(0) for index in (s.u, s.w))
        assert torch.allclose(pair.drift(rate, 2), rate**2 * (u - w), rtol=1e-10, atol=1e-14)


def test_rescaling_to_the_predicted_ratio_balances_the_noise():
    noise = measured("relu")
    from particlevi.noise.balance import _symmetries

    pair, s = noise.balance().pairs[1], _symmetries(noise)[1]
    alive = (pair.first_noise > 0) & (pair.second_noise > 0)
    scale = (pair.balanced_norm_ratio / pair.norm_ratio).pow(0.25)
    scale = torch.where(alive, scale, 1.0).unsqueeze(1)
    moved = noise.position.clone()
    moved[s.u] *= scale
    moved[s.w] /= scale
    after = noise.at(moved).balance().pairs[1]
    assert torch.allclose(after.first_noise[alive], after.second_noise[alive], rtol=1e-9)
    assert torch.allclose(after.norm_ratio[alive], pair.balanced_norm_ratio[alive], rtol=1e-9)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)),
        nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 1)),
        nn.Linear(3, 1),
    ],
)
def test_a_net_without_the_symmetry_is_refused(net):
    x, y = torch.randn(N, 3), torch.randn(N, 1)
    noise = pvi.noise.measure(net, (x, y), nn.functional.mse_loss)
    with pytest.raises(ValueError, match="no law of balance"):
        noise.balance()


def test_a_prior_breaks_the_symmetry():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    x, y = torch.randn(N, 3, dtype=F64), torch.randn(N, 1, dtype=F64)
    for prior, broken in ((pvi.Normal(1.0), True), (pvi.Flat(), False)):
        model = pvi.from_module(net, pvi.Gaussian(1.0), prior, num_data=N)
        noise = pvi.noise.measure(model, (x, y), position=model.init(1)[0])
        if broken:
            with pytest.raises(ValueError, match="priors break it"):
                noise.balance()
        else:
            assert len(noise.balance().pairs) == 1


def test_along_a_trajectory():
    noise = measured("relu")
    path = pvi.noise.balance_along(noise, torch.stack([noise.position, 2 * noise.position]))
    assert path.names == ("0 / 2.weight", "2 / 4.weight")
    assert torch.allclose(path.first_norm[1], 4 * path.first_norm[0])
    assert path.imbalance.shape == path.balanced_norm_ratio.shape == (2, 2)
    with pytest.raises(ValueError, match="positions must have shape"):
        pvi.noise.balance_along(noise, noise.position)
