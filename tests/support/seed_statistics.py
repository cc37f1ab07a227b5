"""Two sides over seeds: the values of a run, how means and spreads differ, and the table of them.

A run is a row {"side", "seed", "steps", "knn": percent by kind, "curves": term -> every step}.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from scipy import stats

SIDES = ("reference", "dinojax")
WINDOWS = {"early": (0.3, 0.5), "late": (0.75, 1.0)}  # shares of a run
# Name in the table -> term and window, or kind of features of the k-NN.
QUANTITIES: dict[str, tuple[str, ...]] = {
    "k-NN of cls, %": ("cls",),
    "k-NN of patches, %": ("patches",),
    "KoLeo, {early}": ("koleo", "early"),
    "KoLeo, {late}": ("koleo", "late"),
    "total, {early}": ("total", "early"),
    "total, {late}": ("total", "late"),
    "iBOT, {late}": ("ibot", "late"),
    "DINO of local crops, {late}": ("dino_local", "late"),
}
LEVEL = 0.95


def summary(row: dict) -> dict:
    """What the table needs of a row: side, seed, steps, and the value of each quantity."""
    values = {name: value(row, quantity) for name, quantity in QUANTITIES.items()}
    return {
        "side": row["side"],
        "seed": row["seed"],
        "steps": row["steps"],
        "values": values,
    }


def value(row: dict, quantity: Sequence[str]) -> float:
    """One number of a run: a k-NN, or the mean of a term over a window of its steps."""
    if len(quantity) == 1:
        return row["knn"][quantity[0]]
    term, window = quantity
    first, last = steps_of(window, row["steps"])
    return statistics.mean(row["curves"][term][first:last])


def steps_of(window: str, steps: int) -> tuple[int, int]:
    """First step of a window, and the one after its last."""
    first, last = WINDOWS[window]
    return round(first * steps), round(last * steps)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How the values of two sides differ; an interval holds the truth in LEVEL of all cases."""

    mean: float  # second minus first
    low: float  # of Welch, who lets variances differ
    high: float
    ratio: float  # of the standard deviations, second over first
    ratio_low: float  # of the F distribution, for normal values
    ratio_high: float
    spread_p: float  # of Brown and Forsythe, for others too: how often equal spreads look so unlike


def compare(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Of two samples with at least three values each, not all of them equal."""
    interval = stats.ttest_ind(second, first, equal_var=False).confidence_interval(LEVEL)
    ratio = statistics.stdev(second) / statistics.stdev(first)
    freedom = len(second) - 1, len(first) - 1
    below, above = (stats.f.ppf((1 + sign * LEVEL) / 2, *freedom) for sign in (-1, 1))
    return Difference(
        mean=statistics.mean(second) - statistics.mean(first),
        low=float(interval.low),
        high=float(interval.high),
        ratio=ratio,
        ratio_low=ratio / math.sqrt(above),
        ratio_high=ratio / math.sqrt(below),
        spread_p=float(stats.levene(first, second, center="median").pvalue),
    )


def table(summaries: Sequence[dict]) -> list[str]:
    """The lines of a Markdown table; all summaries are of runs of the same length.

    Raises ValueError with fewer than three runs of a side: their spread says nothing.
    """
    sides = [[row for row in summaries if row["side"] == side] for side in SIDES]
    for side, found in zip(SIDES, sides, strict=True):
        if len(found) < 3:
            raise ValueError(f"{len(found)} runs of {side}; a table needs three of each side.")
    steps = summaries[0]["steps"]
    windows = {name: "steps {} to {}".format(*steps_of(name, steps)) for name in WINDOWS}
    told = [f"{side}, {len(found)} seeds" for side, found in zip(SIDES, sides, strict=True)]
    heads = [f"{steps} steps", *told, "difference", "ratio of spreads", "p"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    for name, quantity in QUANTITIES.items():
        samples = [[row["values"][name] for row in found] for found in sides]
        lines.append(
            _line(
                [
                    name.format(**windows),
                    *_cells(samples, 1 if len(quantity) == 1 else 3),
                ]
            )
        )
    return lines


def _cells(samples: Sequence[Sequence[float]], digits: int) -> list[str]:
    """Mean and (standard deviation) of both sides; their difference and ratio with [intervals]."""
    found = compare(*samples)
    cells = [f"{statistics.mean(x):.{digits}f} ({statistics.stdev(x):.{digits}f})" for x in samples]
    low, mean, high = (f"{x:+.{digits}f}" for x in (found.low, found.mean, found.high))
    return [
        *cells,
        f"{mean} [{low}, {high}]",
        f"{found.ratio:.2f} [{found.ratio_low:.2f}, {found.ratio_high:.2f}]",
        f"{found.spread_p:.2f}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
