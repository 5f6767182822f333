"""The laboratory of gradient noise: tails, balance, bounds, normality."""

from __future__ import annotations

from typing import Any

import numpy as np

from particlevi._checks import check_is
from particlevi.noise.balance import BalancePath
from particlevi.noise.bounds import GeneralizationBound
from particlevi.noise.gaussianity import Gaussianity, normal_scores
from particlevi.noise.tails import TailIndex
from particlevi.plots.axes import as_axes

__all__ = ["balance", "bound", "normality", "tails"]


def normality(result: Gaussianity, axes: Any = None) -> Any:
    """The quantiles of each family of directions against those of a Gaussian (a QQ plot).

    Bands are the central 95 % under Gaussian noise of the same covariance; a heavy tail leaves them
    downwards on the left and upwards on the right.

    Args:
        result: from ``pvi.noise.gaussianity`` or the method of that name.
        axes: to draw on.
    """
    check_is("result", result, Gaussianity, "what noise.gaussianity gives")
    axes = as_axes(axes)
    for i, (name, test) in enumerate(result.families.items()):
        place = normal_scores(test.num_samples)
        label = f"{name}, W {test.shapiro:.4f} (p {test.shapiro_p:.2g})"
        axes.plot(place, test.ordered, ".", ms=3, color=f"C{i}", label=label)
        axes.fill_between(place, *test.ordered_null, color=f"C{i}", alpha=0.3, linewidth=0)
    axes.axline((0, 0), slope=1, color="k", linewidth=0.5)
    axes.set(xlabel="quantile of a Gaussian", ylabel="quantile of the noise, in sds")
    axes.set_title(f"Normality of gradient noise, p = {result.p_value:.3g}")
    axes.legend(markerscale=3)
    return axes


def tails(result: TailIndex, axes: Any = None) -> Any:
    """Tail indices, each beside the central 95 % of its law under Gaussian noise.

    Args:
        result: from ``pvi.noise.tail_index`` or the method of that name.
        axes: to draw on.
    """
    check_is("result", result, TailIndex, "what noise.tail_index gives")
    axes = as_axes(axes)
    rows = [
        ("per coordinate", result.alpha, result.null),
        ("standardised", result.standardised, result.standardised_null),
        ("pooled", result.pooled, result.pooled_null),
    ]
    for i, (_, value, null) in enumerate(rows):
        if len(null):
            axes.bar(
                i,
                np.ptp(ends := np.quantile(null, [0.025, 0.975])),
                bottom=ends[0],
                width=0.5,
                color="C3",
                alpha=0.3,
                label="Gaussian of the same scales" if i == 0 else None,
            )
        axes.plot(i, value, "o", color="C0", label="noise" if i == 0 else None)
    low, high = result.interval
    axes.plot([0, 0], [low, high], color="C0")
    axes.axhline(2, color="k", linewidth=0.5)
    axes.set_xticks(range(3), [name for name, _, _ in rows])
    axes.set(ylabel="tail index", title="Tails of gradient noise")
    axes.legend()
    return axes


def balance(path: BalancePath, axes: Any = None) -> Any:
    """The ratio of the squared norms of each pair over a trajectory, and that of noise balance.

    Args:
        path: from ``pvi.noise.balance_along``.
        axes: to draw on.
    """
    check_is("path", path, BalancePath, "what noise.balance_along gives")
    axes = as_axes(axes)
    for k, name in enumerate(path.names):
        ratio = path.first_norm[:, k] / path.second_norm[:, k]
        axes.plot(ratio.numpy(), color=f"C{k}", label=name)
        axes.plot(path.balanced_norm_ratio[:, k].numpy(), color=f"C{k}", linestyle="--")
    axes.set_yscale("log")
    axes.set(xlabel="point", ylabel="|u|^2 / |w|^2", title="Norms, and at noise balance (dashed)")
    axes.legend()
    return axes


def bound(result: GeneralizationBound, axes: Any = None) -> Any:
    """The bound on the generalisation gap and its terms by the scale of the virtual noise.

    Args:
        result: from ``pvi.noise.generalization_bound``.
        axes: to draw on.
    """
    check_is("result", result, GeneralizationBound, "what noise.generalization_bound gives")
    axes = as_axes(axes)
    scales = result.scales.numpy()
    for name, style in (("bound", "-"), ("trajectory", "--"), ("sensitivity", ":")):
        axes.loglog(scales, getattr(result, name).numpy(), f"C0{style}", label=name)
    axes.loglog(scales, result.published.numpy(), "C1-", label="published constant")
    axes.axhline(abs(result.gap[0]), color="C3", label="gap")
    axes.set(xlabel="scale of the virtual noise", ylabel="loss", title="Generalisation gap")
    axes.legend()
    return axes
