"""Line charts as SVG text: no library, sharp on every screen, colours from the page's style."""

import html
import math
from collections.abc import Mapping

from dinojax.viz.charts import Line, short, thinned

_WIDTH, _HEIGHT = 420, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 24


def line_chart(
    lines: Mapping[str, Line],
    *,
    marks: Mapping[str, float] | None = None,
    log: bool = False,
    unit: str = "",
    starts: Mapping[str, float] | None = None,
) -> str:
    """A figure with one line per name and a legend with last values; "" without any point.

    marks: dashed horizontal lines by name, such as floor and chance. log: logarithmic values, of
    which those that are not positive are left out. starts: dashed vertical lines by name, at steps.
    """
    marks = marks or {}
    shown = {name: [p for p in line if not log or p[1] > 0] for name, line in lines.items()}
    shown = {name: line for name, line in shown.items() if line}
    if not shown:
        return ""
    scale = _Scale(shown, marks, log)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">', *scale.axes(unit)]
    for name, value in marks.items():
        y = scale.y(value)
        parts.append(f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="mark" x="{_WIDTH - _RIGHT - 4}" y="{y - 4}" text-anchor="end">'
            f"{html.escape(name)} {short(value)}</text>"
        )
    parts += scale.uprights(starts or {})
    legend = []
    for number, (name, line) in enumerate(shown.items()):
        points = " ".join(f"{scale.x(step)},{scale.y(value)}" for step, value in thinned(line))
        color = f"c{number % 6}"
        if len(line) == 1:
            left, top = points.split(",")
            parts.append(f'<circle class="{color}" cx="{left}" cy="{top}" r="3"/>')
        parts.append(f'<polyline class="{color}" points="{points}"/>')
        last = f"{short(line[-1][1])}{unit}"
        legend.append(f'<span class="{color}"><i></i>{html.escape(name)} <b>{last}</b></span>')
    return f'{"".join(parts)}</svg><p class="legend">{"".join(legend)}</p>'


class _Scale:
    """From steps and values to places in the figure."""

    def __init__(self, lines: Mapping[str, Line], marks: Mapping[str, float], log: bool):
        self._log = log
        steps = [step for line in lines.values() for step, _ in line]
        values = [self._value(value) for line in lines.values() for _, value in line]
        values += [self._value(value) for value in marks.values()]
        self._steps = (min(steps), max(max(steps), min(steps) + 1))
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        self._values = (low - margin, high + margin)

    def _value(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def x(self, step: float) -> float:
        low, high = self._steps
        return round(_LEFT + (step - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self._values
        share = (self._value(value) - low) / (high - low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    def uprights(self, starts: Mapping[str, float]) -> list[str]:
        """Dashed vertical lines with names, at steps within the figure."""
        parts = []
        for name, step in starts.items():
            if self._steps[0] <= step <= self._steps[1]:
                x, ends = self.x(step), f'y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"'
                parts.append(f'<line class="mark" x1="{x}" x2="{x}" {ends}/>')
                place = f'x="{x + 3}" y="{_TOP + 9}"'
                parts.append(f'<text class="mark" {place}>{html.escape(name)}</text>')
        return parts

    def axes(self, unit: str) -> list[str]:
        """Grid lines with numbers."""
        parts = []
        for tick in ticks(*self._values):
            value = 10**tick if self._log else tick
            y = self.y(value)
            ends = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"'
            label = f"{short(value)}{unit}"
            parts.append(f'<line class="grid" {ends}/>')
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{label}</text>')
        for tick in ticks(*self._steps):
            y = _HEIGHT - 6
            label = short(tick)
            parts.append(f'<text x="{self.x(tick)}" y="{y}" text-anchor="middle">{label}</text>')
        return parts


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between low and high."""
    power = 10.0 ** math.floor(math.log10((high - low) / about))
    step = next(power * f for f in (1, 2, 5, 10) if (high - low) / (power * f) <= about)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]
