"""The effective potential beside the loss."""

from __future__ import annotations

from typing import Any

from particlevi._checks import check_is
from particlevi.plots.axes import as_axes
from particlevi.sgdvi.slices import Slice

__all__ = ["potential_against_loss"]


def potential_against_loss(result: Slice, axes: Any = None) -> Any:
    """Effective potential with its band and the loss, scaled to it, on a line; contours on a plane.

    Args:
        result: from ``compare_potentials``.
        axes: one for a line, two for a plane.
    """
    check_is("result", result, Slice, "what sgdvi.compare_potentials gives")
    if result.potential.ndim == 1:
        axes = as_axes(axes)
        distance = (result.points - result.points[0]).double().norm(dim=-1).numpy()
        phi = result.potential.numpy()
        axes.plot(distance, phi, color="C0", label="effective potential Phi")
        if result.band is not None:
            band = result.band.numpy()
            axes.fill_between(
                distance, phi - 2 * band, phi + 2 * band, color="C0", alpha=0.25, lw=0
            )
        scaled = (result.potential - result.disagreement).numpy()
        axes.plot(distance, scaled, color="C1", linestyle="--", label=f"{result.scale:.3g} x loss")
        axes.set(
            xlabel="distance along the line",
            ylabel="potential (minimum 0)",
            title=f"Phi and loss: correlation {result.agreement:.3f}",
        )
        axes.legend()
        return axes
    if result.potential.ndim != 2:
        raise ValueError(f"A slice is a line or a plane, got {result.potential.ndim} dimensions.")
    axes = as_axes(axes, 2)
    pictures = {"effective potential Phi": result.potential, "mean loss": result.loss}
    corner = result.points[0, 0]
    s = (result.points[:, 0] - corner).double().norm(dim=-1).numpy()
    t = (result.points[0] - corner).double().norm(dim=-1).numpy()
    for axis, (title, values) in zip(axes, pictures.items(), strict=True):
        drawn = axis.contourf(s, t, values.T.numpy(), levels=20)
        axis.figure.colorbar(drawn, ax=axis)
        axis.set(title=title, xlabel="distance along s", ylabel="distance along t")
    return axes
