"""One Hessian, one product, one Lanczos and the Gauss-Newton matrix, against autodiff."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.curvature import (
    Energy,
    dense_hessian,
    gauss_newton_product,
    hessian_product,
    potential_energy,
    top_eigenpairs,
)
from particlevi.typing import Batch

F64 = torch.float64
N = 12


def classifier(seed: int = 0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model = pvi.from_module(net, pvi.Categorical(), pvi.Normal(1.0), num_data=N)
    data = torch.randn(N, 2, dtype=F64), torch.arange(N) % 3
    return model, data, model.init(1)[0]


def by_autodiff(model, data, theta):
    return torch.func.hessian(lambda t: model(t[None], Batch(data))[0])(theta)


@pytest.mark.parametrize("chunk_size", [5, 1024])
def test_hessian_and_its_product_are_those_of_autodiff(chunk_size):
    model, data, theta = classifier()
    wanted = by_autodiff(model, data, theta)
    energy = potential_energy(model, theta, data, chunk_size)
    assert torch.allclose(dense_hessian(energy), wanted, atol=1e-11)
    v = torch.randn(len(theta), dtype=F64)
    assert torch.allclose(hessian_product(energy, v), wanted @ v, atol=1e-11)
    assert torch.allclose(hessian_product(Energy(energy.terms, theta, 0.5), v), wanted @ v / 2)


def test_constant_and_linear_terms_have_no_curvature():
    terms = [lambda x: x.new_tensor(3.0), lambda x: x[0] * 2, lambda x: x[1] ** 2]
    energy = Energy(lambda: terms, torch.ones(2))
    assert dense_hessian(energy).tolist() == [[0, 0], [0, 2]]
    assert hessian_product(energy, torch.ones(2)).tolist() == [0, 2]


def test_a_hessian_of_more_rows_than_are_taken_at_once():
    matrix = torch.randn(70, 70, generator=torch.Generator().manual_seed(0), dtype=F64)
    energy = Energy(lambda: [lambda x: x @ matrix @ x / 2], torch.ones(70, dtype=F64))
    assert torch.allclose(dense_hessian(energy), (matrix + matrix.T) / 2)


class Squared(torch.autograd.Function):
    """A square whose slope looks at numbers, which ``vmap`` does not let it do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return Looked.apply(2 * slope * x)


class Looked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope * float(bool(slope.isfinite().all()))


def test_a_hessian_row_by_row_where_rows_cannot_be_taken_at_once():
    energy = Energy(lambda: [lambda x: Squared.apply(x).sum()], torch.ones(3, dtype=F64))
    assert torch.allclose(dense_hessian(energy), 2 * torch.eye(3, dtype=F64))


@pytest.mark.parametrize("num", [1, 3, 8, 9])
def test_top_eigenpairs_of_a_matrix(num):
    a = torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=F64)
    a = a + a.T
    found = top_eigenpairs(lambda v: a @ v, 9, num)
    values = torch.linalg.eigvalsh(a).flip(0)[:num]
    assert torch.allclose(found.values, values, atol=1e-10)
    assert torch.allclose(a @ found.vectors, found.vectors * found.values, atol=1e-9)


