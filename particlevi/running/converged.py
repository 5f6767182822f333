"""When a run that nobody gave a length has drawn enough."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from particlevi._checks import check_choice, check_positive
from particlevi.data import DataLike, as_data
from particlevi.diagnostics import arviz
from particlevi.diagnostics.verdict.moves import chains_at_rest
from particlevi.diagnostics.views import View, series
from particlevi.draws import Draws
from particlevi.potentials.potential import ModelPotential
from particlevi.running.monitor import Look, has_grown

__all__ = ["converged", "probe_inputs"]

_MOST_COORDINATES = 100
_PROBES = 20
_FEWEST_DRAWS = 4


class Reached(NamedTuple):
    """What was looked at, its smallest bulk or tail ESS, its largest R-hat, and where they are."""

    of: str
    ess: float
    rhat: float
    worst: list[int]


@dataclass(frozen=True, eq=False)
class converged:
    """End the run when what the model says has converged.

    For a model with outputs, that is its outputs at probe inputs, which do not depend on which
    hidden unit is which; else every parameter up to 100 of them, and random projections beyond.
    The smallest of bulk and tail ESS and the largest R-hat count, and are worked out each time the
    draws have grown by a fifth: first where they were worst the last time, and everywhere only if
    that has been reached. A run that ends without having reached both warns, and says what
    it reached.

    Args:
        ess: the smallest effective sample size.
        rhat: the largest R-hat.
        probe: inputs at which outputs are looked at; twenty of the data if absent.
        of: ``"parameters"`` or ``"projections"`` in place of outputs, all of them.

    Attributes:
        seen: what it found when it last looked, in words; the progress bar shows it.

    Raises:
        ValueError: a target out of its range, anything else to look at, or inputs and ``of``.

    Examples:
        >>> import particlevi as pvi
        >>> normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), num_params=2)
        >>> draws = pvi.sample(
        ...     normal, num_particles=8, progress=False,
        ...     monitor=[pvi.running.converged(ess=400, rhat=1.02), pvi.running.max_seconds(60)],
        ... )
        >>> draws.attrs["ended_by"][:9]
        'converged'
    """

    ess: float = 400.0
    rhat: float = 1.01
    probe: Any = None
    of: Literal["parameters", "projections"] | None = None
    seen: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _worst: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        check_positive("ess", self.ess)
        check_positive("rhat", self.rhat)
        if not self.rhat > 1:
            raise ValueError(f"rhat must be above 1, which no run reaches, got {self.rhat!r}.")
        check_choice("of", self.of, [None, "parameters", "projections"])
        if self.of is not None and self.probe is not None:
            raise ValueError(
                f"Convergence is of outputs at inputs or of {self.of}, got both: leave of or probe "
                "out."
            )

    def __call__(self, look: Look) -> str | None:
        """The reason to end, if there is one."""
        if not has_grown(look.num_draws_before, look.num_draws):
            return None
        of, values = self._looked_at(look.draws(), look.data)
        worst = [k for k in self._worst if k < values.shape[-1]]
        if worst and not self._enough(self._note(_reached(of, values[..., worst], self.ess))):
            return None
        found = self._note(_reached(of, values, self.ess))
        self._worst[:] = found.worst
        if not self._enough(found):
            return None
        return (
            f"converged: of {found.of}, the smallest ESS is {found.ess:.0f} "
            f"(target {self.ess:g}) and the largest R-hat {found.rhat:.4f} (target {self.rhat:g})"
        )

    def missed(self, look: Look) -> str | None:
        """What a run that ended for another reason did not reach, in words."""
        if not look.num_draws:
            return "The run ended before its first draw, in the warm-up: run longer (max_seconds=)."
        if look.num_draws < _FEWEST_DRAWS:
            return (
                f"The run ended after {look.num_draws} draws, too few to tell what they are: run "
                "longer (max_seconds=, num_draws=)."
            )
        found = _reached(*self._looked_at(look.draws(), look.data), self.ess)
        if self._enough(found):
            return None
        resting = chains_at_rest(look.draws())
        why = (
            f"Chains {resting} accepted nothing: the density is narrower where they stand than "
            "the step size; begin them elsewhere (initial=) or raise num_warmup."
            if resting
            else "Chains that disagree may be in separate modes, or the posterior has scales that "
            "depend on each other: run longer (num_draws=), or change the coordinates."
        )
        return (
            f"The run has not converged: of {found.of}, the smallest ESS is {found.ess:.0f} "
            f"(target {self.ess:g}) and the largest R-hat {found.rhat:.3f} (target {self.rhat:g}). "
            f"{why}"
        )

    def _note(self, found: Reached) -> Reached:
        self.seen.update({f"R-hat of {found.of}": f"{found.rhat:.3f}", "ESS": f"{found.ess:.0f}"})
        return found

    def _enough(self, found: Reached) -> bool:
        return found.ess >= self.ess and found.rhat <= self.rhat

    def _looked_at(self, draws: Draws, data: Any) -> tuple[View, Any]:
        """What is looked at, and its values ``[P, T, K]`` along the chains."""
        if self.of is not None:
            return self.of, series(draws, self.of, None, _MOST_COORDINATES, "Convergence")
        probe = self.probe
        if probe is None and draws.potential is not None:
            probe = probe_inputs(draws.potential, data)
        of: View = "parameters"
        if probe is not None:
            of = "predictions"
        elif draws.particles.shape[-1] > _MOST_COORDINATES:
            of = "projections"
        values = series(draws, of, probe, _MOST_COORDINATES, "Convergence")
        return of, values if values.ndim == 3 else values.flatten(2)


def _reached(of: str, values: Any, target: float) -> Reached:
    """What values ``[P, T, K]`` have reached; their tails only if the bulk has as much as asked."""
    sizes, ratios = arviz.ess(values), arviz.rhat(values)
    if _smallest(sizes) >= target:
        sizes = np.fmin(sizes, arviz.ess(values, "tail"))
    known = [each for each in (sizes, -ratios) if not np.isnan(each).all()]
    worst = sorted({int(np.nanargmin(each)) for each in known})
    return Reached(of, _smallest(sizes), -_smallest(-ratios), worst)


def _smallest(values: npt.NDArray[np.float64]) -> float:
    return float(np.fmin.reduce(values, axis=None))


def probe_inputs(potential: ModelPotential, data: DataLike) -> Any:
    """Some inputs of the data, evenly spread; None for a model without outputs."""
    checked = as_data(data, potential)
    if potential.model is None or checked.num_data == 0:
        return None
    step = max(1, checked.num_data // _PROBES)
    first = checked.take(torch.arange(0, checked.num_data, step)[:_PROBES]).data
    if not isinstance(first, tuple) or len(first) < 2:
        return None
    inputs = first[:-1]
    found = inputs[0] if len(inputs) == 1 else inputs
    return pytree.tree_map(lambda leaf: leaf.cpu(), found)
