"""The law of the structured estimators, read off the step itself.

On a Gaussian a step with given masks and historical values is affine, ``theta' = A theta + b``,
and the law that it leaves invariant has the covariance that solves
``V = E[A V A'] + E[b b'] + B B'``. Masks and values take finitely many values, or are replaced by
the nodes of a quadrature that is exact for the polynomial at hand; every one of them is a particle
of one batched step.
"""

import collections
import itertools
import math

import numpy as np
import pytest
import scipy.special
import torch

import particlevi as pvi
from particlevi.gradients.history import Bank
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

D64 = torch.float64


def gaussian(precision):
    return pvi.from_log_density(
        lambda theta: -0.5 * ((theta @ precision) * theta).sum(-1),
        num_params=len(precision),
        vectorized=True,
        dtype=D64,
    )


def correlated(r):
    covariance = torch.tensor([[1.0, r], [r, 1.0]], dtype=D64)
    return torch.linalg.inv(covariance)


def random_precision(size, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=D64)
    return root @ root.T / size + 0.5 * torch.eye(size, dtype=D64)


def frozen(size):
    return pvi.gradients.history(initial=torch.zeros(1, size, dtype=D64), frozen=True)


def combinations(values, count):
    """All ``len(values) ** count`` choices, ``[S, count]``."""
    return torch.tensor(list(itertools.product(values, repeat=count)), dtype=D64)


def given(masks, values):
    """A state and the noise that make a step use these masks and values ``[S, P, D]``."""
    count, num_particles, size = values.shape
    bank = values.transpose(0, 1).contiguous()
    state = Bank(bank, torch.tensor(num_particles), torch.tensor(count))
    return state, (masks, torch.arange(count).view(1, -1, 1).expand(num_particles, -1, size))


def dropped(masks, values):
    """The same with random masks ``[L, P, M]``."""
    return given(masks.transpose(0, 1), values)


def estimate(estimator, particles, batch, state_and_noise):
    state, noise = state_and_noise
    return estimator(state, particles, batch, noise)


def affine(sampler, state_and_noise, num_particles, step_size, temperature):
    """``A [P, D, D]``, ``b [P, D]`` and ``B [D, D]`` of the step with given masks and values."""
    size = sampler.potential.num_params
    controls = {
        "step_size": torch.tensor(step_size, dtype=D64),
        "temperature": torch.tensor(temperature, dtype=D64),
    }

    def move(start, xi):
        position = start.expand(num_particles, size).contiguous()
        bank, noise = state_and_noise
        state = sampler.init(position, ParticleStreams(0))._replace(estimator=bank)
        random = (xi.expand(num_particles, size), noise)
        return sampler.step(state, None, random, controls)[0].position

    zero, basis = torch.zeros(size, dtype=D64), torch.eye(size, dtype=D64)
    b = move(zero, zero)
    columns = torch.stack([move(e, zero) - b for e in basis], dim=-1)
    diffusion = torch.stack([move(zero, e)[0] - b[0] for e in basis], dim=-1)
    return columns, b, diffusion


def stationary(second, added):
    """V of ``V = second(V) + added`` with ``second`` given as ``E[A kron A]``."""
    size = len(added)
    flat = torch.linalg.solve(torch.eye(size**2, dtype=D64) - second, added.reshape(-1))
    return flat.view(size, size)


def law(weights, a, b, diffusion):
    """The stationary covariance; ``weights [P]`` of the particles."""
    size = a.shape[-1]
    kron = torch.einsum("p,pij,pkl->ikjl", weights, a, a).reshape(size**2, size**2)
    assert torch.allclose(weights @ b, torch.zeros(size, dtype=D64), atol=1e-14)
    shifts = torch.einsum("p,pi,pj->ij", weights, b, b)
    return stationary(kron, shifts + diffusion @ diffusion.T)