def test_gauss_newton_is_the_jacobians_around_the_hessian_of_the_loss():
    model, data, theta = classifier()
    x, _ = data
    jacobian = torch.func.jacrev(lambda t: model.outputs(t[None], Batch((x,)))[0])(theta)
    logits = model.outputs(theta[None], Batch((x,)))[0]
    p = logits.softmax(-1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    wanted = torch.einsum("nia,nij,njb->ab", jacobian, inner, jacobian) + torch.eye(len(theta))
    columns = [
        gauss_newton_product(model, theta, v, data, chunk_size=5)
        for v in torch.eye(len(theta), dtype=F64)
    ]
    found = torch.stack(columns)
    assert torch.allclose(found, wanted, atol=1e-11)
    assert torch.linalg.eigvalsh(found).min() > 0.999


def test_gauss_newton_is_the_hessian_of_a_linear_model_with_a_learned_scale():
    likelihood = pvi.Gaussian("learned")
    model = pvi.from_module(nn.Linear(2, 1).double(), likelihood, pvi.Normal(1.0), num_data=N)
    x = torch.randn(N, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    data, theta = (x, x[:, :1].sin()), torch.linspace(-0.5, 0.5, 4, dtype=F64)
    wanted = by_autodiff(model, data, theta)
    for k, v in enumerate(torch.eye(4, dtype=F64)):
        found = gauss_newton_product(model, theta, v, data)
        assert torch.allclose(found, wanted[k], atol=1e-10)


def test_curvature_that_overflows_is_refused():
    steep = pvi.from_log_density(lambda x: -torch.exp(x[0] ** 4), num_params=1)
    with pytest.raises(ValueError, match="not finite"):
        pvi.curvature.largest_curvature(steep, torch.tensor([[20.0]]))
    for size in (1, 6):
        wide = pvi.from_log_density(lambda x: -torch.exp(x**4).sum(), num_params=size)
        with pytest.raises(ValueError, match="not finite"):
            pvi.suggest_step_size(wide, at=torch.full((2, size), 20.0), verbose=False)


def test_curvature_too_large_for_the_dtype_is_refused():
    narrow = pvi.from_log_density(lambda x: -1e68 * (x - 1).square().sum(), num_params=2, dtype=F64)
    with pytest.raises(ValueError, match="spacing"):
        pvi.suggest_step_size(narrow, at=torch.ones(1, 2, dtype=F64), verbose=False)
    fine = pvi.from_log_density(lambda x: -1e8 * (x - 1).square().sum(), num_params=2)
    assert pvi.suggest_step_size(fine, at=torch.ones(1, 2), verbose=False).overdamped > 0


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.body = kind(2, 3, batch_first=True)
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(2, 4)
        self.body = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.lift(x)
        return self.head(self.body(h, h, h, need_weights=False)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(2, 4)
        self.body = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.lift(x))[:, -1])


SEQUENCE = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "attention": Attention,
    "encoder": Encoder,
}


@pytest.mark.filterwarnings("ignore:The module .* cannot be vectorised")
@pytest.mark.parametrize("name", SEQUENCE)
def test_sequence_models_have_second_derivatives(name):
    """The product with the Hessian is the difference of gradients."""
    torch.manual_seed(0)
    net = SEQUENCE[name]().double()
    model = pvi.from_module(net, pvi.Gaussian(0.5), pvi.Normal(1.0), num_data=6)
    data = torch.randn(6, 4, 2, dtype=F64), torch.randn(6, 1, dtype=F64)
    theta = model.init(1)[0]
    v = torch.randn(len(theta), dtype=F64)
    energy = potential_energy(model, theta, data)
    fast = torch.backends.mha.get_fastpath_enabled()

    def slope(point):
        leaf = point.detach().requires_grad_()
        value = sum(term(leaf) for term in energy.terms())
        return torch.autograd.grad(value, leaf)[0]

    step = 1e-5
    with pvi.curvature.second_order():
        wanted = (slope(theta + step * v) - slope(theta - step * v)) / (2 * step)
    assert torch.allclose(hessian_product(energy, v), wanted, rtol=1e-5, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_an_operation_without_a_second_derivative_is_named():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise NotImplementedError("derivative for once is not implemented")

    energy = Energy(lambda: [lambda x: Once.apply(x).sum()], torch.ones(2))
    with pytest.raises(ValueError, match="without a second derivative"):
        hessian_product(energy, torch.ones(2))


def test_bad_input():
    model, data, theta = classifier()
    with pytest.raises(ValueError, match="vector must be"):
        gauss_newton_product(model, theta, theta[:3], data)
    hill = pvi.from_log_density(lambda x: -x.square().sum(), 2)
    with pytest.raises(ValueError, match="outputs of a module"):
        gauss_newton_product(hill, torch.ones(2), torch.ones(2), None)
