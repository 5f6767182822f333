"""Charts as SVG, without a script: a point tells its numbers under the mouse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["Chart", "Interval", "Line"]

_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 42
_MOST_POINTS = 300


@dataclass(frozen=True)
class Line:
    """Points joined by a line, in their order, with a label."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    points: bool = False


@dataclass(frozen=True)
class Interval:
    """A value with its error bar on a line of its own, with a label."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """Lines over one axis, or intervals under each other.

    Attributes:
        title: what it shows.
        x, y: what the axes are, with units.
        lines: for a chart of lines.
        intervals: for one of intervals.
        reference: a vertical line among intervals, or a horizontal one among lines.
        diagonal: the line y = x.
    """

    title: str
    x: str
    y: str = ""
    lines: Sequence[Line] = field(default_factory=tuple)
    intervals: Sequence[Interval] = field(default_factory=tuple)
    reference: float | None = None
    diagonal: bool = False

    def svg(self) -> str:
        """The chart as an SVG element; empty text where there is nothing finite to show."""
        return self._intervals() if self.intervals else self._lines()

    def _lines(self) -> str:
        kept = [_thinned(line) for line in self.lines]
        points = [point for _, line in kept for point in line]
        if not points:
            return ""
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if self.diagonal:
            xs = ys = xs + ys
        if self.reference is not None:
            ys = [*ys, self.reference]
        frame = _Frame(_span(xs), _span(ys), _HEIGHT)
        parts = [frame.axes(self.x, self.y)]
        if self.diagonal:
            (low, high), _ = frame.x, frame.y
            parts.append(frame.path([(low, low), (high, high)], "dashed"))
        if self.reference is not None:
            ends = [(each, self.reference) for each in frame.x]
            parts.append(frame.path(ends, "dashed"))
        for k, (line, shown) in enumerate(kept):
            colour = f"c{k % 8}"
            if line.points:
                parts += [frame.dot(x, y, colour, line.label) for x, y in shown]
            else:
                parts.append(frame.path(shown, colour, line.label))
        return self._figure(frame.height, parts)

    def _intervals(self) -> str:
        shown = [each for each in self.intervals if math.isfinite(each.value)]
        if not shown:
            return ""
        ends = [e for each in shown for e in (each.value, each.low, each.high) if math.isfinite(e)]
        ends += [] if self.reference is None else [self.reference]
        height = _TOP + _BOTTOM + 26 * len(shown)
        frame = _Frame(_span(ends), (0.0, float(len(shown))), height, left=150)
        parts = [frame.axes(self.x, "", ticks=False)]
        if self.reference is not None:
            across = [(self.reference, 0.0), (self.reference, float(len(shown)))]
            parts.append(frame.path(across, "dashed"))
        for k, each in enumerate(shown):
            level = len(shown) - k - 0.5
            text = f"{each.label}: {each.value:.4g} ({each.low:.4g} ... {each.high:.4g})"
            if math.isfinite(each.low) and math.isfinite(each.high):
                parts.append(frame.path([(each.low, level), (each.high, level)], "c0", text))
            parts.append(frame.dot(each.value, level, "c0", text))
            parts.append(frame.name(level, each.label))
        return self._figure(height, parts)

    def _figure(self, height: float, parts: Sequence[str]) -> str:
        many = len(self.lines) > 1
        legend = "".join(
            f'<span class="key c{k % 8}">{escape(line.label)}</span>'
            for k, line in enumerate(self.lines)
        )
        below = f'<div class="keys">{legend}</div>' if many else ""
        return (
            f'<figure><figcaption>{escape(self.title)}</figcaption><svg viewBox="0 0 {_WIDTH} '
            f'{height:g}" role="img" aria-label="{escape(self.title)}">{"".join(parts)}</svg>'
            f"{below}</figure>"
        )


@dataclass(frozen=True)
class _Frame:
    """From numbers to places in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: float
    left: float = _LEFT

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        wide, high = _WIDTH - self.left - _RIGHT, self.height - _TOP - _BOTTOM
        return self.left + across * wide, _TOP + (1 - up) * high

    def path(self, points: Sequence[tuple[float, float]], kind: str, label: str = "") -> str:
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*each) for each in points))
        title = f"<title>{escape(label)}</title>" if label else ""
        return f'<polyline class="{kind}" points="{places}">{title}</polyline>'

    def dot(self, x: float, y: float, kind: str, label: str) -> str:
        across, down = self.at(x, y)
        text = escape(f"{label}: {x:.4g}, {y:.4g}" if ":" not in label else label)
        circle = f'<circle class="{kind}" cx="{across:.1f}" cy="{down:.1f}" r="3.5">'
        return f"{circle}<title>{text}</title></circle>"

    def name(self, level: float, text: str) -> str:
        _, down = self.at(self.x[0], level)
        short = text if len(text) <= 20 else f"{text[:18]}…"
        label = f"<title>{escape(text)}</title>{escape(short)}"
        return f'<text x="{self.left - 8}" y="{down + 4:.1f}" text-anchor="end">{label}</text>'

    def axes(self, x: str, y: str, ticks: bool = True) -> str:
        parts = []
        bottom = self.height - _BOTTOM
        for value in _ticks(*self.x):
            across, _ = self.at(value, self.y[0])
            parts.append(f'<path class="grid" d="M{across:.1f} {_TOP}V{bottom}"/>')
            place = f'x="{across:.1f}" y="{bottom + 16}" text-anchor="middle"'
            parts.append(f"<text {place}>{value:.4g}</text>")
        for value in _ticks(*self.y) if ticks else ():
            _, down = self.at(self.x[0], value)
            parts.append(f'<path class="grid" d="M{self.left} {down:.1f}H{_WIDTH - _RIGHT}"/>')
            place = f'x="{self.left - 6}" y="{down + 4:.1f}" text-anchor="end"'
            parts.append(f"<text {place}>{value:.4g}</text>")
        centre = 0.5 * (self.left + _WIDTH - _RIGHT)
        foot = f'x="{centre}" y="{self.height - 6}" text-anchor="middle"'
        parts.append(f'<text class="label" {foot}>{escape(x)}</text>')
        if y:
            middle = 0.5 * (_TOP + bottom)
            turned = f'transform="translate(13 {middle}) rotate(-90)" text-anchor="middle"'
            parts.append(f'<text class="label" {turned}>{escape(y)}</text>')
        return "".join(parts)


def _thinned(line: Line) -> tuple[Line, list[tuple[float, float]]]:
    """A line and at most 300 of its finite points, evenly spaced."""
    points = [
        (float(x), float(y))
        for x, y in zip(line.xs, line.ys, strict=True)
        if math.isfinite(x) and math.isfinite(y)
    ]
    step = max(1, math.ceil(len(points) / _MOST_POINTS))
    return line, points[::step]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers between two ends."""
    rough = (high - low) / 5
    size = 10 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    first = math.ceil(low / step)
    return [step * k for k in range(first, math.floor(high / step) + 1)]
