"""HTML of report.html from its templates (*.html.jinja): one file that fetches nothing."""

import datetime
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from plotly.offline import get_plotlyjs


class Figure(NamedTuple):
    """A chart (viz/charts.py) with what is said above it."""

    title: str
    note: str
    chart: dict[str, Any] | None


def render(template: str, figures: Sequence[Figure], **values: Any) -> str:
    """A page. All text in `values` is escaped; plotly.js (4.8 MB) is in it if there is a chart."""
    drawn = [figure for figure in figures if figure.chart]
    return (
        _templates()
        .get_template(f"{template}.html.jinja")
        .render({**values, "figures": drawn, "plotly": get_plotlyjs() if drawn else ""})
    )


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@functools.cache
def _templates() -> jinja2.Environment:
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        auto_reload=False,  # the templates of a long run are those of its code
    )
    found.filters["said"] = _said
    return found


def _said(value: Any) -> str:
    """A value of a file in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
