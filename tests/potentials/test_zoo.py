"""Modules of all kinds: sampled right, or refused by name before the first step."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import particlevi as pvi
from particlevi.typing import Batch

B, P = 5, 3
F64 = torch.float64


class Fn(nn.Module):
    """A linear layer and a function of it and of the inputs."""

    def __init__(self, function, size=4, **buffers):
        super().__init__()
        self.layer = nn.Linear(size, 3)
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


class Heads(nn.Module):
    """A sequence model and a linear head on its last state."""

    def __init__(self, body, width):
        super().__init__()
        self.body, self.head = body, nn.Linear(width, 3)

    def forward(self, x):
        found = self.body(x)
        return self.head((found[0] if isinstance(found, tuple) else found)[:, -1])


class Attention(nn.Module):
    """Self-attention over a sequence."""

    def __init__(self, **options):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.options = options
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attend(x, x, x, **self.options)[0].mean(1))


class Residual(nn.Module):
    def __init__(self, normed=True):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4) if normed else nn.Identity()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.a(x)
        return self.head((h + F.relu(self.norm(self.b(h)))).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.embed(x).mean(1).tanh())


class Bare(nn.Module):
    """Parameters of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3) / 2)

    def forward(self, x):
        return torch.einsum("bi,ij->bj", x, self.weight)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts = nn.ModuleList([nn.Linear(4, 3) for _ in range(2)])

    def forward(self, x):
        each = torch.stack([expert(x) for expert in self.experts], -1)
        return (each * self.gate(x).softmax(-1).unsqueeze(1)).sum(-1)


