"""The laboratory of gradient noise: tails, balance, bounds, normality."""

from __future__ import annotations

from typing import Any

import numpy as np

from particlevi._checks import check_is
from particlevi.noise.balance import BalancePath
from particlevi.noise.bounds import GeneralizationBound
from particlevi.noise.gaussianity import Gaussianity
from particlevi.noise.tails import TailIndex
from particlevi.plots.axes import as_axes

__all__ = ["balance", "bound", "normality", "tails"]


def normality(result: Gaussianity, axes: Any = None) -> Any:
    """W of each family of directions beside its value under Gaussian noise.

    Args:
        result: from ``pvi.noise.gaussianity`` or the method of that name.
        axes: to draw on.
    """
    check_is("result", result, Gaussianity, "what noise.gaussianity gives")
    axes = as_axes(axes)
    place = np.arange(len(result.families))
    tests = list(result.families.values())
    axes.plot(place, [1 - t.shapiro for t in tests], "o", color="C0", label="noise")
    axes.plot(place, [1 - t.shapiro_null for t in tests], "_", color="C3", ms=20, label="Gaussian")
    axes.set_yscale("log")
    axes.set_xticks(place, list(result.families))
    axes.set(ylabel="1 - W", title=f"Normality of gradient noise, p = {result.p_value:.3g}")
    axes.legend()
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