def dropout_law(precision, groups, nodes, weights, num_masks, h, temperature, mask, keep=None):
    """The law with L masks whose entries take ``nodes`` with ``weights``, values all zero.

    That L masks act as the mean of L single ones is ``test_masks_average``; so ``E[A kron A]`` for
    L of them follows from that for one.
    """
    num_groups = int(groups.max()) + 1
    estimator = pvi.structured_dropout(
        gaussian(precision), groups, keep, num_masks=1, mask=mask, history=frozen(len(precision))
    )
    masks = combinations(nodes, num_groups)
    probability = combinations(weights, num_groups).prod(-1)
    values = torch.zeros(1, len(masks), len(precision), dtype=D64)
    sampler = pvi.sgld(estimator, temperature=temperature)
    a, b, diffusion = affine(
        sampler, dropped(masks.unsqueeze(0), values), len(masks), h, temperature
    )
    size = len(precision)
    mean = torch.einsum("p,pij->ij", probability, a)
    fluctuation = torch.einsum("p,pij,pkl->ikjl", probability, a - mean, a - mean)
    kron = torch.kron(mean, mean) + fluctuation.reshape(size**2, size**2) / num_masks
    assert not b.any()
    return stationary(kron, diffusion @ diffusion.T)


def closed_form_dropout(precision, groups, moment, num_masks, h, temperature):
    """The same law from ``moment(k) = E r^k``, without a step."""
    size, lam = len(precision), precision.numpy()
    numbers = groups.tolist()

    def expected(*coordinates):
        counts = collections.Counter(numbers[c] for c in coordinates)
        return math.prod(moment(power) for power in counts.values()) / moment(1) ** (
            len(coordinates) // 2
        )

    pairs = list(itertools.product(range(size), repeat=2))
    mean = np.array([[expected(i, j) * lam[i, j] for j in range(size)] for i in range(size)])
    square = np.array(
        [
            [
                expected(i, j, k, m) * lam[i, j] * lam[k, m] / num_masks
                + (1 - 1 / num_masks) * mean[i, j] * mean[k, m]
                for j, m in pairs
            ]
            for i, k in pairs
        ]
    )
    eye = np.eye(size)
    kron = np.eye(size**2) - h * (np.kron(mean, eye) + np.kron(eye, mean)) + h**2 * square
    return stationary(torch.as_tensor(kron), torch.as_tensor(2 * h * temperature * eye))


@pytest.mark.parametrize(
    ("keep", "variance", "covariance"),
    [(0.1, 0.2033, 0.0167), (0.5, 0.2443, 0.1070), (0.9, 0.5580, 0.4476)],
)
def test_bernoulli_masks_give_the_published_numbers(keep, variance, covariance):
    v = dropout_law(
        correlated(0.9),
        torch.arange(2),
        [0.0, 1.0],
        [1 - keep, keep],
        8,
        0.01,
        1.0,
        "bernoulli",
        keep,
    )
    assert torch.allclose(v.diagonal(), torch.full((2,), variance, dtype=D64), atol=6e-5)
    assert abs(v[0, 1] - covariance) < 6e-5


def test_uniform_masks_inflate_marginals():
    nodes, weights = np.polynomial.legendre.leggauss(3)
    v = dropout_law(
        correlated(0.9),
        torch.arange(2),
        list((nodes + 1) / 2),
        list(weights / 2),
        8,
        0.01,
        1.0,
        "uniform",
    )
    wanted = closed_form_dropout(
        correlated(0.9), torch.arange(2), lambda power: 1 / (power + 1), 8, 0.01, 1.0
    )
    assert torch.allclose(v, wanted, rtol=1e-10)
    assert float(v[0, 0]) == pytest.approx(0.5295, abs=5e-5)
    assert float(v[0, 1]) == pytest.approx(0.3534, abs=5e-5)


@pytest.mark.parametrize("concentrations", [(0.5, 0.5), (2.0, 1.0)])
def test_masks_between_0_and_1_scale_the_blocks(concentrations):
    """As the step size vanishes: diagonal blocks by ``E r^2 / E r``, others by ``E r``."""
    a, b = concentrations
    nodes, weights = scipy.special.roots_sh_jacobi(3, a + b - 1, a)
    weights = weights / weights.sum()
    precision = random_precision(3, 5)
    groups = torch.tensor([0, 1, 1])
    v = dropout_law(precision, groups, list(nodes), list(weights), 4, 1e-7, 0.7, ("beta", a, b))
    first, second = a / (a + b), a * (a + 1) / (a + b) / (a + b + 1)
    same = groups[:, None] == groups[None, :]
    wanted = torch.where(same, second / first, first) * precision
    assert torch.allclose(v, 0.7 * torch.linalg.inv(wanted), rtol=1e-5)


