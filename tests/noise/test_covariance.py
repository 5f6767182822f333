import itertools
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.noise.eigenvalues import _Size
from particlevi.noise.spectrum import top_spectrum
from particlevi.typing import Batch

N = 37


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)]
    return nn.Sequential(*layers).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(3, (N,), generator=generator)


def loop_gradients(module: nn.Module) -> torch.Tensor:
    """Per-sample gradients ``[N, D]`` by one backward pass per datum."""
    rows = []
    for x, y in zip(*data(), strict=True):
        module.zero_grad()
        nn.functional.cross_entropy(module(x[None]), y[None]).backward()
        rows.append(torch.cat([p.grad.flatten() for p in module.parameters()]))
    return torch.stack(rows).clone()


def of_module(**options) -> pvi.noise.GradientNoise:
    settings = {"loss_fn": nn.functional.cross_entropy, "chunk_size": 10} | options
    return pvi.noise.measure(net(), data(), **settings)


def of_potential() -> pvi.noise.GradientNoise:
    potential = pvi.from_module(net(), pvi.Categorical(), pvi.Normal(2.0), num_data=N)
    position = potential.init(1, method="current")[0]
    return pvi.noise.measure(potential, data(), position=position, chunk_size=10)


@pytest.mark.parametrize("make", [of_module, of_potential])
def test_operator_agrees_with_a_loop_over_data(make):
    noise, rows = make(), loop_gradients(net().eval())
    if make is of_potential:
        theta = noise.position
        rows = rows + theta / 4 / N
        model = pvi.from_module(net(), pvi.Categorical(), pvi.Normal(2.0), num_data=N)
        energy = partial(model, batch=Batch(data()))
        potential_gradient = torch.func.grad(lambda p: energy(p[None])[0])(theta)
        assert torch.allclose(noise.gradient, potential_gradient / N, rtol=1e-10, atol=1e-12)
    mean = rows.mean(0)
    second = rows.T @ rows / N
    covariance = second - torch.outer(mean, mean)
    assert torch.allclose(torch.cat(list(noise.per_sample())), rows, atol=1e-12)
    assert torch.allclose(noise.gradient, mean, atol=1e-12)
    generator = torch.Generator().manual_seed(2)
    v = torch.randn(len(mean), 3, generator=generator, dtype=torch.float64)
    for centered, matrix in ((True, covariance), (False, second)):
        assert torch.allclose(noise.dense(centered), matrix, atol=1e-12)
        assert torch.allclose(noise.matvec(v[:, 0], centered), matrix @ v[:, 0], atol=1e-12)
        assert torch.allclose(noise.matmat(v, centered), matrix @ v, atol=1e-12)
        assert torch.allclose(noise.diagonal(centered), matrix.diagonal(), atol=1e-12)
        assert noise.trace(centered=centered).value == pytest.approx(float(matrix.trace()))
    assert torch.allclose(noise.slopes(v[:, 0]), rows @ v[:, 0], atol=1e-12)


def test_batch_covariance_by_enumeration():
    rows = loop_gradients(net().eval())[:6, :4]
    centered = rows - rows.mean(0)
    c = centered.T @ centered / 6
    subsets = torch.stack([rows[list(s)].mean(0) for s in itertools.combinations(range(6), 4)])
    tuples = torch.stack([rows[list(s)].mean(0) for s in itertools.product(range(6), repeat=4)])
    for batches, batching in ((subsets, "subset"), (tuples, "replacement")):
        found = torch.cov(batches.T, correction=0)
        factor = pvi.noise.batch_factor(4, 6, batching)
        assert torch.allclose(found, factor * c, atol=1e-14)
    assert of_module().batch_factor(4, "subset") == pytest.approx((N - 4) / (N - 1) / 4)


