"""A training that was recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from particlevi._checks import check_is
from particlevi.plots.axes import as_axes

__all__ = ["training"]


def training(trace: Mapping[str, Tensor], *, axes: Any = None) -> Any:
    """Norms, gradient noise and curvature along a training, side by side.

    The first picture has the norms of weights, gradient and update; the second the trace of the
    gradient noise with two standard errors; the third the largest curvature and the edge of
    stability, where the optimiser has one. Without probes the last two stay empty.

    Args:
        trace: ``recorder.trace()`` of a ``pvi.record.Recorder``; while the training goes on too.
        axes: three axes to draw on.

    Raises:
        ValueError: another number of axes.
    """
    check_is("trace", trace, Mapping, "what recorder.trace() gives")
    first, second, third = axes = as_axes(axes, 3, width=4.5)
    for name in ("weight_norm", "gradient_norm", "update_norm"):
        first.plot(trace["step"], trace[name], label=name.replace("_norm", ""))
    first.set(xlabel="step", yscale="log", title="Norms")
    first.legend()
    steps, error = trace["probe.step"], 2 * trace["probe.error"]
    second.errorbar(steps, trace["probe.trace"], yerr=error, fmt="o-", ms=3, capsize=2)
    second.set(xlabel="step", title="Trace of the gradient noise")
    third.plot(steps, trace["probe.curvature"], "o-", ms=3, label="largest curvature")
    third.plot(steps, trace["probe.edge"], "k--", linewidth=0.8, label="edge of stability")
    third.set(xlabel="step", title="Curvature")
    third.legend()
    return axes
