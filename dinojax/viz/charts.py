"""Line charts as descriptions that plotly.js draws: values under the pointer, zoom, PNG to save.

Here is what a chart shows and between which values; colours come from the page
(monitor/page.html.jinja).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Line = Sequence[tuple[float, float]]  # (step, value), finite

SETTLED = 0.1  # share of a line's points after which its first moves do not set the axis
FEWEST = 20  # points of a line that has first moves
_MAX_POINTS = 400


def line_chart(
    lines: Mapping[str, Line],
    *,
    marks: Mapping[str, float] | None = None,
    log: bool = False,
    unit: str = "",
    starts: Mapping[str, float] | None = None,
    last_step: float | None = None,
) -> dict[str, Any] | None:
    """`data` and `layout` of a chart with one line per name; None without any point.

    marks: dashed horizontal lines by name, such as floor and chance; those that would squeeze the
    lines stand at the edge, with an arrow. log: logarithmic values, of which those that are not
    positive are left out. unit: title of the values' axis. starts: dashed vertical lines by name,
    at steps. last_step: where the axis of steps ends, None = at the last point.

    Neither axis starts where a line's first moves take it: a double click shows those too.
    """
    shown = {name: [p for p in line if not log or p[1] > 0] for name, line in lines.items()}
    shown = {name: line for name, line in shown.items() if line}
    if not shown:
        return None
    low, high = value_range(shown.values(), (marks or {}).values(), log=log)
    end = max(last_step or 0, *(line[-1][0] for line in shown.values()), 1)
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "step"}, "range": [-0.02 * end, 1.02 * end]},
        "yaxis": {
            "title": {"text": unit},
            "range": [low, high],
            "type": "log" if log else "linear",
            "exponentformat": "power" if log else "SI",
            **({"dtick": 1 if high - low > 2 else "D2"} if log else {}),
        },
        "shapes": [],
        "annotations": [],
    }
    for name, value in (marks or {}).items():
        _add_mark(layout, name, math.log10(value) if log else value)
    for name, step in (starts or {}).items():
        if step <= end:
            _add_start(layout, name, step)
    return {"data": [_trace(name, line) for name, line in shown.items()], "layout": layout}


def _trace(name: str, line: Line) -> dict[str, Any]:
    steps, values = zip(*thinned(line), strict=True)
    few = len(line) < FEWEST
    return {
        "type": "scatter",
        "mode": "lines+markers" if few else "lines",
        "name": f"{name} {short(line[-1][1])}",  # what the legend says
        "x": list(steps),
        "y": list(values),
        "hovertemplate": f"{name} %{{y:.6~g}}<extra></extra>",
    }


def _add_mark(layout: dict[str, Any], name: str, value: float) -> None:
    """A dashed line at a value, or at the edge that it lies beyond."""
    low, high = layout["yaxis"]["range"]
    inside, said = low <= value <= high, f"{name} {short(value)}"
    if inside:
        layout["shapes"].append({"type": "line", "xref": "paper", "x0": 0, "x1": 1})
        layout["shapes"][-1] |= {"y0": value, "y1": value, "line": {"dash": "dash", "width": 1}}
    where: dict[str, Any] = {"y": value, "yref": "y", "yanchor": "bottom"}
    if not inside:
        above = value > high
        where = {"y": float(above), "yref": "paper", "yanchor": "top" if above else "bottom"}
        said += " ↑" if above else " ↓"
    side = {"x": 1, "xanchor": "right"} if inside else {"x": 0, "xanchor": "left"}
    layout["annotations"].append({"xref": "paper", **side, **where})
    layout["annotations"][-1] |= {"text": said, "showarrow": False}


def _add_start(layout: dict[str, Any], name: str, step: float) -> None:
    """A dashed upright with its name."""
    layout["shapes"].append({"type": "line", "yref": "paper", "y0": 0, "y1": 1})
    layout["shapes"][-1] |= {"x0": step, "x1": step, "line": {"dash": "dot", "width": 1}}
    where = {"x": step, "xanchor": "left", "y": 1, "yref": "paper", "yanchor": "bottom"}
    layout["annotations"].append({**where, "text": name, "showarrow": False})


def value_range(
    lines: Iterable[Line], marks: Iterable[float] = (), *, log: bool = False
) -> tuple[float, float]:
    """Lowest and highest value that an axis shows; their logarithms to base 10 of a log one.

    A line of many points is seen from a tenth of them on if all of it would squeeze that to less
    than half of the axis. Marks within one length of the lines count.
    """

    def scaled(values: Iterable[float]) -> list[float]:
        return [math.log10(value) if log else value for value in values]

    every, settled = [], []
    for line in lines:
        values = scaled(value for _, value in line)
        every += values
        settled += values[int(SETTLED * len(values)) if len(values) >= FEWEST else 0 :]
    low, high = min(settled), max(settled)
    if max(every) - min(every) <= 2 * (high - low):
        low, high = min(every), max(every)
    length = high - low
    near = [mark for mark in scaled(marks) if low - length <= mark <= high + length]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def thinned(line: Line) -> Line:
    """At most _MAX_POINTS points, of every stretch the lowest and the highest: spikes stay."""
    if len(line) <= _MAX_POINTS:
        return line
    size = math.ceil(2 * len(line) / _MAX_POINTS)
    kept = []
    for start in range(0, len(line), size):
        part = line[start : start + size]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return [*kept[:-1], line[-1]]


def short(value: float) -> str:
    """A number in few characters: 12.5k, 0.0312, 2e-5."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size and size < 1e-3:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"