def test_trace_estimates_carry_their_errors():
    noise = of_module()
    exact, estimate = noise.trace(), noise.trace(num_probes=200)
    assert exact.standard_error == 0
    assert abs(estimate.value - exact.value) < 5 * estimate.standard_error
    # Hutchinson's estimator is v' C v for vectors of random signs.
    generator = torch.Generator().manual_seed(0)
    signs = torch.stack([torch.randint(2, (43,), generator=generator) for _ in range(200)])
    signs = 2.0 * signs.double() - 1
    values = ((signs @ noise.dense()) * signs).sum(1)
    assert estimate.value == pytest.approx(float(values.mean()), rel=1e-10)
    assert estimate.standard_error == pytest.approx(float(values.std()) / 200**0.5, rel=1e-10)
    squared = (loop_gradients(net().eval()) - noise.gradient).square().sum(1)
    assert exact.sampling_error == pytest.approx(float(squared.std()) / N**0.5)
    assert sum(noise.by_tensor().values()) == pytest.approx(exact.value)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("count", [N, 200])
def test_spectrum(centered, count):
    # D = 43: N = 37 goes through the Gram matrix, N = 200 through the covariance.
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (count,), generator=generator)
    noise = pvi.noise.measure(net(), (x, y), loss_fn=nn.functional.cross_entropy)
    matrix = noise.dense(centered).numpy()
    wanted = np.linalg.eigvalsh(matrix)[::-1]
    exact = noise.spectrum(centered=centered)
    size = len(exact.eigenvalues)
    assert size == min(count, 43)
    assert np.allclose(exact.eigenvalues, wanted[:size], atol=1e-14)
    assert exact.trace == pytest.approx(np.trace(matrix))
    assert exact.rank(np.finfo(np.float64).eps) == np.linalg.matrix_rank(matrix, hermitian=True)
    assert exact.threshold() == pytest.approx(wanted[0] * 43 * 2**-23)
    assert exact.rank(0.01 / 43) == (wanted > 0.01 * wanted[0]).sum()
    assert exact.effective_rank == pytest.approx(np.trace(matrix) ** 2 / (matrix**2).sum())
    assert exact.anisotropy == pytest.approx(wanted[0] / wanted.mean())
    assert exact.mean == pytest.approx(wanted.mean())
    assert exact.std == pytest.approx(wanted.std())
    top = noise.spectrum(top=6, centered=centered)
    assert np.allclose(top.eigenvalues, wanted[:6], rtol=1e-3)
    assert (abs(top.eigenvalues.numpy() - wanted[:6]) <= top.error.numpy() + 1e-12).all()
    for k in range(6):
        vector = top.vectors[:, k]
        residual = torch.from_numpy(matrix) @ vector - top.eigenvalues[k] * vector
        assert float(residual.norm()) <= 1.01 * float(top.error[k]) + 1e-14
        assert float(top.error[k]) < 0.02 * float(top.eigenvalues[k])
    assert top.trace == pytest.approx(exact.trace)
    with pytest.raises(ValueError, match="at least 6"):
        top.rank()
    more = noise.spectrum(top=43, centered=centered)
    assert more.rank(1e-6) == exact.rank(1e-6)


