"""What the doctor finds, and how it reads a column."""

import dataclasses
import statistics

from dinojax.runs.files import RunFiles

RECENT = 0.25  # share of the rows that count as now
FEWEST_ROWS = 8  # before that, nothing is said about curves


@dataclasses.dataclass(frozen=True)
class Finding:
    """severity: problem (act now) | warning (look) | note. evidence: numbers and steps."""

    severity: str
    name: str
    evidence: str
    meaning: str
    advice: str


def median(run: RunFiles, name: str, last: float = RECENT) -> float | None:
    """Of the last share of rows; None without any."""
    values = [value for _, value in run.column(name, last)]
    return statistics.median(values) if values else None
