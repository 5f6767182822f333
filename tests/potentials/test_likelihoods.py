"""Laws of a datum, their weights and masks, against densities written by hand, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import nn
from torch.nn import functional as F

import particlevi as pvi
from particlevi.potentials.likelihoods import check_targets, log_prob
from particlevi.typing import Batch

F64 = torch.float64
P, B, N = 4, 6, 30


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def close(found, expected):
    expected = torch.as_tensor(expected, dtype=F64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


GRADES = torch.tensor([0, 2, 1, 3, 3, 0])
COUNTS = torch.tensor([[0.0], [5.0], [1.0], [0.0], [3.0], [12.0]], dtype=F64)


def ordinal_by_hand(f, y, cuts):
    edges = [-math.inf, *cuts, math.inf]
    low = np.array([edges[int(k)] for k in y])
    high = np.array([edges[int(k) + 1] for k in y])
    f = f.squeeze(-1).numpy()
    return torch.as_tensor(np.log(special.expit(high - f) - special.expit(low - f)))


def test_a_gaussian_with_a_head_for_its_scale():
    f, y = rand(P, B, 4), rand(B, 2, seed=1)
    expected = stats.norm.logpdf(y, f[..., :2], f[..., 2:].exp()).sum(-1)
    close(log_prob(pvi.MeanScaleGaussian(), f, y, {}, False), expected)


def test_an_ordinal_law_with_given_cutpoints():
    f, cuts = rand(P, B, 1), (-1.0, 0.2, 0.9)
    found = log_prob(pvi.Ordinal(4, cuts), f, GRADES, {}, False)
    close(found, ordinal_by_hand(f, GRADES, cuts))
    torch.testing.assert_close(found, log_prob(pvi.Ordinal(4, cuts), f, GRADES[:, None], {}, False))


def test_an_ordinal_law_far_out_is_finite_in_float32():
    f = torch.tensor([[[60.0], [-60.0]]])
    found = log_prob(pvi.Ordinal(3, (-1.0, 1.0)), f, torch.tensor([1, 1]), {}, False)
    exact = -60 + 1 + math.log(-math.expm1(-2.0))
    torch.testing.assert_close(found, torch.tensor([[exact, exact]]))


def test_cutpoints_that_are_learned():
    raw = rand(P, 3)
    cuts = torch.cat([raw[:, :1], raw[:, :1] + raw[:, 1:].exp().cumsum(-1)], -1)
    f = rand(P, B, 1)
    found = log_prob(pvi.Ordinal(4), f, GRADES, {"raw_cutpoints": raw}, False)
    expected = torch.stack([ordinal_by_hand(f[i], GRADES, cuts[i].tolist()) for i in range(P)])
    close(found, expected)
    shown = pvi.Ordinal(4).parameters()["raw_cutpoints"].constrain(raw)
    close(shown, cuts)


@pytest.mark.parametrize("learned", [True, False])
def test_a_negative_binomial_law(learned):
    f, log_r = rand(P, B, 1), rand(P, 1, seed=3) if learned else torch.full((P, 1), math.log(1.7))
    law = pvi.NegativeBinomial("learned" if learned else 1.7)
    r, m = log_r.exp().unsqueeze(1).double(), f.exp()
    expected = stats.nbinom.logpmf(COUNTS, r, r / (r + m)).sum(-1)
    found = log_prob(law, f, COUNTS, {"log_concentration": log_r}, False)
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-6, atol=1e-6)


def test_a_student_law_with_learned_degrees_of_freedom_and_scale():
    f, y = rand(P, B, 2), rand(B, 2, seed=1)
    own = {"log_df": rand(P, 1, seed=2), "log_scale": rand(P, 2, seed=3)}
    df, scale = own["log_df"].exp().unsqueeze(1), own["log_scale"].exp().unsqueeze(1)
    expected = stats.t.logpdf(y, df, f, scale).sum(-1)
    law = pvi.StudentT("learned", "learned", num_outputs=2)
    close(log_prob(law, f, y, own, False), expected)
    assert set(law.parameters()) == {"log_df", "log_scale"}


def test_a_poisson_law_of_a_tiny_rate_in_float32():
    f = torch.tensor([[[-110.0], [-110.0], [3.0]]])
    y = torch.tensor([[1.0], [0.0], [2.0]])
    found = log_prob(pvi.Poisson(), f, y, {}, False)
    torch.testing.assert_close(found, torch.tensor([[-110.0, 0.0, 6 - math.exp(3) - math.log(2)]]))


@pytest.mark.parametrize("s", [-60.0, 110.0])
def test_a_normal_law_of_a_scale_out_of_range_in_float32(s):
    constant = -s - 0.5 * math.log(2 * math.pi)
    y = torch.tensor([[1.0], [0.0]])
    expected = torch.tensor([[-math.inf if s < 0 else constant, constant]])
    learned = {"log_scale": torch.tensor([[s]])}
    found = log_prob(pvi.Gaussian("learned"), torch.zeros(1, 2, 1), y, learned, False)
    torch.testing.assert_close(found, expected)
    outputs = torch.tensor([[[0.0, s], [0.0, s]]])
    torch.testing.assert_close(log_prob(pvi.MeanScaleGaussian(), outputs, y, {}, False), expected)


def test_priors_of_learned_parameters_are_arguments():
    laws = {
        "log_scale": pvi.Gaussian("learned", log_scale_prior=pvi.Normal(0.5, mean=-2.0)),
        "log_df": pvi.StudentT("learned", log_df_prior=pvi.Normal(0.5, mean=-2.0)),
        "log_concentration": pvi.NegativeBinomial(
            log_concentration_prior=pvi.Normal(0.5, mean=-2.0)
        ),
    }
    for name, law in laws.items():
        prior = law.parameters()[name].prior
        value = rand(1)
        close(prior.log_prob(value), stats.norm.logpdf(value, -2.0, 0.5))
        assert law.settings != type(law)("learned").settings
    potential = pvi.from_module(nn.Linear(1, 1).double(), laws["log_scale"], pvi.Normal(), N)
    theta = rand(P, 3)
    expected = stats.norm.logpdf(theta[:, :2]).sum(1) + stats.norm.logpdf(theta[:, 2], -2.0, 0.5)
    close(potential.log_prior(theta), expected)


# Weights and masks


def test_class_weights_multiply_as_in_torch():
    f, y, w = rand(P, B, 3), torch.tensor([0, 1, 2, 2, 1, 0]), (0.5, 2.0, 7.0)
    found = log_prob(pvi.Categorical(weight=w), f, y, {}, False)
    for i in range(P):
        each = F.cross_entropy(f[i], y, weight=torch.tensor(w, dtype=F64), reduction="none")
        close(found[i], -each)


@pytest.mark.parametrize("weight", [None, (1.0, 2.0, 3.0)])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_ignored_classes_count_nothing(weight, ignored):
    f, y = rand(P, B, 5, 3).requires_grad_(), torch.randint(0, 3, (B, 5))
    y[::2, 1] = ignored
    law = pvi.Categorical(weight=weight, ignore_index=ignored)
    found = log_prob(law, f, y, {}, False)
    tensor = None if weight is None else torch.tensor(weight, dtype=F64)
    expected = torch.stack(
        [
            -F.cross_entropy(
                g.movedim(-1, 1), y, weight=tensor, ignore_index=ignored, reduction="none"
            ).sum(-1)
            for g in f
        ]
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    (mine,) = torch.autograd.grad(found.sum(), f)
    (theirs,) = torch.autograd.grad(expected.sum(), f)
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
    check_targets(law, f, y)


LAWS = {
    "gaussian": (pvi.Gaussian(0.5), 2, rand(B, 2, seed=1)),
    "gaussian, flat": (pvi.Gaussian(0.5), 1, rand(B, seed=1)),
    "student": (pvi.StudentT(4.0), 2, rand(B, 2, seed=1)),
    "bernoulli": (pvi.Bernoulli(), 2, (rand(B, 2, seed=1) > 0).double()),
    "poisson": (pvi.Poisson(), 1, COUNTS),
    "categorical": (pvi.Categorical(), 3, torch.tensor([0, 1, 2, 2, 1, 0])),
    "ordinal": (pvi.Ordinal(4, (-1.0, 0.0, 1.0)), 1, GRADES),
    "heteroscedastic": (pvi.MeanScaleGaussian(), 4, rand(B, 2, seed=1)),
}


@pytest.mark.parametrize("per_particle", [False, True])
@pytest.mark.parametrize("name", LAWS)
def test_weights_multiply_and_masks_leave_out(name, per_particle):
    law, width, y = LAWS[name]
    f = rand(P, B, width)
    weight = torch.rand(B, generator=torch.Generator().manual_seed(2), dtype=F64)
    mask = torch.rand(y.shape, generator=torch.Generator().manual_seed(3)) > 0.4

    def own(value):
        return value.expand(P, *value.shape) if per_particle else value

    plain = log_prob(law, f, own(y), {}, per_particle)
    found = log_prob(law, f, {"target": own(y), "weight": own(weight)}, {}, per_particle)
    close(found, plain * weight)
    row = mask.reshape(B, -1)[:, 0]
    hidden = y.clone()
    hidden[~row] = 77
    for values in (y, hidden):
        target = {"target": own(values), "mask": own(row)}
        found = log_prob(law, f, target, {}, per_particle)
        close(found, torch.where(row, plain, torch.zeros_like(plain)))


def test_a_mask_of_elements_counts_those_that_are_there():
    f, y = rand(P, B, 2), rand(B, 2, seed=1)
    mask = torch.tensor([[True, False], [False, False], [True, True]] * 2)
    y = torch.where(mask, y, torch.tensor(math.nan, dtype=F64))
    f.requires_grad_()
    found = log_prob(pvi.Gaussian(0.5), f, {"target": y, "mask": mask}, {}, False)
    each = torch.as_tensor(stats.norm.logpdf(y, f.detach(), 0.5))
    close(found.detach(), torch.where(mask, each, torch.zeros_like(each)).sum(-1))
    (gradient,) = torch.autograd.grad(found.sum(), f)
    assert torch.isfinite(gradient).all() and not gradient[:, ~mask].any()


def test_weighted_and_masked_data_go_through_minibatches():
    """The posterior of a mean under weights: a conjugate law."""
    x = torch.ones(N, 1, dtype=F64)
    y, w = 3 + rand(N, 1), torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=F64)
    mask = torch.arange(N) % 3 > 0
    module = nn.Linear(1, 1, bias=False).double()
    potential = pvi.from_module(module, pvi.Gaussian(1.0), pvi.Normal(10.0), num_data=N)
    target = {
        "target": torch.where(mask.view(-1, 1), y, y * torch.inf).nan_to_num(),
        "weight": w,
        "mask": mask,
    }
    draws = pvi.sample(
        pvi.sgld(potential), (x, target), batch_size=15, step_size=2e-3, num_particles=2000,
        num_warmup=300, num_draws=1, progress=False,
    )  # fmt: skip
    total = (w * mask).sum()
    mean = (w * mask * y[:, 0]).sum() / (total + 0.01)
    error = float(draws.particles.std()) / math.sqrt(2000)
    assert abs(float(draws.particles.mean() - mean)) < 5 * error
    assert 0.8 < float(draws.particles.var() * total) < 1.3


BAD = {
    "negative weight": (
        {"target": COUNTS, "weight": -torch.ones(B)}, "finite numbers of at least 0",
    ),
    "mask of floats": ({"target": COUNTS, "mask": torch.ones(B)}, "mask must be boolean"),
    "mask of another length": (
        {"target": COUNTS, "mask": torch.ones(B - 1).bool()}, r"\[6\], True where",
    ),
    "unknown key": ({"target": COUNTS, "weights": torch.ones(B)}, "has the keys"),
    "no target": ({"weight": torch.ones(B)}, "has the keys"),
    "impossible where it is not masked": (
        {"target": COUNTS - 1, "mask": torch.ones(B).bool()}, "Poisson targets must be integers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_targets_that_are_refused(case):
    targets, match = BAD[case]
    with pytest.raises(ValueError, match=match):
        check_targets(pvi.Poisson(), rand(P, B, 1), targets)


def test_a_weight_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"one number per datum, \[6\], got \[6, 1\]"):
        log_prob(
            pvi.Poisson(), rand(P, B, 1), {"target": COUNTS, "weight": torch.ones(B, 1)}, {}, False
        )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: pvi.Categorical(weight=(1.0, -1.0)), "weight must be a finite number above 0"),
        (lambda: pvi.Categorical(weight=3.0), "one number per class"),
        (lambda: pvi.Categorical(ignore_index=1.5), "ignore_index must be an integer"),
        (lambda: pvi.Ordinal(1), "num_classes must be an integer of at least 2"),
        (lambda: pvi.Ordinal(3, (1.0, 0.0)), "increasing numbers"),
        (lambda: pvi.Ordinal(3, (1.0,)), "2 increasing numbers"),
        (lambda: pvi.NegativeBinomial(0.0), "concentration must be"),
        (lambda: pvi.Gaussian("learned", log_scale_prior=1.0), "log_scale_prior must be one"),
        (lambda: pvi.StudentT("learnt"), "df must be"),
        (lambda: pvi.Normal(fan_in=1), "fan_in must be True or False, got 1"),
        (lambda: pvi.Normal(mean="zero"), "mean must be"),
    ],
)
def test_arguments_that_are_refused(make, match):
    with pytest.raises((TypeError, ValueError), match=match):
        make()


@pytest.mark.parametrize(
    ("law", "width", "targets", "match"),
    [
        (pvi.Categorical(weight=(1.0, 2.0)), 3, GRADES.clamp(max=1), "2 class weights .* 3 logits"),
        (pvi.Ordinal(3, (0.0, 1.0)), 2, GRADES, r"one output \[B, 1\]"),
        (pvi.Ordinal(3, (0.0, 1.0)), 1, GRADES, "Ordinal targets must be integers in 0 ... 2"),
        (pvi.MeanScaleGaussian(), 3, rand(B, 1), r"outputs \[B, 2K\]"),
        (pvi.MeanScaleGaussian(), 4, rand(B, 3), "must agree"),
        (pvi.NegativeBinomial(1.0), 1, COUNTS + 0.5, "with fractions"),
        (pvi.StudentT(3.0, "learned", num_outputs=3), 2, rand(B, 2), "3 scales but the model 2"),
    ],
)
def test_data_that_do_not_fit_a_law(law, width, targets, match):
    with pytest.raises(ValueError, match=match):
        check_targets(law, rand(P, B, width), targets)


@pytest.mark.parametrize(
    ("law", "y", "width"),
    [
        (pvi.Ordinal(4), GRADES, 1),
        (pvi.Categorical(weight=(1.0, 2.0, 3.0, 4.0), ignore_index=-1), GRADES, 4),
        (pvi.MeanScaleGaussian(), rand(B, 1), 2),
        (pvi.NegativeBinomial(), COUNTS, 1),
        (pvi.StudentT("learned", "learned"), rand(B, 1), 1),
    ],
)
def test_new_laws_predict(law, y, width):
    module = nn.Linear(2, width, bias=False).double()
    potential = pvi.from_module(module, law, pvi.Normal(), num_data=B)
    data = (rand(B, 2), y)
    draws = pvi.sample(
        pvi.sgld(potential), data, step_size=1e-3, num_particles=3, num_draws=4, progress=False
    )
    found = draws.predict(data[0])
    assert torch.isfinite(found.mean).all()
    if law.classes:
        torch.testing.assert_close(found.probs.sum(-1), torch.ones(B, dtype=F64))
    density = draws.log_predictive_density(data)
    each = potential.log_likelihood(draws.flat(), Batch(data))
    torch.testing.assert_close(density, each.logsumexp(0) - math.log(12))