class Positions(nn.Module):
    """A cache that is filled by the first run and the same ever after."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("cache", torch.zeros(0), persistent=False)

    def forward(self, x):
        if self.cache.numel() == 0:
            self.cache = torch.linspace(0, 1, 4).to(x)
        return self.layer(x + self.cache)


def rows(*shape):
    return torch.randn(B, *shape, generator=torch.Generator().manual_seed(1))


def tokens(*shape):
    return torch.randint(0, 7, (B, *shape), generator=torch.Generator().manual_seed(1))


def encoder(layers=None, **options):
    made = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, **options)
    return made if layers is None else nn.TransformerEncoder(made, layers)


def normed():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
    net.train()(rows(1, 4, 4) + 1)
    return net


def frozen():
    net = stack(nn.Tanh())
    net[0].requires_grad_(False)
    return net


def stack(*layers, width=8):
    return nn.Sequential(nn.Linear(4, width), *layers, nn.Linear(width, 3))


ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.ReLU6, nn.PReLU, nn.Tanhshrink,
)  # fmt: skip

RIGHT = {
    **{act.__name__: (lambda act=act: stack(act()), rows(4)) for act in ACTIVATIONS},
    "linear": (lambda: nn.Linear(4, 3), rows(4)),
    "bilinear": (lambda: Fn(lambda m, x: m.layer(x) * x[:, :3]), rows(4)),
    "relu in place": (lambda: stack(nn.ReLU(inplace=True)), rows(4)),
    "relu in place first": (lambda: nn.Sequential(nn.ReLU(True), nn.Linear(4, 3)), rows(4)),
    "scaled in place first": (lambda: Fn(lambda m, x: m.layer(x.mul_(m.layer.bias[0]))), rows(4)),
    "layer norm": (lambda: stack(nn.LayerNorm(8)), rows(4)),
    "rms norm": (lambda: stack(nn.RMSNorm(8)), rows(4)),
    "dropout at 0": (lambda: stack(nn.Dropout(0.0)), rows(4)),
    "softmax": (lambda: stack(nn.Softmax(-1)), rows(4)),
    "glu": (lambda: nn.Sequential(nn.Linear(4, 6), nn.GLU()), rows(4)),
    "maxout": (lambda: Fn(lambda m, x: m.layer(x).unflatten(1, (3, 1)).amax(-1)), rows(4)),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 3)),
        rows(2, 4),
    ),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), rows(1, 3, 3)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.Flatten()), rows(1, 2, 2, 2)),
    "grouped conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Flatten(), nn.Linear(4, 3)),
        rows(2, 2, 2),
    ),
    "transposed conv": (
        lambda: nn.Sequential(nn.ConvTranspose2d(1, 1, 2), nn.Flatten(), nn.Linear(9, 3)),
        rows(1, 2, 2),
    ),
    "circular conv": (
        lambda: nn.Sequential(nn.Conv1d(1, 3, 3, padding=1, padding_mode="circular"), nn.Flatten()),
        rows(1, 4),
    ),
    "max pool": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.MaxPool2d(4), nn.Flatten()),
        rows(1, 4, 4),
    ),
    "adaptive pool": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        rows(1, 4, 4),
    ),
    "upsample": (
        lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(8, 3)),
        rows(1, 4),
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 1), nn.PixelShuffle(2), nn.Flatten(), nn.Linear(16, 3)
        ),
        rows(1, 2, 2),
    ),
    "batch norm": (normed, rows(1, 4, 4)),
    "group norm": (Residual, rows(1, 4, 4)),
    "residual": (lambda: Residual(normed=False), rows(1, 4, 4)),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 1), nn.InstanceNorm2d(3), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()
        ),
        rows(1, 4, 4),
    ),
    "local response norm": (
        lambda: nn.Sequential(nn.Conv1d(1, 3, 4), nn.LocalResponseNorm(2), nn.Flatten()),
        rows(1, 4),
    ),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 3)),
        tokens(2),
    ),
    "sparse embedding": (
        lambda: nn.Sequential(nn.Embedding(7, 3, sparse=True), nn.Flatten(), nn.Linear(6, 3)),
        tokens(2),
    ),
    "embedding bag": (lambda: nn.Sequential(nn.EmbeddingBag(7, 4), nn.Linear(4, 3)), tokens(3)),
    "sparse embedding bag": (
        lambda: nn.Sequential(nn.EmbeddingBag(7, 4, sparse=True, mode="sum"), nn.Linear(4, 3)),
        tokens(3),
    ),
    "tied embedding": (Tied, tokens(3)),
    "rnn": (lambda: Heads(nn.RNN(2, 4, batch_first=True), 4), rows(3, 2)),
    "lstm": (lambda: Heads(nn.LSTM(2, 4, batch_first=True), 4), rows(3, 2)),
    "gru of two layers": (lambda: Heads(nn.GRU(2, 4, 2, batch_first=True), 4), rows(3, 2)),
    "lstm both ways": (
        lambda: Heads(nn.LSTM(2, 4, bidirectional=True, batch_first=True), 8),
        rows(3, 2),
    ),
    "lstm cell": (lambda: Fn(lambda m, x: m.layer(x).tanh()), rows(4)),
    "attention": (Attention, rows(3, 4)),
    "attention without weights": (lambda: Attention(need_weights=False), rows(3, 4)),
    "causal attention": (
        lambda: Attention(need_weights=False, attn_mask=torch.full((3, 3), -1e9).triu(1)),
        rows(3, 4),
    ),
    "transformer layer": (lambda: Heads(encoder(), 4), rows(3, 4)),
    "transformer": (lambda: Heads(encoder(2), 4), rows(3, 4)),
    "transformer, norm first": (lambda: Heads(encoder(norm_first=True), 4), rows(3, 4)),
    "transformer, gelu": (lambda: Heads(encoder(activation="gelu"), 4), rows(3, 4)),
    "scaled dot product": (
        lambda: Fn(lambda m, x: m.layer(F.scaled_dot_product_attention(x, x, x)).mean(1)),
        rows(3, 4),
    ),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), rows(4)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), rows(4)),
    "bare parameters": (Bare, rows(4)),
    "mixture of experts": (Mixture, rows(4)),
    "frozen body": (frozen, rows(4)),
    "cached positions": (Positions, rows(4)),
    "unused layer": (lambda: Fn(lambda m, x: x[:, :3] + m.layer.bias), rows(4)),
    "a number from the weights": (
        lambda: Fn(lambda m, x: m.layer(x) / (1 + m.layer.weight.norm())),
        rows(4),
    ),
    "control flow on shapes": (
        lambda: Fn(lambda m, x: m.layer(x) if x.shape[-1] == 4 else x),
        rows(4),
    ),
    "control flow on values": (
        lambda: Fn(lambda m, x: m.layer(x) if float(m.layer.bias[0]) > -99 else x[:, :3]),
        rows(4),
    ),
}


def potential(module, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pvi.from_module(module, pvi.Categorical(), pvi.Normal(1.0), num_data=50, **options)


@pytest.mark.parametrize("name", RIGHT)
def test_outputs_and_gradients_are_the_modules_own(name):
    make, x = RIGHT[name]
    torch.manual_seed(0)
    module = make().eval()
    target, given = potential(module), x.clone()
    theta = target.init(P, method="prior")
    y = torch.arange(B) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that vmap cannot do
        found = pvi.gradients.minibatch(target)((), theta, Batch((given, y)), 1)
    assert torch.equal(given, x)
    for i in range(P):
        weights = {
            key: value[i].clone().requires_grad_() for key, value in target.unravel(theta).items()
        }
        logits = torch.func.functional_call(module, weights, (x.clone(),))
        energy = 50 / B * F.cross_entropy(logits, y, reduction="sum")
        grads = torch.autograd.grad(energy, list(weights.values()), allow_unused=True)
        dense = [
            torch.zeros_like(w) if g is None else g.to_dense() if g.is_sparse else g
            for g, w in zip(grads, weights.values(), strict=True)
        ]
        own = torch.cat([g.flatten() for g in dense]) + theta[i]
        torch.testing.assert_close(found.gradient[i], own, rtol=2e-4, atol=2e-4)


def detached(module, x):
    return module.layer(x.detach()) + module.layer(x).detach()


def without_grad(module, x):
    with torch.no_grad():
        scale = module.layer.weight.norm()
    return x[:, :3] * scale + module.layer.bias


def counts(module, x):
    module.calls += 1
    return module.layer(x)


def remembers(module, x):
    module.mean = 0.9 * module.mean + 0.1 * x.mean()
    return module.layer(x) + module.mean


class Through(torch.autograd.Function):
    """Rounds, and lets the gradient through."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