CASES = [
    (correlated(0.9), [0, 1], 0.1, 8, 0.01, 1.0),
    (correlated(-0.6), [0, 1], 0.3, 2, 0.05, 2.5),
    (random_precision(4, 0), [0, 1, 1, 2], 0.5, 3, 0.04, 0.3),
    (random_precision(5, 1), [2, 0, 1, 0, 3], 0.8, 1, 0.02, 1.7),
]


@pytest.mark.parametrize(("precision", "groups", "keep", "num_masks", "h", "temperature"), CASES)
def test_bernoulli_law_follows_from_the_moments_of_the_masks(
    precision, groups, keep, num_masks, h, temperature
):
    groups = torch.tensor(groups)
    v = dropout_law(
        precision,
        groups,
        [0.0, 1.0],
        [1 - keep, keep],
        num_masks,
        h,
        temperature,
        "bernoulli",
        keep,
    )
    wanted = closed_form_dropout(precision, groups, lambda power: keep, num_masks, h, temperature)
    assert torch.allclose(v, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("precision", "groups", "keep", "num_masks", "h", "temperature"), CASES)
def test_bernoulli_law_interpolates_between_factorised_and_joint(
    precision, groups, keep, num_masks, h, temperature
):
    groups = torch.tensor(groups)
    v = dropout_law(
        precision,
        groups,
        [0.0, 1.0],
        [1 - keep, keep],
        num_masks,
        1e-7,
        temperature,
        "bernoulli",
        keep,
    )
    same = groups[:, None] == groups[None, :]
    blocks = torch.where(same, precision, torch.zeros_like(precision))
    wanted = torch.linalg.inv((1 - keep) * blocks + keep * precision)
    assert torch.allclose(v, temperature * wanted, rtol=1e-5)


