"""Operators, spectra, traces, squares and the edge of stability, against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.curvature import (
    curvature_operator,
    edge_of_stability,
    estimate_trace,
    gradient_squares,
    second_order,
    spectral_density,
)
from particlevi.curvature.factors import gradient_factors, gram_matrix, squared_norms
from particlevi.potentials.layout import Layout

F64 = torch.float64
N, CLASSES = 9, 3
KINDS = ["hessian", "gauss_newton", "empirical_fisher"]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(3, 3, batch_first=True)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4, padding_idx=0)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.table(x)).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.inner(torch.tanh(self.inner(x))))


class Scaled(nn.Module):
    """With a parameter that is a single number."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.tensor(1.5)), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.scale * x)


def problem(name: str):
    torch.manual_seed(0)
    if name == "perceptron":
        net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))
        x = torch.randn(N, 4)
    elif name == "convolution":
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, groups=2, stride=2), nn.BatchNorm2d(4), nn.Tanh(),
            nn.Flatten(2), nn.Conv1d(4, 2, 2, dilation=2), nn.Flatten(), nn.Linear(4, CLASSES),
        )  # fmt: skip
        x = torch.randn(N, 2, 4, 4)
        net(x)
    elif name == "attention":
        net, x = Attention(), torch.randn(N, 3, 4)
    elif name == "words":
        net, x = Words(), torch.randint(5, (N, 6))
    elif name in ("tied", "scaled"):
        net, x = Tied() if name == "tied" else Scaled(), torch.randn(N, 4)
    else:
        net, x = Recurrent(nn.LSTM if name == "lstm" else nn.GRU), torch.randn(N, 4, 3)
    net = net.double().eval()
    x = x.double() if x.is_floating_point() else x
    return net, (x, torch.arange(N) % CLASSES)