REFUSED = {
    "a buffer that counts": (lambda: Fn(counts, calls=torch.zeros(())), r"\['calls'\].*change"),
    "a running mean": (lambda: Fn(remembers, mean=torch.zeros(())), r"\['mean'\] of Fn change"),
    "functional dropout": (
        lambda: Fn(lambda m, x: F.dropout(m.layer(x), 0.5)),
        "differ between two runs",
    ),
    "noise": (lambda: Fn(lambda m, x: m.layer(x + torch.randn_like(x))), "differ between two runs"),
    "detach": (lambda: Fn(detached), r"respect to \['layer.weight', 'layer.bias'\] is not"),
    "no_grad": (lambda: Fn(without_grad), r"respect to \['layer.weight'\] is not"),
    "all detached": (lambda: Fn(lambda m, x: m.layer(x).detach()), r"respect to \['layer"),
    "data": (
        lambda: Fn(lambda m, x: F.linear(x, m.layer.weight.data, m.layer.bias)),
        r"respect to \['layer.weight'\] is not",
    ),
    "straight through": (
        lambda: Fn(lambda m, x: F.linear(x, Through.apply(m.layer.weight * 3), m.layer.bias)),
        r"respect to \['layer.weight'\] is not",
    ),
    "checkpointing": (
        lambda: Fn(lambda m, x: checkpoint(m.layer, x, use_reentrant=False).tanh()),
        r"\['layer'\] run once more.*checkpointing",
    ),
    "reentrant checkpointing": (
        lambda: Fn(lambda m, x: checkpoint(m.layer, x, use_reentrant=True).tanh()),
        "checkpointing",
    ),
    "normalised over the batch": (
        lambda: Fn(lambda m, x: m.layer(x) - m.layer(x).mean(0)),
        "depends on the other data",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sampled_is_refused_by_name(name):
    make, match = REFUSED[name]
    torch.manual_seed(0)
    target = potential(make())
    with pytest.raises(ValueError, match=match):
        pvi.sample(
            pvi.sgld(target), (rows(4).repeat(10, 1), torch.arange(50) % 3), batch_size=B,
            step_size=1e-4, num_particles=2, num_draws=1, progress=False,
        )  # fmt: skip


def test_attention_over_the_batch_is_refused_and_says_where():
    class Across(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(4, 2)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.attend(x, x, x)[0].mean(1))

    with pytest.raises(ValueError, match=r"other data .*batch_first=True in \['attend'\]"):
        potential(Across()).outputs(torch.randn(1, 95), Batch((rows(3, 4),)))


def test_a_model_of_all_data_at_once_may_depend_on_them():
    graph = Fn(lambda m, x: m.layer(torch.ones(B, B).to(x) @ x))
    target = pvi.from_module(graph, pvi.Categorical(), pvi.Normal(1.0), num_data=B)
    assert target.outputs(target.init(2), Batch((rows(4),))).shape == (2, B, 3)


def test_a_rectifier_about_to_switch_is_no_cut_gradient():
    target = potential(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    theta = torch.zeros(1, target.num_params)
    theta[:, -3:] = 3e-8
    target.outputs(theta, Batch((rows(4),)))


def test_several_outputs_are_refused():
    target = potential(nn.LSTM(2, 4, batch_first=True))
    with pytest.raises((TypeError, ValueError), match=r"one tensor|tuple"):
        target.outputs(target.init(1), Batch((rows(3, 2),)))


def test_the_padding_row_of_an_embedding_stays_as_it_is():
    net = nn.Sequential(nn.Embedding(7, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 3))
    target = potential(net)
    theta = target.init(P, method="prior")
    other = theta.clone()
    other[:, :3] += 1.0
    x = torch.tensor([[0, 1], [2, 0], [3, 4], [0, 0], [5, 6]])
    found = target.outputs(theta, Batch((x,)))
    assert torch.equal(found, target.outputs(other, Batch((x,))))
    weights = {name: value[0].clone() for name, value in target.unravel(theta).items()}
    weights["0.weight"][0] = 0.0
    torch.testing.assert_close(found[0], torch.func.functional_call(net, weights, (x,)))


@pytest.mark.parametrize(
    "name", ["transformer", "attention", "scaled dot product", "sparse embedding"]
)
def test_common_layers_are_vectorised(name):
    make, x = RIGHT[name]
    target = pvi.from_module(make(), pvi.Categorical(), pvi.Normal(1.0), num_data=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.outputs(target.init(P, method="prior"), Batch((x,)))