@pytest.mark.parametrize(("keep", "num_masks"), [(0.1, 4), (0.5, 1), (0.9, 3)])
def test_masks_narrow_the_range_of_stable_steps(keep, num_masks):
    """At the bound the second moment of a step's factor is 1."""
    estimator = pvi.structured_dropout(
        gaussian(torch.tensor([[3.0, 0.0], [0.0, 5.0]], dtype=D64)),
        "parameter",
        keep,
        num_masks,
        history=frozen(2),
    )
    masks = combinations([0.0, 1.0], num_masks).T.unsqueeze(-1).expand(-1, -1, 2)
    weights = combinations([1 - keep, keep], num_masks).prod(-1)
    h = 2 / (1 + (1 - keep) / (keep * num_masks)) / 3.0
    values = torch.zeros(*masks.shape, dtype=D64)
    a, _, _ = affine(pvi.sgld(estimator), dropped(masks, values), len(weights), h, 1.0)
    assert float(weights @ a[:, 0, 0].square()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("mask", ["bernoulli", "uniform"])
def test_masks_average(mask):
    keep = 0.5 if mask == "bernoulli" else None
    precision = random_precision(4, 2)
    generator = torch.Generator().manual_seed(0)
    particles = torch.randn(5, 4, generator=generator, dtype=D64)
    values = torch.randn(8, 5, 4, generator=generator, dtype=D64)
    masks = torch.rand(8, 5, 3, generator=generator, dtype=D64)
    groups = torch.tensor([0, 1, 2, 1])
    estimators = {
        num: pvi.structured_dropout(
            gaussian(precision), groups, keep, num, mask=mask, history=frozen(4)
        )
        for num in (1, 8)
    }
    together = estimate(estimators[8], particles, None, dropped(masks, values))
    apart = [
        estimate(estimators[1], particles, None, dropped(masks[i : i + 1], values[i : i + 1]))
        for i in range(8)
    ]
    for name in ("gradient", "potential"):
        mean = torch.stack([getattr(part, name) for part in apart]).mean(0)
        assert torch.allclose(getattr(together, name), mean, rtol=1e-12)


def one_hot_law(precision, groups, bank, num_history, h, temperature):
    """The law of ``structured`` with a bank ``[S, D]`` of independent entries per group."""
    num_groups = int(groups.max()) + 1
    estimator = pvi.structured(
        gaussian(precision), groups, num_history, pvi.gradients.history(initial=bank, frozen=True)
    )
    composites = num_history * num_groups
    rows = combinations(range(len(bank)), composites * num_groups).long()
    values = bank[
        rows.view(len(rows), composites, num_groups)[:, :, groups], torch.arange(len(precision))
    ].transpose(0, 1)
    sampler = pvi.sgld(estimator, temperature=temperature)
    a, b, diffusion = affine(sampler, given(estimator.one_hot, values), len(rows), h, temperature)
    weights = torch.full((len(rows),), 1 / len(rows), dtype=D64)
    return law(weights, a, b, diffusion)


def test_one_hot_masks_with_a_bank_at_the_mean():
    v = one_hot_law(correlated(0.9), torch.arange(2), torch.zeros(1, 2, dtype=D64), 1, 0.01, 1.0)
    assert torch.allclose(v, 0.19514 * torch.eye(2, dtype=D64), atol=6e-6)


def two_points(variances):
    """Entries ``+sd`` and ``-sd`` per coordinate: mean 0 and these variances in each group."""
    sd = torch.as_tensor(variances, dtype=D64).sqrt()
    return torch.stack([sd, -sd])


def test_one_hot_masks_with_a_bank_that_varies():
    bank = two_points([0.19, 0.19])
    v = one_hot_law(correlated(0.9), torch.arange(2), bank, 1, 0.01, 1.0)
    assert torch.allclose(v, 0.19929 * torch.eye(2, dtype=D64), atol=6e-6)


@pytest.mark.parametrize(
    ("precision", "num_history", "h", "temperature"),
    [
        (correlated(0.9), 2, 0.01, 1.0),
        (correlated(0.5), 3, 0.1, 0.4),
        (random_precision(3, 3), 1, 0.05, 2.0),
    ],
)
def test_one_hot_law_has_its_closed_form(precision, num_history, h, temperature):
    """``(2 T + h s^2) / (l (2 - h l))`` and no correlations, with ``s^2`` from the bank."""
    size = len(precision)
    variances = torch.linspace(0.3, 0.6, size, dtype=D64)
    v = one_hot_law(
        precision, torch.arange(size), two_points(variances), num_history, h, temperature
    )
    curvature = precision.diagonal()
    off = precision - curvature.diag()
    added = (off.square() * variances).sum(1) / num_history
    wanted = (2 * temperature + h * added) / (curvature * (2 - h * curvature))
    assert torch.allclose(v, wanted.diag(), rtol=1e-10, atol=1e-12)


def test_one_hot_law_of_blocks():
    """Within a group correlations stay: ``T blockdiag(Lambda)^-1`` as the step size vanishes."""
    precision = random_precision(5, 4)
    groups = torch.tensor([0, 0, 1, 2, 2])
    v = one_hot_law(precision, groups, torch.zeros(1, 5, dtype=D64), 1, 1e-7, 0.6)
    same = groups[:, None] == groups[None, :]
    blocks = torch.where(same, precision, torch.zeros_like(precision))
    assert torch.allclose(v, 0.6 * torch.linalg.inv(blocks), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("keep", [None, 0.5])
def test_simulation_agrees(keep):
    """A run of many chains through ``sample``, masks and indices drawn by the estimator."""
    precision = correlated(0.9)
    memory = pvi.gradients.history(initial=two_points([0.19, 0.19]), frozen=True)
    if keep is None:
        estimator = pvi.structured(gaussian(precision), torch.arange(2), history=memory)
        wanted = torch.tensor([0.19929, 0.0], dtype=D64)
    else:
        estimator = pvi.structured_dropout(
            gaussian(precision), torch.arange(2), keep, 8, history=frozen(2)
        )
        wanted = torch.tensor([0.2443, 0.1070], dtype=D64)
    chains, times = 1000, 5
    draws = pvi.sample(
        pvi.sgld(estimator),
        step_size=0.01,
        initial=torch.zeros(chains, 2, dtype=D64),
        num_warmup=150,
        num_draws=times,
        thin=40,
        progress=False,
    )
    v = torch.cov(draws.flat().T)
    # the slowest direction forgets: (1 - 0.01 * 2.9) ** 40 = 0.31 at keep = 0.5
    error = torch.tensor([math.sqrt(2), 1.0]) * v[0, 0] * math.sqrt(1.9 / (chains * times))
    assert ((torch.stack([v[0, 0], v[0, 1]]) - wanted).abs() < 5 * error).all()


def pooled_run(r, chains, steps, num_warmup, history):
    """Variance and covariance of chains that make their own history."""
    precision = correlated(r)
    h = 0.05 / float(precision[0, 0])
    draws = pvi.sample(
        pvi.sgld(pvi.structured(gaussian(precision), "parameter", history=history)),
        step_size=h,
        initial=torch.zeros(chains, 2, dtype=D64),
        num_warmup=num_warmup,
        num_draws=steps // 20,
        thin=20,
        progress=False,
    )
    particles = draws.particles
    return particles.square().mean((0, 1)), (particles[..., 0] * particles[..., 1]).mean()


def self_consistent(r):
    """The variance when the bank has the law of the chain itself."""
    precision = correlated(r)
    curvature, coupling = float(precision[0, 0]), float(precision[0, 1])
    h = 0.05 / curvature
    return 2 / (curvature * (2 - h * curvature) - h * coupling**2)


@pytest.mark.parametrize("r", [0.3, 0.5])
def test_own_history_pooled_over_chains(r):
    """Chains that average over each other's past settle on the factorised law."""
    memory = pvi.gradients.history(capacity=40, thin=5, after=50, pooled=True)
    variance, covariance = pooled_run(r, 1000, 300, 200, memory)
    wanted = self_consistent(r)
    assert wanted == pytest.approx({0.3: 0.9354, 0.5: 0.7742}[r], abs=1e-4)
    # 15 draws per chain, 20 steps apart, with autocorrelation 0.95 ** 20
    error = wanted * math.sqrt(2 * 1.3 / (1000 * 15))
    assert (variance - wanted).abs().max() < 5 * error
    assert abs(covariance) < 5 * wanted * math.sqrt(2.1 / (1000 * 15))


@pytest.mark.slow
@pytest.mark.parametrize("r", [0.3, 0.5])
def test_own_history_of_each_chain(r):
    """40 000 steps of chains that each see only their own last 4000."""
    memory = pvi.gradients.history(capacity=4000, thin=1, after=1)
    variance, covariance = pooled_run(r, 50, 40_000, 4000, memory)
    assert variance.mean() == pytest.approx(self_consistent(r), rel=0.03)
    assert abs(covariance) < 0.03


# --- equivalences and invariants -------------------------------------------------------------


def net_potential(dtype=torch.float32, chunk_size=None):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).to(
        dtype
    )
    return pvi.from_module(
        net, pvi.Gaussian(scale=0.5), pvi.Normal(1.0), num_data=20, chunk_size=chunk_size
    )


def net_data(dtype=torch.float32):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x, x[:, :1].sin()


def run(target, **options):
    arguments = {"num_warmup": 10, "num_draws": 30, "batch_size": 5, "num_particles": 4}
    return pvi.sample(
        pvi.sgld(target), net_data(), step_size=1e-3, progress=False, **arguments | options
    ).particles


def test_keep_1_is_the_plain_sampler():
    potential = net_potential()
    kept = pvi.structured_dropout(potential, "layer", keep=1.0)
    assert torch.equal(run(potential), run(kept))
    assert torch.equal(run(potential), run(pvi.structured_dropout(potential, "layer", keep=1)))


def test_one_group_is_the_plain_sampler():
    potential = net_potential()
    one = torch.zeros(potential.num_params, dtype=torch.long)
    assert torch.equal(run(potential), run(pvi.structured(potential, one, num_history=3)))
    assert torch.equal(run(potential), run(pvi.structured_dropout(potential, one, keep=0.3)))


@pytest.mark.parametrize("per_particle", [True, False])
def test_masks_of_ones_give_the_plain_gradient(per_particle):
    """The general path, not the shortcut."""
    potential = net_potential(D64)
    particles = potential.init(3)
    x, y = net_data(D64)
    data = (x.expand(3, -1, -1), y.expand(3, -1, -1)) if per_particle else (x, y)
    batch = Batch(data, per_particle)
    plain = pvi.gradients.minibatch(potential)(None, particles, batch, ())
    values = torch.full((2, 3, potential.num_params), 7.0, dtype=D64)
    estimator = pvi.structured_dropout(potential, "tensor", keep=0.5, num_masks=2)
    kept = estimate(estimator, particles, batch, dropped(torch.ones(2, 3, 4, dtype=D64), values))
    energy = potential.log_prior(particles) + potential(particles, batch)
    prior = torch.autograd.functional.jacobian(lambda p: potential.log_prior(p).sum(), particles)
    wanted = (plain.gradient + prior) / 0.5 - prior
    assert torch.allclose(kept.gradient, wanted, rtol=1e-11, atol=1e-11)
    assert torch.allclose(kept.potential, energy - potential.log_prior(particles), rtol=1e-12)


def one_hot_pieces(potential, particles, batch, values, num_history, groups):
    """The estimate by a loop over composites of the whole potential."""
    num_groups = int(groups.max()) + 1
    total = torch.zeros_like(particles)
    energies = []
    for k in range(num_history):
        for m in range(num_groups):
            composite = torch.where(groups == m, particles, values[k * num_groups + m])
            part = pvi.gradients.minibatch(potential)(None, composite, batch, ())
            total += torch.where(groups == m, part.gradient, 0.0) / num_history
            energies.append(part.potential)
    return total, energies


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 4, 7])
@pytest.mark.parametrize("per_particle", [True, False])
@pytest.mark.parametrize("rule", ["layer", "neuron", "parameter", ("random", 3)])
def test_structured_is_the_sum_over_groups(chunk_size, per_particle, rule):
    potential = net_potential(D64, chunk_size)
    groups = potential.groups(rule)
    num_groups = int(groups.max()) + 1
    generator = torch.Generator().manual_seed(0)
    streams = ParticleStreams(0)
    particles = potential.init(3, streams)
    x, y = net_data(D64)
    index = torch.randint(20, (3, 6) if per_particle else (6,), generator=generator)
    batch = Batch((x[index], y[index]), per_particle)
    values = torch.randn(2 * num_groups, 3, 26, generator=generator, dtype=D64)
    estimator = pvi.structured(potential, rule, num_history=2)
    found = estimate(estimator, particles, batch, given(estimator.one_hot, values))
    wanted, _ = one_hot_pieces(potential, particles, batch, values, 2, groups)
    assert torch.allclose(found.gradient, wanted, rtol=1e-10, atol=1e-10)