def wanted(net, data, kind):
    x, y = data
    layout = Layout({n: tuple(p.shape) for n, p in net.named_parameters()})
    theta = layout.ravel({n: p.detach() for n, p in net.named_parameters()})

    def outputs(point):
        return torch.func.functional_call(net, layout.unravel(point), (x,))

    with second_order():
        if kind == "hessian":
            return torch.autograd.functional.hessian(
                lambda t: nn.functional.cross_entropy(outputs(t), y), theta
            )
        jacobian = torch.autograd.functional.jacobian(outputs, theta)
    p = outputs(theta).detach().softmax(-1)
    if kind == "gauss_newton":
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("nia,nij,njb->ab", jacobian, inner, jacobian) / N
    slopes = torch.einsum("ni,nia->na", p - nn.functional.one_hot(y, CLASSES), jacobian)
    return slopes.T @ slopes / N


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["perceptron", "convolution", "attention", "lstm", "gru"])
def test_operators_are_the_matrices_of_autodiff(name, kind):
    net, data = problem(name)
    matrix = wanted(net, data, kind)
    whole = curvature_operator(net, data, nn.functional.cross_entropy, kind=kind)
    assert torch.allclose(whole.dense(), matrix, atol=1e-12)
    streamed = curvature_operator(net, data, nn.functional.cross_entropy, kind=kind, chunk_size=4)
    v = torch.randn(whole.num_params, dtype=F64)
    assert torch.allclose(streamed.matvec(v), matrix @ v, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_any_reduction_gives_the_mean(reduction):
    net, data = problem("perceptron")
    loss = nn.CrossEntropyLoss(reduction=reduction)
    found = curvature_operator(net, data, loss).dense()
    assert torch.allclose(found, wanted(net, data, "hessian"), atol=1e-12)


W = torch.tensor([1.0, 5.0, 0.2], dtype=F64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_over_weights_is_refused(kind):
    """In batches of one datum they cancel."""
    net, data = problem("perceptron")
    with pytest.raises(ValueError, match='reduction="none"'):
        curvature_operator(net, data, nn.CrossEntropyLoss(weight=W), kind=kind)


def test_weights_count_with_the_data():
    net, (x, y) = problem("perceptron")
    found = curvature_operator(net, (x, y), nn.CrossEntropyLoss(weight=W, reduction="none"))
    parts = [
        W[k] * (y == k).sum() / N * wanted(net, (x[y == k], y[y == k]), "hessian")
        for k in range(CLASSES)
    ]
    assert torch.allclose(found.dense(), sum(parts), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_diagonal_blocks(kind):
    net, data = problem("perceptron")
    matrix = wanted(net, data, kind)
    operator = curvature_operator(net, data, nn.functional.cross_entropy, kind=kind)
    assert torch.allclose(operator.restrict("2.*").dense(), matrix[25:, 25:], atol=1e-12)
    blocks = operator.by_tensor()
    assert list(blocks) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert torch.allclose(blocks["0.bias"].dense(), matrix[20:25, 20:25], atol=1e-12)


def test_weight_decay_and_position():
    net, data = problem("perceptron")
    operator = curvature_operator(net, data, nn.functional.cross_entropy)
    decayed = curvature_operator(net, data, nn.functional.cross_entropy, weight_decay=0.3)
    one = torch.eye(operator.num_params, dtype=F64)
    assert torch.allclose(decayed.dense(), operator.dense() + 0.3 * one, atol=1e-12)
    moved = operator.at(operator.position + 0.1)
    other, _ = problem("perceptron")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    assert torch.allclose(moved.dense(), wanted(other, data, "hessian"), atol=1e-12)


def test_top_eigenpairs_are_those_of_the_matrix():
    net, data = problem("convolution")
    operator = curvature_operator(net, data, nn.functional.cross_entropy)
    values = torch.linalg.eigvalsh(operator.dense()).flip(0)
    assert torch.allclose(operator.top_eigenpairs(3).values, values[:3], atol=1e-10)


SQUARED = ["perceptron", "convolution", "attention", "lstm", "words", "tied", "scaled"]


def one_by_one(name: str):
    """A net, its layout and position, data, and gradients ``[N, D]`` by a loop over data."""
    net, (x, y) = problem(name)
    layout = Layout({n: tuple(p.shape) for n, p in net.named_parameters()})
    theta = layout.ravel({n: p.detach() for n, p in net.named_parameters()})
    rows = []
    for k in range(N):
        net.zero_grad()
        nn.functional.cross_entropy(net(x[k : k + 1]), y[k : k + 1]).backward()
        rows.append(layout.ravel({n: p.grad.clone() for n, p in net.named_parameters()}))
    return net, layout, theta, (x, y), torch.stack(rows)


@pytest.mark.parametrize("name", SQUARED)
def test_squares_are_those_of_per_sample_gradients(name):
    net, layout, theta, (x, y), rows = one_by_one(name)
    found = gradient_squares(net, layout, nn.functional.cross_entropy, theta, (x, y))
    assert torch.allclose(found.gradient, rows.sum(0), atol=1e-12)
    assert torch.allclose(found.squares, rows.square().sum(0), atol=1e-12)


@pytest.mark.parametrize("name", SQUARED)
def test_factors_have_the_inner_products_of_per_sample_gradients(name):
    net, layout, theta, data, rows = one_by_one(name)
    found = gradient_factors(net, layout, nn.functional.cross_entropy, theta, data)
    assert torch.allclose(gram_matrix(found), rows @ rows.T, atol=1e-12)
    assert torch.allclose(squared_norms(found), rows.square().sum(1), atol=1e-12)


@pytest.mark.parametrize("name", SQUARED)
@pytest.mark.parametrize("own", ["weight", "bias"])
def test_factors_of_some_parameters(name, own):
    net, layout, theta, data, rows = one_by_one(name)
    names = [n for n in layout.shapes if own in n][-1:]
    found = gradient_factors(net, layout, nn.functional.cross_entropy, theta, data, names)
    part = rows[:, layout.slices()[names[0]]]
    assert torch.allclose(gram_matrix(found), part @ part.T, atol=1e-12)


def test_a_gram_matrix_is_made_of_tiles(monkeypatch):
    monkeypatch.setattr("particlevi.curvature.factors._ROWS", 4)
    net, layout, theta, data, rows = one_by_one("perceptron")
    found = gram_matrix(gradient_factors(net, layout, nn.functional.cross_entropy, theta, data))
    assert torch.allclose(found, rows @ rows.T, atol=1e-12)


def test_linear_layers_keep_slopes_and_inputs_only():
    net, layout, theta, data, _ = one_by_one("perceptron")
    found = gradient_factors(net, layout, nn.functional.cross_entropy, theta, data)
    assert [factor.width for factor in found] == [5 + 4 + 1, 3 + 5 + 1]


def spectrum(size: int, power: float):
    generator = torch.Generator().manual_seed(1)
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=F64))[0]
    values = torch.arange(1, size + 1, dtype=F64) ** -power
    return q * values @ q.T, values


@pytest.mark.parametrize("steps", [4, 12, 30])
def test_bounds_on_the_spectral_distribution_hold_for_every_probe(steps):
    """Against the measure of the same probes, from all eigenvectors."""
    matrix, _ = spectrum(60, 1.0)
    values, vectors = torch.linalg.eigh(matrix)
    found = spectral_density(lambda v: matrix @ v, 60, steps, 1, seed=3)
    start = torch.randn(60, generator=torch.Generator().manual_seed(3), dtype=F64)
    mass = (vectors.T @ (start / start.norm())).square()
    x = torch.linspace(0, 1.1, 200, dtype=F64)
    share = ((values[:, None] <= x) * mass[:, None]).sum(0)
    bounds = found.cumulative(x)
    assert (bounds.lower <= share + 1e-12).all()
    assert (bounds.upper >= share - 1e-12).all()
    assert ((bounds.lower <= bounds.value) & (bounds.value <= bounds.upper)).all()
    assert torch.equal(bounds.upper[-1:], torch.ones(1, dtype=F64)) or bounds.upper[-1] > 1 - 1e-12


def test_quadrature_is_exact_for_polynomials_up_to_its_degree():
    matrix, _ = spectrum(60, 1.0)
    values, vectors = torch.linalg.eigh(matrix)
    found = spectral_density(lambda v: matrix @ v, 60, 4, 1, seed=3)
    start = torch.randn(60, generator=torch.Generator().manual_seed(3), dtype=F64)
    mass = (vectors.T @ (start / start.norm())).square()
    for degree in range(8):
        exact = float((mass * values**degree).sum())
        assert found.mean(lambda t, d=degree: t**d)[0] == pytest.approx(exact, rel=1e-9)


def test_a_krylov_space_that_ends_early_is_taken_as_it_is():
    values = torch.tensor([1.0] * 20 + [2.0] * 20, dtype=F64)
    found = spectral_density(lambda v: values * v, 40, 10, 3)
    share = found.cumulative(torch.tensor([0.5, 1.5, 2.5]))
    assert share.value[[0, 2]].tolist() == [0.0, 1.0]
    assert abs(float(share.value[1]) - 0.5) < 0.3


def test_the_density_integrates_to_one():
    matrix, _ = spectrum(60, 1.0)
    found = spectral_density(lambda v: matrix @ v, 60, 20, 4)
    x = torch.linspace(-1, 2, 3001, dtype=F64)
    assert float(found.density(x, 0.05).sum() * 1e-3) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
def test_traces_of_low_rank_are_exact(method):
    matrix, _ = spectrum(80, 0.0)
    low = matrix[:, :8] @ matrix[:, :8].T
    found = estimate_trace(lambda v: low @ v, 80, 30, method)
    assert found.value == pytest.approx(float(low.trace()), rel=1e-10)
    assert found.standard_error < 1e-8


def standardised(method: str, seeds: int):
    matrix, values = spectrum(100, 1.0)
    found = [
        estimate_trace(lambda v: matrix @ v, 100, 48, method, seed=seed) for seed in range(seeds)
    ]
    away = torch.tensor([each.value for each in found]) - float(values.sum())
    return away, torch.tensor([each.standard_error for each in found])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "low", "high"), [("hutchinson", 0.9, 1.15), ("hutch++", 0.9, 1.2),
                                ("xtrace", 0.3, 1.0)],
)  # fmt: skip
def test_errors_of_traces(method, low, high):
    """Calibrated for both of Hutchinson's kind; the jackknife of XTrace is on the safe side."""
    away, error = standardised(method, 400)
    z = away / error
    assert abs(float(away.mean())) < 4 * float(away.std()) / math.sqrt(400)
    assert low < float(z.std()) < high


