"""Steps that are lost to rounding.

A number x has neighbours at a distance of about ``eps |x|``. A step with standard deviation s in
units of that spacing leaves a share ``erf(1 / (2 sqrt(2) s))`` of the numbers where they were.
Rounding adds ``1 / (12 s^2)`` of the step's variance to its noise, while the drift, which is
smaller, is lost. At a share of a quarter s is 1.6 and the added noise 3 %.
"""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi.typing import Controls

__all__ = ["MOST_UNMOVED", "check_dtype", "check_step_size", "rounding_warning", "unmoved"]

MOST_UNMOVED = 0.25


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Refuse particles whose range is too short for energies.

    Raises:
        ValueError: float16.
    """
    if dtype == torch.float16:
        raise ValueError(
            f"{name} got a potential in torch.float16, in which energies above 65504 nats are "
            "infinite: take torch.float32."
        )


def check_step_size(value: float, dtype: torch.dtype) -> None:
    """Refuse a step size that is 0 or denormal in the particles' dtype.

    Raises:
        ValueError: a positive step size below the smallest normal number.
    """
    if 0 < value < torch.finfo(dtype).tiny:
        raise ValueError(
            f"step_size {value:.3g} is below the smallest number of {dtype}, "
            f"{torch.finfo(dtype).tiny:.2g}, so that nothing would move: a usual step size is "
            "pvi.suggest_step_size(potential, data)."
        )


def unmoved(before: Tensor, after: Tensor) -> float:
    """The share of numbers that a step left where they were, over the particles that moved at all.

    Args:
        before: positions ``[P, D]``.
        after: the positions after the step.

    Returns:
        A share; 1 if no particle moved.

    Examples:
        >>> before = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
        >>> unmoved(before, torch.tensor([[1.0, 2.1], [1.0, 2.0]]))
        0.5
    """
    same = before == after
    moved = ~same.all(1)
    return float(same[moved].double().mean()) if bool(moved.any()) else 1.0


def rounding_warning(
    before: Tensor, after: Tensor, controls: Controls, *, may_reject: bool = False
) -> str | None:
    """What is wrong with a step whose noise is of the size of the particles' rounding.

    Args:
        before: positions ``[P, D]``.
        after: the positions after the step.
        controls: of the step; nothing is said without a positive temperature, since a method
            without noise comes to rest.
        may_reject: whether particles that did not move at all may have been rejected.
    """
    temperature = controls.get("temperature")
    if temperature is None or float(temperature) <= 0:
        return None
    if may_reject and not controls.keys().isdisjoint({"factor", "basis"}):
        # Such a metric there and back leaves a rejected particle within some rounding errors.
        slack = 64 * torch.finfo(after.dtype).eps * before.abs().amax(1, keepdim=True)
        kept = ((after - before).abs() <= slack).all(1, keepdim=True)
        after = torch.where(kept, before, after)
    share = unmoved(before, after)
    if share <= MOST_UNMOVED or (share == 1 and may_reject):
        return None
    step_size = float(controls["step_size"])
    return (
        f"A step of size {step_size:.3g} left {share:.0%} of the parameters where they were: it is "
        f"smaller than the distance between neighbouring numbers of {after.dtype}, so that the "
        "drift is lost and the noise is not. Take a larger step_size, or particles in float32 or "
        "float64."
    )