def test_one_hot_masks_times_m_are_the_structured_gradient():
    """``U_Sd`` with one-hot masks is ``U_S``: here by masks given by hand, ``1 / E r = M``."""
    precision = random_precision(4, 6)
    groups = torch.tensor([0, 1, 2, 1])
    generator = torch.Generator().manual_seed(0)
    particles = torch.randn(5, 4, generator=generator, dtype=D64)
    values = torch.randn(3, 5, 4, generator=generator, dtype=D64)
    structured = pvi.structured(gaussian(precision), groups, history=frozen(4))
    dropout = pvi.structured_dropout(gaussian(precision), groups, 1 / 3, 3, history=frozen(4))
    masks = torch.eye(3, dtype=D64).unsqueeze(1).expand(3, 5, 3)
    one = estimate(structured, particles, None, given(structured.one_hot, values))
    other = estimate(dropout, particles, None, dropped(masks, values))
    assert torch.allclose(one.gradient, other.gradient, rtol=1e-12)
    assert torch.allclose(one.potential, other.potential, rtol=1e-12)


def test_the_prior_of_a_module_counts_once_in_every_mask():
    """A group that no mask keeps still feels its prior, with weight one."""
    potential = net_potential(D64)
    particles = potential.init(2)
    x, y = net_data(D64)
    values = torch.zeros(1, 2, 26, dtype=D64)
    estimator = pvi.structured_dropout(potential, "layer", keep=0.2, num_masks=1)
    masks = torch.zeros(1, 2, 2, dtype=D64)
    found = estimate(estimator, particles, Batch((x, y)), dropped(masks, values))
    assert torch.allclose(found.gradient, particles, rtol=1e-12)