def test_xtrace_is_more_accurate_than_hutchinson():
    accurate, plain = (standardised(method, 40)[0].std() for method in ("xtrace", "hutchinson"))
    assert accurate < 0.4 * plain


def test_edge_of_stability_is_where_descent_diverges():
    torch.manual_seed(0)
    net = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(20, 3, dtype=F64)

    def half(o, y):
        return 0.5 * (o - y).square().sum()

    operator = curvature_operator(net, (x, x[:, :1]), half)
    sharpness = torch.linalg.eigvalsh(x.T @ x / 20)[-1]
    scale = torch.tensor([1.0, 2.0, 0.5], dtype=F64)
    for momentum in (0.0, 0.9):
        found = edge_of_stability(operator, 0.3, momentum=momentum, tolerance=1e-8)
        assert float(found.ratio) == pytest.approx(
            0.3 * float(sharpness) / (2 + 2 * momentum), rel=1e-6
        )
    root = scale.sqrt()
    turned = torch.linalg.eigvalsh(root[:, None] * (x.T @ x / 20) * root)[-1]
    found = edge_of_stability(operator, 0.3, preconditioner=scale, tolerance=1e-8)
    assert float(found.sharpness) == pytest.approx(float(turned), rel=1e-6)
    along = edge_of_stability(operator, 0.3, positions=torch.zeros(2, 3))
    assert along.ratio.shape == (2,)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda o: o.matvec(torch.ones(2)), "A vector has shape"),
        (lambda o: o.matmat(torch.ones(2, 2)), "columns"),
        (lambda o: o.restrict("9.*"), "matches none"),
        (lambda o: o.at(torch.ones(2)), "position must be"),
        (lambda o: o.trace(3), "num_products"),
        (lambda o: o.density(0), "num_steps"),
        (lambda o: edge_of_stability(o, 0.1, preconditioner=-torch.ones(4)), "positive tensor"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    net, data = problem("perceptron")
    operator = curvature_operator(net, data, nn.functional.cross_entropy)
    with pytest.raises(ValueError, match=words):
        call(operator)


def test_operators_agree_with_the_noise_of_the_same_net():
    net, data = problem("perceptron")
    noise = pvi.noise.measure(net, data, nn.functional.cross_entropy)
    operator = curvature_operator(net, data, nn.functional.cross_entropy, kind="empirical_fisher")
    assert torch.allclose(operator.dense(), noise.dense(centered=False), atol=1e-12)
