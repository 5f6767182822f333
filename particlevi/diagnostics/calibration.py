"""Scores of predictive distributions: NLL, Brier, calibration error, CRPS, coverage, PSIS-LOO.

Proper scores are lower for better predictions in expectation, whatever the truth; NLL, Brier and
CRPS are proper, calibration error and coverage are not and say only whether stated probabilities
are met.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from particlevi._checks import as_real_tensor, check_choice, check_finite, check_positive_int
from particlevi.diagnostics import arviz

__all__ = ["Binning", "brier", "calibration_error", "coverage", "crps", "loo", "nll"]

Binning: TypeAlias = Literal["width", "mass"]


def _check_probabilities(probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    probs = as_real_tensor("probs", probs, "[N, C] of probabilities").double()
    targets = as_real_tensor("targets", targets, "[N] of class numbers")
    if probs.ndim != 2 or targets.shape != probs.shape[:1]:
        raise ValueError(
            "probs must be [N, C] and targets class numbers [N], got "
            f"{list(probs.shape)} and {list(targets.shape)}. Binary: torch.stack([1 - p, p], -1)."
        )
    total = probs.double().sum(1)
    if (probs < 0).any() or not torch.allclose(total, torch.ones_like(total), atol=1e-3):
        raise ValueError("probs must be probabilities: at least 0, each row with the sum 1.")
    if targets.is_floating_point() or targets.min() < 0 or targets.max() >= probs.shape[1]:
        raise ValueError(f"targets must be class numbers in 0 ... {probs.shape[1] - 1}.")
    return probs, targets.long()


def nll(probs: Tensor, targets: Tensor) -> float:
    """Mean negative log predictive probability of the true classes, in nats.

    Args:
        probs: ``[N, C]``, averaged over draws, as ``draws.predict(x).probs``.
        targets: class numbers ``[N]``.

    >>> round(nll(torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([0, 1])), 4)
    0.4581
    """
    probs, targets = _check_probabilities(probs, targets)
    chosen = probs.double().gather(1, targets.long().unsqueeze(1))
    return float(-chosen.log().mean())


def brier(probs: Tensor, targets: Tensor) -> float:
    """Mean squared distance between the probabilities ``[C]`` and the one-hot truth, 0 to 2.

    Source: Brier, "Verification of forecasts expressed in terms of probability", 1950.

    >>> round(brier(torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([0, 1])), 4)
    0.29
    """
    probs, targets = _check_probabilities(probs, targets)
    truth = torch.nn.functional.one_hot(targets.long(), probs.shape[1])
    return float((probs.double() - truth).square().sum(1).mean())


def calibration_error(
    probs: Tensor, targets: Tensor, num_bins: int = 15, binning: Binning = "width"
) -> float:
    """Expected calibration error of the top class.

    ``sum_b (n_b / N) |accuracy_b - confidence_b|`` over bins of the confidence. With
    ``binning="width"`` bins are of equal width, as in most published figures; with ``"mass"`` they
    hold equal numbers of data (to within one), so that none is nearly empty. The two differ: where
    most confidences are close to 1, equal widths put most data into one bin. Both are biased
    upwards by the noise of the bins.

    Source: Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
    binning", 2015; Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks",
    2017 (equal width); Nguyen and O'Connor, "Posterior calibration and exploratory analysis for
    natural language processing models", 2015 (equal mass).

    Args:
        probs: ``[N, C]``, averaged over draws.
        targets: class numbers ``[N]``.
        num_bins: of the confidence.
        binning: ``"width"``, edges at multiples of ``1/num_bins``; or ``"mass"``.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1]] * 10)
        >>> targets = torch.tensor([0] * 7 + [1] * 3)
        >>> round(calibration_error(probs, targets), 4)
        0.2
    """
    probs, targets = _check_probabilities(probs, targets)
    check_positive_int("num_bins", num_bins)
    check_choice("binning", binning, ["width", "mass"])
    confidence, predicted = probs.double().max(1)
    gap = (predicted == targets).double() - confidence
    if binning == "mass":
        ordered = gap[confidence.argsort(stable=True)]
        parts = ordered.tensor_split(min(num_bins, len(gap)))
        return float(torch.stack([part.sum().abs() for part in parts]).sum()) / len(gap)
    # Bins (k/n, (k+1)/n], as is usual.
    place = (confidence * num_bins).ceil().clamp(1, num_bins).long() - 1
    sums = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, place.cpu(), gap.cpu())
    return float(sums.abs().sum()) / len(gap)


def crps(draws: Tensor, targets: Tensor) -> float:
    """Mean continuous ranked probability score of draws of the predictive distribution.

    ``E|Y - y| - E|Y - Y'| / 2``, the second mean over pairs of different draws, so that the
    estimate is unbiased in the number of draws.

    Source: Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation",
    2007.

    Args:
        draws: of new targets, ``[S, N]``, S at least 2.
        targets: ``[N]``.

    >>> round(crps(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0])), 4)
    0.0
    """
    draws = as_real_tensor("draws", draws, "[S, N]", ndim=2).double()
    targets = as_real_tensor("targets", targets, "[N]")
    check_finite("draws", draws, "Leave those draws out.")
    check_finite("targets", targets, "Leave those data out.")
    if len(draws) < 2 or draws.shape[1:] != targets.shape:
        raise ValueError(
            "draws must be [S, N] with S at least 2 and targets [N], got "
            f"{list(draws.shape)} and {list(targets.shape)}."
        )
    values, size = draws.double().sort(0).values, len(draws)
    distance = (values - targets.double()).abs().mean(0)
    rank = torch.arange(size, dtype=torch.float64, device=values.device).unsqueeze(1)
    pairs = 2 * ((2 * rank - size + 1) * values).sum(0) / (size * (size - 1))
    return float((distance - 0.5 * pairs).mean())


def coverage(lower: Tensor, upper: Tensor, targets: Tensor) -> tuple[float, float]:
    """Share of targets inside their intervals, and its binomial standard error.

    Args:
        lower: ends of the predictive intervals, ``[N]``, as from
            ``draws.predict(x, quantiles=(0.05, 0.95)).quantiles``.
        upper: the other ends, ``[N]``.
        targets: ``[N]``.

    >>> coverage(torch.zeros(4), torch.ones(4), torch.tensor([0.5, 0.1, 2.0, 0.9]))
    (0.75, 0.2165...)
    """
    lower, upper, targets = (
        as_real_tensor(name, value, "[N]")
        for name, value in (("lower", lower), ("upper", upper), ("targets", targets))
    )
    if lower.shape != targets.shape or upper.shape != targets.shape:
        raise ValueError(
            f"lower, upper and targets must have one shape, got {list(lower.shape)}, "
            f"{list(upper.shape)} and {list(targets.shape)}."
        )
    inside = ((targets >= lower) & (targets <= upper)).double()
    share = float(inside.mean())
    return share, (share * (1 - share) / inside.numel()) ** 0.5


def loo(log_likelihood: Tensor) -> Any:
    """Leave-one-out predictive accuracy by Pareto-smoothed importance sampling, by ArviZ.

    Source: Vehtari, Gelman and Gabry, "Practical Bayesian model evaluation using leave-one-out
    cross-validation and WAIC", 2017.

    Args:
        log_likelihood: of each datum under each draw, ``[P, T, N]``, as
            ``draws.log_likelihood(data)``.

    Returns:
        ArviZ's result: ``elpd_loo``, ``se``, ``p_loo``, ``pareto_k`` ``[N]`` ... (``elpd`` and
        ``p`` on ArviZ 1.x).
    """
    values = as_real_tensor("log_likelihood", log_likelihood, "[P, T, N]", ndim=3)
    check_finite("log_likelihood", values, "Leave those data out.")
    return arviz.loo(values)