def test_a_prior_that_may_not_factorise_goes_through_the_composites():
    """A joint prior must be averaged over the history like the likelihood."""
    precision = random_precision(2, 7)

    def log_prior(theta):
        return -0.5 * theta @ precision @ theta

    with_data = pvi.from_log_likelihood(
        log_prior, lambda theta, x: 0.0 * (x - theta.sum()), 2, 4, dtype=D64
    )
    without = gaussian(precision)
    generator = torch.Generator().manual_seed(0)
    particles = torch.randn(3, 2, generator=generator, dtype=D64)
    values = torch.randn(2, 3, 2, generator=generator, dtype=D64)
    batch = Batch(torch.ones(4, dtype=D64))
    one = pvi.structured(with_data, "parameter")
    other = pvi.structured(without, "parameter")
    one = estimate(one, particles, batch, given(one.one_hot, values))
    other = estimate(other, particles, None, given(other.one_hot, values))
    assert torch.allclose(one.gradient, other.gradient, rtol=1e-12)


def test_indices_and_masks_are_independent_and_uniform():
    """Of every composite, particle and group: no pair shares its draw."""
    size = 3
    bank = torch.arange(4.0, dtype=D64).unsqueeze(1).expand(4, size).contiguous()
    estimator = pvi.structured_dropout(
        gaussian(torch.eye(size, dtype=D64)),
        "parameter",
        0.3,
        2,
        history=pvi.gradients.history(initial=bank, frozen=True),
    )
    particles = torch.zeros(50_000, size, dtype=D64)
    streams = ParticleStreams(0)
    state = estimator.init(particles, streams)
    masks, entries = estimator.draw_noise(state, streams)
    assert entries.shape == masks.shape == (50_000, 2, size)
    values = estimator._values(state, entries)
    flat = torch.cat([values.reshape(-1, 6).T, masks.reshape(-1, 6).T])
    count = flat.shape[1]
    for entry in range(4):
        z = ((flat[:6] == entry).double().mean(1) - 0.25) / math.sqrt(0.25 * 0.75 / count)
        assert z.abs().max() < 5
    z = (flat[6:].mean(1) - 0.3) / math.sqrt(0.3 * 0.7 / count)
    assert z.abs().max() < 5
    correlation = torch.corrcoef(flat) - torch.eye(12, dtype=D64)
    assert correlation.abs().max() * math.sqrt(count) < 5
    neighbours = torch.corrcoef(torch.cat([flat, flat.roll(1, dims=1)]))[:12, 12:]
    assert neighbours.abs().max() * math.sqrt(count) < 5


