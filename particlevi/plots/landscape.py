"""The effective potential beside the loss."""

from __future__ import annotations

from typing import Any

from particlevi.plots.axes import as_axes
from particlevi.sgdvi.slices import Slice

__all__ = ["potential_against_loss"]


def potential_against_loss(found: Slice, axes: Any = None) -> Any:
    """Effective potential with its band and the loss, scaled to it, on a line; contours on a plane.

    Args:
        found: from ``compare_potentials``.
        axes: one for a line, two for a plane.
    """
    if found.potential.ndim == 1:
        axes = as_axes(axes)
        distance = (found.points - found.points[0]).double().norm(dim=-1).numpy()
        phi = found.potential.numpy()
        axes.plot(distance, phi, color="C0", label="effective potential Phi")
        if found.band is not None:
            band = found.band.numpy()
            axes.fill_between(
                distance, phi - 2 * band, phi + 2 * band, color="C0", alpha=0.25, lw=0
            )
        scaled = (found.potential - found.disagreement).numpy()
        axes.plot(distance, scaled, color="C1", linestyle="--", label=f"{found.scale:.3g} x loss")
        axes.set(
            xlabel="distance along the line",
            ylabel="potential (minimum 0)",
            title=f"Phi and loss: correlation {found.agreement:.3f}",
        )
        axes.legend()
        return axes
    if found.potential.ndim != 2:
        raise ValueError(f"A slice is a line or a plane, got {found.potential.ndim} dimensions.")
    axes = as_axes(axes, 2)
    pictures = {"effective potential Phi": found.potential, "mean loss": found.loss}
    corner = found.points[0, 0]
    s = (found.points[:, 0] - corner).double().norm(dim=-1).numpy()
    t = (found.points[0] - corner).double().norm(dim=-1).numpy()
    for axis, (title, values) in zip(axes, pictures.items(), strict=True):
        drawn = axis.contourf(s, t, values.T.numpy(), levels=20)
        axis.figure.colorbar(drawn, ax=axis)
        axis.set(title=title, xlabel="distance along s", ylabel="distance along t")
    return axes
