"""What a verdict consists of, and how it is written out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from particlevi import _html

__all__ = ["Finding", "FindingKind", "Severity", "Verdict"]

FindingKind: TypeAlias = Literal[
    "diverged",
    "diverging",
    "interrupted",
    "no chains",
    "few draws",
    "not converged",
    "low ESS",
    "one chain",
    "not invariant",
    "not stationary",
    "too hot",
    "too cold",
    "noise",
    "at rest",
    "rejections",
    "no exchange",
    "bad fit",
]

Severity: TypeAlias = Literal["wrong", "model", "uncertain", "untold"]
"""``"wrong"``: the draws follow another law; ``"model"``: they may be right, and the model fits the
data badly; ``"uncertain"``: too few of them to rely on;
``"untold"``: nothing can be said of them."""

_ORDER: dict[Severity, int] = {"wrong": 0, "model": 1, "uncertain": 2, "untold": 3}


@dataclass(frozen=True)
class Finding:
    """Something to act on.

    Attributes:
        kind: what it is.
        severity: what it means for the draws.
        problem: what is wrong and by how much, in words.
        advice: what to change.
        numbers: what it rests on, by name.
    """

    kind: FindingKind
    severity: Severity
    problem: str
    advice: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.problem}\n   -> {self.advice}"


@dataclass(repr=False)
class Verdict:
    """What the diagnostics say.

    Attributes:
        findings: what is wrong, the worst first; empty if there is nothing.
        facts: the numbers behind it.
        errors: standard errors of those that are estimates.
    """

    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, as far as can be told."""
        return not self.findings

    def add(
        self,
        kind: FindingKind,
        severity: Severity,
        problem: str,
        advice: str,
        **numbers: float,
    ) -> None:
        """One more finding, in its place."""
        self.findings.append(Finding(kind, severity, problem, advice, numbers))
        self.findings.sort(key=lambda finding: _ORDER[finding.severity])

    def note(self, name: str, value: float, error: float = math.nan) -> None:
        """One more number, with its standard error if it is an estimate."""
        self.facts[name] = float(value)
        if not math.isnan(error):
            self.errors[name] = float(error)

    def __repr__(self) -> str:
        kinds = ", ".join(finding.kind for finding in self.findings)
        return f"Verdict({kinds or 'nothing wrong was found'})"

    def _repr_html_(self) -> str:
        title = "Verdict: nothing wrong was found" if self.ok else "Verdict"
        found = [(each.severity, f"{each.problem}\n\u2192 {each.advice}") for each in self.findings]
        facts = [
            (name, f"{value:.4g}", f"{self.errors[name]:.2g}" if name in self.errors else "")
            for name, value in self.facts.items()
        ]
        return _html.block(
            title, _html.notes(found), _html.table(("fact", "value", "error"), facts)
        )

    def _fact(self, name: str) -> str:
        error = self.errors.get(name)
        shown = f"{name} {self.facts[name]:.4g}"
        return shown if error is None else f"{shown} +- {error:.2g}"

    def __str__(self) -> str:
        lines = [f"{k + 1}. {finding}" for k, finding in enumerate(self.findings)]
        if not lines:
            lines = ["Nothing wrong was found."]
        lines.append("   ".join(self._fact(name) for name in self.facts))
        return "\n".join(lines)