@pytest.mark.parametrize(("a", "b"), [(0.01, 0.01), (0.5, 2.0), (3.0, 1.0)])
def test_beta_masks_have_their_law(a, b):
    estimator = pvi.structured_dropout(
        gaussian(torch.eye(2, dtype=D64)), "parameter", mask=("beta", a, b), history=frozen(2)
    )
    masks = estimator._masks(5000, ParticleStreams(0)).flatten()
    assert torch.isfinite(masks).all()
    mean, var = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    assert abs(masks.mean() - mean) < 5 * math.sqrt(var / 40_000)
    for point in (0.1, 0.5, 0.9):
        wanted = scipy.special.betainc(a, b, point)
        share = (masks <= point).double().mean()
        assert abs(share - wanted) < 5 * math.sqrt(wanted * (1 - wanted) / 40_000)


def test_the_gradient_is_that_of_the_averaged_energy():
    """``E g = grad U_Sd``, masks and entries enumerated, on a density that is no Gaussian."""

    def log_density(theta):
        return -(theta[..., 0] * theta[..., 1] - 1).square() - 0.1 * theta.pow(4).sum(-1)

    potential = pvi.from_log_density(log_density, 2, vectorized=True, dtype=D64)
    keep = 0.3
    bank = torch.tensor([[0.3, -0.2], [1.1, 0.8]], dtype=D64)
    estimator = pvi.structured_dropout(
        potential, "parameter", keep, 1, history=pvi.gradients.history(initial=bank, frozen=True)
    )
    theta = torch.tensor([0.7, -0.4], dtype=D64)
    masks = combinations([0.0, 1.0], 2).repeat_interleave(4, 0)
    rows = combinations([0, 1], 2).long().repeat(4, 1)
    values = bank[rows, torch.arange(2)]
    weights = (masks * keep + (1 - masks) * (1 - keep)).prod(1) / 4
    found = estimate(
        estimator, theta.expand(16, 2), None, dropped(masks.unsqueeze(0), values.unsqueeze(0))
    )

    def averaged(point):
        composites = masks * point + (1 - masks) * values
        return (weights * potential(composites)).sum() / keep

    wanted = torch.autograd.functional.jacobian(averaged, theta)
    assert torch.allclose(weights @ found.gradient, wanted, rtol=1e-12)


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pvi.structured, lambda *a: pvi.structured_dropout(*a, keep=0.5)])
def test_bad_groups(make):
    potential = net_potential()
    with pytest.raises(ValueError, match=r"groups must be a LongTensor \[26\]"):
        make(potential, torch.zeros(25, dtype=torch.long))
    gaps = torch.zeros(26, dtype=torch.long)
    gaps[3] = 2
    with pytest.raises(ValueError, match="without gaps"):
        make(potential, gaps)
    with pytest.raises(ValueError, match="groups must be"):
        make(potential, "layers")
    with pytest.raises(TypeError, match="takes a potential"):
        make(pvi.gradients.minibatch(potential), "layer")


