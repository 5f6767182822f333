"""The inverse of SGD's stationary law: closed forms, and what no neighbour does better."""

from __future__ import annotations

import pytest
import torch

from particlevi.sgdvi import design, epoch_chain, optimal_preconditioner, optimal_rate, sgd_chain
from particlevi.sgdvi.inverse import covariance_kl, required_noise
from particlevi.sgdvi.preconditioners import family

F64 = torch.float64
D, N, B = 5, 200, 10
SHAPES = [(2, 2), (1,)]
FAMILIES = ["scalar", "diagonal", "low_rank", "kronecker"]


def positive(seed: int, floor: float = 0.1):
    a = torch.randn(D, 2 * D, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return a @ a.T / (2 * D) + floor * torch.eye(D)


F, C, OTHER = positive(0), positive(1), positive(2) / N
POSTERIOR = torch.linalg.inv(N * F)
SANDWICH = torch.linalg.inv(F) @ C @ torch.linalg.inv(F) / N
TARGETS = {"posterior": POSTERIOR, "sandwich": SANDWICH, "other": OTHER}
COMMON = {"batch_size": B, "num_data": N}


def absorbed(found):
    return found.learning_rate * found.preconditioner


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("injected", [False, True])
def test_a_full_preconditioner_reaches_any_gaussian(target, momentum, injected):
    found = design(F, C, target, momentum=momentum, injected=injected, **COMMON)
    assert torch.allclose(found.covariance, target, rtol=0, atol=1e-10 * float(target.max()))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("batching", ["replacement", "subset"])
def test_the_posterior_has_a_closed_form_at_any_rate(momentum, batching):
    found = design(F, C, POSTERIOR, momentum=momentum, batching=batching, injected=False, **COMMON)
    factor = 1 / B if batching == "replacement" else (N - B) / (N - 1) / B
    inner = N * factor * C + (1 - momentum) / (1 + momentum) * F
    wanted = 2 * (1 - momentum) * torch.linalg.inv(inner)
    assert torch.allclose(absorbed(found), wanted, rtol=1e-10, atol=1e-12)


def test_small_rates_give_the_preconditioner_of_mandt_hoffman_and_blei():
    found = design(F, C, POSTERIOR, injected=False, law="small_rates", **COMMON)
    wanted = optimal_preconditioner(C, num_data=N, batch_size=B)
    assert torch.allclose(absorbed(found), wanted, rtol=1e-10, atol=1e-12)


def test_small_rates_give_the_rate_of_mandt_hoffman_and_blei():
    found = design(
        F, C, POSTERIOR, preconditioner="scalar", injected=False, law="small_rates", **COMMON
    )
    wanted = optimal_rate(C, num_data=N, batch_size=B)
    assert found.learning_rate == pytest.approx(wanted, rel=1e-10)


def test_small_rates_give_the_diagonal_of_mandt_hoffman_and_blei():
    """Their diagonal form is exact where F and C are diagonal."""
    f, c = torch.diag(F.diagonal()), torch.diag(C.diagonal())
    found = design(
        f,
        c,
        torch.linalg.inv(N * f),
        preconditioner="diagonal",
        injected=False,
        law="small_rates",
        **COMMON,
    )
    wanted = optimal_preconditioner(c, num_data=N, batch_size=B, diagonal=True)
    assert torch.allclose(absorbed(found).diagonal(), wanted, rtol=1e-9)


def test_exact_designs_tend_to_small_rates_with_the_batch_over_the_data():
    """The relative difference falls as b / N."""
    away = []
    for n in (10**4, 10**5, 10**6):
        found = design(F, C, torch.linalg.inv(n * F), batch_size=B, num_data=n, injected=False)
        wanted = optimal_preconditioner(C, num_data=n, batch_size=B)
        away.append(float((absorbed(found) - wanted).norm() / wanted.norm()))
    assert away[0] / away[1] == pytest.approx(10, rel=0.05)
    assert away[1] / away[2] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_required_noise_makes_the_target_stationary(momentum):
    h = 0.02 * positive(3)
    noise = required_noise(F.numpy(), OTHER.numpy(), h.numpy(), momentum)
    step = torch.eye(D, dtype=F64) - h @ F
    # The covariance of (x_t, x_t-1) under x_t+1 = ((1 + m) - H F) x_t - m x_t-1 - H xi.
    one, zero = torch.eye(D, dtype=F64), torch.zeros(D, D, dtype=F64)
    pair = torch.cat([torch.cat([step + momentum * one, -momentum * one], 1),
                      torch.cat([one, zero], 1)])  # fmt: skip
    kick = torch.block_diag(h @ torch.from_numpy(noise) @ h, zero)
    wide = torch.eye(4 * D * D, dtype=F64) - torch.kron(pair, pair)
    joint = torch.linalg.solve(wide, kick.reshape(-1)).view(2 * D, 2 * D)
    assert torch.allclose(joint[:D, :D], OTHER, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("structure", FAMILIES)
def test_no_neighbour_in_the_family_is_closer_to_the_target(structure, momentum):
    found = design(
        F,
        C,
        SANDWICH,
        preconditioner=structure,
        momentum=momentum,
        injected=False,
        shapes=SHAPES,
        **COMMON,
    )
    members = family(structure, D, SHAPES)
    generator = torch.Generator().manual_seed(0)
    size = len(members.start(absorbed(found)))
    if structure in ("scalar", "diagonal"):
        numbers = members.start(absorbed(found))
        for _ in range(20):
            near = numbers + 0.02 * torch.randn(size, generator=generator, dtype=F64)
            chain = sgd_chain(
                F,
                C,
                learning_rate=1.0,
                batch_size=B,
                momentum=momentum,
                preconditioner=members.matrix(near),
            )
            assert float(covariance_kl(chain.covariance, SANDWICH)) > found.kl
    for scale in (0.9, 1.1):
        chain = sgd_chain(
            F,
            C,
            learning_rate=scale * found.learning_rate,
            batch_size=B,
            momentum=momentum,
            preconditioner=found.preconditioner,
        )
        assert float(covariance_kl(chain.covariance, SANDWICH)) > found.kl


def test_wider_families_come_closer():
    kl = {
        structure: design(
            F, C, POSTERIOR, preconditioner=structure, injected=False, shapes=SHAPES, **COMMON
        ).kl
        for structure in [*FAMILIES, "full"]
    }
    assert kl["full"] < 1e-10 < kl["low_rank"] < kl["diagonal"] < kl["scalar"]
    assert kl["kronecker"] < kl["scalar"]


def test_kronecker_factors_give_kronecker_blocks():
    found = design(
        F, C, POSTERIOR, preconditioner="kronecker", injected=False, shapes=SHAPES, **COMMON
    )
    h = found.preconditioner
    assert not h[:4, 4:].any()
    rearranged = h[:4, :4].view(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)
    assert torch.linalg.matrix_rank(rearranged, rtol=1e-10) == 1


@pytest.mark.parametrize("structure", FAMILIES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_injected_noise_makes_every_family_exact_for_the_posterior(structure, momentum):
    found = design(
        F, C, POSTERIOR, preconditioner=structure, momentum=momentum, shapes=SHAPES, **COMMON
    )
    assert found.kl < 1e-10
    assert found.injected is not None
    assert torch.linalg.eigvalsh(found.injected).min() > -1e-12


def test_noise_is_injected_where_there_is_none():
    c = C.clone()
    c[0], c[:, 0] = 0, 0
    found = design(F, c, POSTERIOR, **COMMON)
    assert found.kl < 1e-10
    assert found.injected is not None
    lowest = torch.linalg.eigvals(found.chain.step).real.min()
    assert lowest > -1e-9


def test_averages_over_an_epoch_reach_the_sandwich_for_one_epoch_of_gradients():
    found = design(F, C, SANDWICH, averaging=N // B, **COMMON)
    assert found.kl < 1e-9
    assert found.gradients_per_effective_sample == pytest.approx(N, rel=1e-4)


def test_epochs_take_the_rate_with_the_least_divergence():
    found = design(F, C, POSTERIOR, batching="epoch", **COMMON)
    for scale in (0.9, 1.1):
        chain = epoch_chain(
            F,
            C,
            num_data=N,
            learning_rate=scale * found.learning_rate,
            batch_size=B,
            preconditioner=found.preconditioner,
        )
        assert float(covariance_kl(chain.covariance, POSTERIOR)) > found.kl


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": -POSTERIOR}, "positive-definite"),
        ({"preconditioner": "block"}, "preconditioner must be one of"),
        ({"batching": "epoch", "momentum": 0.5}, "Plans for epochs"),
        ({"law": "small_rates", "averaging": 3}, "small_rates"),
        ({"shapes": [(2, 2)]}, "shapes must be"),
    ],
)
def test_what_does_not_fit_is_refused(change, words):
    options = {"target": POSTERIOR} | COMMON | change
    with pytest.raises(ValueError, match=words):
        design(F, C, **options)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_shorter_steps_where_curvature_grows_sample_the_same_law(target, momentum):
    found = design(F, C, target, momentum=momentum, curvature_growth=4.0, **COMMON)
    assert torch.allclose(found.covariance, target, rtol=0, atol=1e-10 * float(target.max()))


@pytest.mark.parametrize("structure", ["full", "scalar", "diagonal"])
def test_where_curvature_grows_steps_stay_stable(structure):
    plain, short = (
        design(F, 0.01 * C, POSTERIOR, preconditioner=structure, curvature_growth=g, **COMMON)
        for g in (1.0, 4.0)
    )
    longest = [float(torch.linalg.eigvals(absorbed(d) @ F).real.max()) for d in (plain, short)]
    assert longest[0] > 2 / 4
    assert longest[1] < 1.2 / 4