def wide(count: int = 200) -> pvi.noise.GradientNoise:
    """D = 323."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    x = torch.randn(count, 4, dtype=torch.float64)
    return pvi.noise.measure(module, (x, torch.randint(3, (count,))), nn.functional.cross_entropy)


@pytest.mark.parametrize("road", ["matrix", "held", "anew"])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("count", [200, 400])
def test_every_road_gives_the_largest_eigenvalues(road, centered, count, monkeypatch):
    noise = wide(count)
    if road != "matrix":
        monkeypatch.setattr(
            "particlevi.noise.eigenvalues._Size.matrix_is_cheaper", lambda size, top: False
        )
    found = noise.spectrum(top=5, centered=centered, max_bytes=2.4e5 if road == "anew" else 2e9)
    matrix = noise.dense(centered)
    values, vectors = torch.linalg.eigh(matrix)
    assert torch.allclose(found.eigenvalues, values.flip(0)[:5], rtol=1e-4)
    assert found.trace == pytest.approx(float(matrix.trace()))
    overlap = torch.linalg.svdvals(found.vectors.T @ vectors[:, -5:])
    assert torch.allclose(overlap, torch.ones(5, dtype=torch.float64), atol=1e-3)


def test_many_eigenvalues_come_from_all_of_them(monkeypatch):
    """A space for so many would cost more than all eigenvalues of the matrix."""
    monkeypatch.setattr("particlevi.noise.eigenvalues._SMALL", 0)
    monkeypatch.delattr("particlevi.noise.eigenvalues.top_spectrum")
    monkeypatch.delattr("particlevi.noise.spectrum.top_spectrum")
    noise = wide()
    wanted = torch.linalg.eigvalsh(noise.dense()).flip(0)[:150]
    assert torch.allclose(noise.spectrum(top=150).eigenvalues, wanted, atol=1e-14)


def test_a_matrix_costs_no_more_than_all_its_eigenvalues():
    """For 134 of 3000 a space inside the matrix would, and one of gradients costs as much."""
    assert _Size(3000, 3000, 3000, 4).matrix_is_cheaper(134)


def test_all_eigenvalues_without_per_sample_gradients(monkeypatch):
    noise = wide()
    wanted = torch.linalg.eigvalsh(noise.dense()).flip(0)[:200]
    monkeypatch.delattr(type(noise.samples), "gradients")
    assert torch.allclose(noise.spectrum().eigenvalues, wanted, atol=1e-14)


def test_the_trace_without_per_sample_gradients(monkeypatch):
    noise = wide()
    wanted = float(noise.dense().trace())
    monkeypatch.delattr(type(noise.samples), "gradients")
    assert noise.trace().value == pytest.approx(wanted, rel=1e-10)


def test_eigenvectors_where_the_noise_has_fewer_directions():
    """Two data that differ: one direction; the others are orthonormal and carry no noise."""
    module = net()
    x, y = data()
    noise = pvi.noise.measure(
        module, (x[:2].repeat(3, 1), y[:2].repeat(3)), nn.functional.cross_entropy
    )
    found = noise.spectrum(top=3)
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(3).double(), atol=1e-12)
    assert float((noise.dense() @ found.vectors[:, 1:]).norm()) < 1e-14


def test_data_without_any_noise_have_eigenvalues_of_zero():
    x, y = data()
    same = x[:1].repeat(5, 1), y[:1].repeat(5)
    found = pvi.noise.measure(net(), same, nn.functional.cross_entropy).spectrum(top=2)
    assert found.eigenvalues.abs().max() < 1e-14
    assert found.vectors.isfinite().all()


def test_a_spectrum_travels_with_its_eigenvectors():
    found = wide().spectrum(top=3)
    there = pickle.loads(pickle.dumps(found))
    assert torch.equal(there.vectors, found.vectors)


@pytest.mark.parametrize("top", [None, 5])
def test_less_memory_than_the_eigenvalues_take_is_refused(top):
    with pytest.raises(MemoryError, match="raise max_bytes"):
        wide().spectrum(top=top, max_bytes=1e5)


def test_restriction_to_a_layer_is_a_diagonal_block():
    noise = of_module()
    layer = noise.restrict("3.*")
    assert torch.allclose(layer.dense(), noise.dense()[25:, 25:], atol=1e-14)
    v = torch.ones(18, dtype=torch.float64)
    assert torch.allclose(layer.matvec(v), noise.dense()[25:, 25:] @ v, atol=1e-12)
    with pytest.raises(ValueError, match="matches none"):
        noise.restrict("9.*")


def test_training_mode_has_one_mask_per_datum(monkeypatch):
    monkeypatch.setattr("particlevi.noise.covariance._MOST_NUMBERS", 4 * 43)
    noise = pvi.noise.measure(
        net(0.5), data(), loss_fn=nn.functional.cross_entropy, mode="train", chunk_size=10
    )
    v = torch.randn(43, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(noise.matvec(v), noise.dense() @ v, atol=1e-12)
    plain = pvi.noise.measure(net(0.5), data(), loss_fn=nn.functional.cross_entropy)
    assert torch.allclose(plain.dense(), of_module().dense(), atol=1e-14)
    assert not torch.allclose(plain.dense(), noise.dense(), rtol=0.1)


def test_noise_along_a_trajectory():
    noise = of_module()
    positions = torch.stack([noise.position, torch.zeros_like(noise.position)])
    path = pvi.noise.noise_along(noise, positions)
    assert path.trace[0] == pytest.approx(noise.trace().value)
    here = noise.at(positions[1])
    assert path.gradient_norm[1] == pytest.approx(float(here.gradient.norm()))
    assert path.largest[1] == pytest.approx(float(here.spectrum().eigenvalues[0]), rel=1e-3)


def test_memory_is_bounded_by_the_chunk(monkeypatch):
    noise = of_module()
    monkeypatch.setattr("particlevi.noise.covariance._MOST_NUMBERS", 4 * 43)
    assert [len(rows) for rows in noise.per_sample()] == [4] * 9 + [1]


def test_bad_input():
    potential = pvi.from_log_density(lambda theta: -theta.square().sum(), num_params=2)
    loss_fn = nn.functional.cross_entropy
    with pytest.raises(ValueError, match="without data"):
        pvi.noise.measure(potential, data(), position=torch.zeros(2))
    with pytest.raises(ValueError, match="loss_fn"):
        pvi.noise.measure(net(), data())
    with pytest.raises(ValueError, match="one length"):
        pvi.noise.measure(net(), (data()[0], data()[1][:3]), loss_fn=loss_fn)
    with pytest.raises(ValueError, match="finite"):
        pvi.noise.measure(net(), (data()[0] / 0, data()[1]), loss_fn=loss_fn)
    with pytest.raises(ValueError, match="shape"):
        of_module().at(torch.zeros(3))
    with pytest.raises(ValueError, match="Batch normalisation"):
        pvi.noise.measure(
            nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), data(), loss_fn=loss_fn, mode="train"
        )
    with pytest.raises(TypeError, match="potential or a module"):
        pvi.noise.measure(3, data())
    with pytest.raises(ValueError, match="num_data=5"):
        model = pvi.from_module(net(), pvi.Categorical(), pvi.Normal(1.0), num_data=5)
        pvi.noise.measure(model, data(), position=torch.zeros(43))


def test_average_over_draws():
    """The mean of the dense covariances, its error over draws, and the same in directions."""
    noise = of_module()
    generator = torch.Generator().manual_seed(0)
    draws = noise.position + 0.3 * torch.randn(
        3, 2, noise.num_params, generator=generator, dtype=noise.position.dtype
    )
    each = torch.stack([noise.at(x).dense() for x in draws.flatten(0, 1)])
    found = pvi.noise.average(noise, draws)
    assert torch.allclose(found.matrix, each.mean(0), atol=1e-12)
    assert torch.allclose(found.standard_error, each.std(0) / 6**0.5, atol=1e-12)
    v = torch.linalg.qr(torch.randn(noise.num_params, 2, generator=generator))[0]
    inside = pvi.noise.average(noise, draws, v)
    wanted = v.double().T @ found.matrix @ v.double()
    assert torch.allclose(inside.matrix, wanted, atol=1e-6)
    with pytest.raises(ValueError, match="draws"):
        pvi.noise.average(noise, draws[..., :2])
    with pytest.raises(ValueError, match="draws"):
        pvi.noise.average(noise, draws[:, :0])
    with pytest.raises(ValueError, match="directions"):
        pvi.noise.average(noise, draws, v.T)


def test_columns_of_another_dtype():
    noise = of_module()
    v = torch.eye(noise.num_params)[:, :2]
    for dtype in (torch.float32, torch.float64):
        found = noise.matmat(v.to(dtype))
        assert found.dtype == noise.position.dtype
        assert torch.allclose(found.double(), noise.dense()[:, :2], atol=1e-6)
    with pytest.raises(ValueError, match="columns"):
        noise.matmat(v[:, 0])


@pytest.mark.parametrize(("top", "whole"), [(3, False), (6, True), (9, True)])
def test_the_space_of_the_largest_eigenvalues_stops_at_the_rank(top, whole):
    """A tolerance that rounding never meets; 50 parameters, rank 6, a first block of 8."""
    half = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double()
    matrix = half @ half.T
    columns = []

    def apply(block):
        columns.append(block.shape[1])
        return matrix @ block + 1e-9 * torch.sin(1e3 * block)

    found = top_spectrum(
        apply,
        top,
        float(matrix.trace()),
        num_params=50,
        num_data=7,
        like=half,
        seed=0,
        rank=6,
        tolerance=0.0,
    )
    assert sum(columns) <= 6 + 8
    assert found.complete == whole
    wanted = torch.linalg.eigvalsh(matrix).flip(0)[: len(found.eigenvalues)]
    assert torch.allclose(found.eigenvalues, wanted, atol=1e-6)


def test_a_space_that_is_kept_small_finds_the_same_eigenvalues():
    """A flat spectrum, Gaussian data of rank 400: 10 of 400 from 52 columns at once."""
    rows = torch.randn(400, 2000, generator=torch.Generator().manual_seed(0))
    evaluated = []

    def apply(block):
        evaluated.append(block.shape[1])
        return rows.T @ (rows @ block) / 400

    found = top_spectrum(
        apply,
        10,
        2000.0,
        num_params=2000,
        num_data=400,
        like=rows,
        seed=0,
        tolerance=1e-3,
        basis_bytes=0,
    )
    assert sum(evaluated) > 2 * 10 + 4 * 8  # it was reduced at least once
    wanted = torch.linalg.eigvalsh((rows @ rows.T).double() / 400).flip(0)[:10]
    assert torch.allclose(found.eigenvalues, wanted, rtol=1e-5)


def passes(noise: pvi.noise.GradientNoise, call, monkeypatch) -> float:
    """Data that are read in a call, over N."""
    seen = []
    samples = type(noise.samples)
    piece = samples.piece

    def counted(self, start, stop):
        seen.append(min(stop, self.num_data) - start)
        return piece(self, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(samples, "piece", counted)
        call()
    return sum(seen) / noise.num_data


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda noise: noise.gradient, 1),
        (lambda noise: noise.matvec(noise.position), 2),
        (lambda noise: noise.diagonal(), 1),
        (lambda noise: noise.trace(), 3),
        (lambda noise: noise.spectrum(), 1),
        (lambda noise: noise.spectrum(top=5), 1),
        (lambda noise: noise.spectrum(top=5).vectors, 2),
    ],
    ids=["gradient", "matvec", "diagonal", "trace", "spectrum", "top", "vectors"],
)
def test_passes_over_the_data(call, wanted, monkeypatch):
    """One datum more where the numbers that are kept of a gradient have to be counted."""
    noise = wide()
    assert passes(noise, lambda: call(noise), monkeypatch) in (wanted, wanted + 1 / 200)


@pytest.mark.parametrize(("columns", "wanted"), [(1, 2), (3, 4), (8, 1), (20, 1)])
def test_columns_take_no_more_passes_than_one_by_one(columns, wanted, monkeypatch):
    """One by one, 2 K; D = 323, where per-sample gradients begin with 9 columns."""
    noise = wide()
    _ = noise.gradient
    v = torch.randn(323, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert passes(noise, lambda: noise.matmat(v), monkeypatch) == wanted


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("columns", [3, 8, 20])
def test_columns_by_every_road(columns, centered):
    noise = wide()
    v = torch.randn(323, columns, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(noise.matmat(v, centered), noise.dense(centered) @ v, atol=1e-12)


@pytest.mark.parametrize("few", [4, 0])
def test_columns_see_the_same_dropout_masks(few, monkeypatch):
    monkeypatch.setattr("particlevi.noise.covariance._MOST_NUMBERS", 4 * 43)
    noise = pvi.noise.measure(
        net(0.5), data(), loss_fn=nn.functional.cross_entropy, mode="train", chunk_size=10
    )
    monkeypatch.setattr("particlevi.noise.covariance._FEW", few)
    v = torch.randn(43, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(noise.matmat(v), noise.dense() @ v, atol=1e-12)