@pytest.mark.parametrize("keep", [0, 0.0, -0.1, 1.5, math.nan, None, True, "half"])
def test_bad_keep(keep):
    with pytest.raises(ValueError, match=r"keep must be the probability in \(0, 1\]"):
        pvi.structured_dropout(net_potential(), "layer", keep=keep)


def test_bad_masks():
    potential = net_potential()
    with pytest.raises(ValueError, match="keep belongs to Bernoulli masks"):
        pvi.structured_dropout(potential, "layer", keep=0.5, mask="uniform")
    with pytest.raises(ValueError, match="mask must be one of"):
        pvi.structured_dropout(potential, "layer", mask="gaussian")
    with pytest.raises(ValueError, match="a of the beta mask"):
        pvi.structured_dropout(potential, "layer", mask=("beta", 0.0, 1.0))
    with pytest.raises(ValueError, match=r"must be \(\"beta\", a, b\)"):
        pvi.structured_dropout(potential, "layer", mask=("gamma", 1.0, 1.0))
    with pytest.raises(ValueError, match="num_masks"):
        pvi.structured_dropout(potential, "layer", keep=0.5, num_masks=0)
    with pytest.raises(ValueError, match="num_history"):
        pvi.structured(potential, "layer", num_history=0)


def test_a_history_larger_than_memory():
    estimator = pvi.structured(
        net_potential(), "layer", history=pvi.gradients.history(capacity=10**12)
    )
    with pytest.raises(MemoryError, match=r"structured estimator .*smaller history"):
        run(estimator)


def test_a_history_that_would_stay_empty():
    with pytest.raises(ValueError, match="would stay empty"):
        run(pvi.structured(net_potential(), "layer", history=pvi.gradients.history(after=1000)))


def test_memory_is_stated():
    potential = net_potential()
    memory = pvi.gradients.history(capacity=50, dtype=torch.bfloat16)
    estimator = pvi.structured(potential, "layer", num_history=3, history=memory)
    state = estimator.init(potential.init(4), ParticleStreams(0))
    drawn = 3 * 6 * 4 * 26 * 4  # masks, values and composites, float32
    assert estimator.nbytes(4) == state.values.nbytes + drawn
    stated = 26 * (50 * 2 + 3 * 6 * 4) / 1e6
    assert (
        repr(estimator)
        == f"structured(2 groups, 6 composites a step, {stated:.3g} MB for one chain)"
    )


def test_composites_larger_than_memory():
    """Nothing of the size of the composites is made before the check."""
    size = 10**6
    wide = pvi.from_log_density(lambda theta: -0.5 * theta.square().sum(-1), size, vectorized=True)
    estimator = pvi.structured(wide, "parameter", history=pvi.gradients.history(capacity=1))
    with pytest.raises(MemoryError, match="fewer groups or masks"):
        pvi.sample(pvi.sgld(estimator), step_size=0.1, num_particles=1, num_draws=1, progress=False)


def test_units_of_layers_of_one_size_are_groups_of_their_own():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3))
    potential = pvi.from_module(net, pvi.Gaussian(scale=1.0), pvi.Normal(1.0), num_data=5)
    first = [0, 0, 1, 1, 2, 2, 0, 1, 2]
    second = [3, 3, 3, 4, 4, 4, 5, 5, 5, 3, 4, 5]
    assert potential.groups("neuron").tolist() == first + second
    assert pvi.structured(potential, "neuron").num_groups == 6
