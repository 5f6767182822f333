"""The monitor at work: divergence, warnings, progress, Ctrl-C and rules, seen from the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from particlevi._warning import warn
from particlevi.progress import progress_bar
from particlevi.running.divergence import Cause
from particlevi.running.interruption import Interrupt
from particlevi.running.monitor import Every, Look, Monitor
from particlevi.samplers.precision import rounding_warning
from particlevi.typing import Controls, Sampler

__all__ = ["Watch", "divergence_message"]

_LISTED = 10


class Watch:
    """Looks at a run between steps, as a context in which the run goes on.

    Args:
        sampler: that runs.
        monitor: when to look, and the rules.
        done, total: steps.
        shown: whether to show a progress bar.
        draws_seen: draws there were when each rule was last asked; kept up to date.
    """

    def __init__(
        self,
        sampler: Sampler,
        monitor: Monitor,
        done: int,
        total: int,
        shown: bool,
        draws_seen: dict[int, int],
    ):
        self.sampler = sampler
        self.monitor = monitor
        self.total = total
        self.bar: Any = progress_bar(sampler.name, done, total, shown)
        self.interrupt: Interrupt = Interrupt()
        self._listening = self.interrupt.watch()
        self._warned = False
        self._warned_of_rounding = False
        self._draws_seen = draws_seen

    def __enter__(self) -> Self:
        self._listening.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.bar.close()
        self._listening.__exit__(kind, error, traceback)

    def due(self, step: int) -> bool:
        """Whether it is time to look."""
        return any(step % period == 0 for period in self.monitor.periods)

    def next_look(self, step: int) -> int:
        """The first step after this one at which it is time to look."""
        return min((step // period + 1) * period for period in self.monitor.periods)

    def compares(self, look: int, first: int) -> bool:
        """Whether positions before and after this step are worth a block of their own.

        They are at the end, at the ``first`` look after the warm-up, and every ten looks.
        """
        if self._warned_of_rounding or "temperature" not in self.sampler.schedules:
            return False
        every = self.monitor.every
        return look == self.total or look % (10 * every) == 0 or look - first <= every

    def asks(self, step: int) -> bool:
        """Whether a rule is to be asked after so many steps."""
        return any(step % rule.steps == 0 for rule in self.monitor.timed)

    def warn(self, info: Any, controls: Controls) -> None:
        """What the sampler has to say of a step after the warm-up, once."""
        if self.sampler.warning is None or self._warned:
            return
        message = self.sampler.warning(info, controls)
        if message is not None:
            self._warned = True
            warn(message)

    def warn_of_rounding(self, before: Tensor | None, after: Tensor, controls: Controls) -> None:
        """Steps that are smaller than the spacing of the particles' numbers, once."""
        if before is None or self._warned_of_rounding:
            return
        rejects = self.sampler.requires.all_data
        message = rounding_warning(before, after, controls, may_reject=rejects)
        if message is not None:
            self._warned_of_rounding = True
            warn(message)

    def show(self, step: int, info: Any, alive: list[int]) -> None:
        """Move the bar, with means over the chains that are left."""
        self.bar.update(step - self.bar.n)
        if self.bar.disable:
            return
        values = info._asdict()
        shown = {"potential": f"{float(info.potential[alive].mean()):.4g}"}
        for name, label in self.sampler.shown.items():
            shown[label] = f"{float(values[name][alive].mean()):.3g}"
        for rule in self.monitor.timed:
            shown.update(getattr(rule.rule, "seen", {}))
        self.bar.set_postfix(shown, refresh=False)

    def ask(self, look: Look) -> str | None:
        """The first reason of a rule to end the run."""
        for k, rule in enumerate(self.monitor.timed):
            if look.step % rule.steps:
                continue
            seen = replace(look, num_draws_before=self._draws_seen.get(k, 0))
            self._draws_seen[k] = look.num_draws
            with torch.enable_grad():
                found = rule.rule(seen)
            if found is not None and found is not False:
                return found if isinstance(found, str) else f"{_name(rule)} asked for it"
        return None


def _name(rule: Every) -> str:
    return getattr(rule.rule, "__name__", type(rule.rule).__name__)


def divergence_message(
    sampler: Sampler, lost: Mapping[int, int], causes: Mapping[int, Cause], step_size: float
) -> str:
    """Which chains were lost at which step, the likely cause and what to do."""
    kind = "Particles" if sampler.interacting else "Chains"
    listed = ", ".join(f"{chain} (step {step})" for chain, step in list(lost.items())[:_LISTED])
    found = f"{kind} diverged: {listed}{' ...' if len(lost) > _LISTED else ''}."
    empty = [chain for chain in lost if causes.get(chain) == "zero density"]
    if empty:
        found += (
            f" Of {empty[:_LISTED]} the potential is infinite: a log-likelihood or log-prior of "
            "-inf, a density of zero, where the chain had come by ordinary steps. Give the model "
            "support everywhere (a likelihood with wider tails, a parameter on the log scale)."
        )
    if len(empty) < len(lost):
        found += (
            " The likely cause is a step size beyond stability; it was "
            f"{step_size:.3g}: try a tenth of it, or a start nearer to the mode."
        )
    return found
