"""Results of evaluations: a JSON line each in eval/NAME.jsonl of a run, or beside weights.

A record tells under which protocol its values came about, and what that protocol's fingerprint is.
Values of different fingerprints are different quantities and never stand in one column.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinojax.data import fields
from dinojax.files.drafts import open_append

FOLDER = "eval"  # of a run directory


@dataclasses.dataclass(frozen=True)
class Record:
    """One result. `protocol` is all that a value depends on besides the weights."""

    evaluation: str  # its name in the table
    values: Mapping[str, float]  # column -> value
    intervals: Mapping[str, tuple[float, float]]  # column -> 95 % bootstrap interval
    n: int  # that the main value is taken over
    protocol: Mapping[str, Any]  # settings, data, preprocessing; JSON values
    weights: Mapping[str, Any]  # where they are from, and their checksum
    step: int | None = None  # of a run's checkpoint
    stage: str | None = None  # of the run
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # seconds, versions, notes

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.protocol)

    def to_json(self) -> dict[str, Any]:
        """What a line holds; a value that is not finite is null, as in metrics.jsonl."""
        content = dataclasses.asdict(self)
        more = content.pop("more")
        values = {n: float(v) if math.isfinite(v) else None for n, v in self.values.items()}
        return {"fingerprint": self.fingerprint, **content, **more, "values": values}


def fingerprint(content: Any) -> str:
    """16 hexadecimal digits of JSON values; equal for equal content, in whatever order of keys."""
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append(folder: Path, record: Record) -> Path:
    """Write one more line to `folder`/NAME.jsonl; the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.evaluation}.jsonl"
    with open_append(path) as file:
        file.write(json.dumps(record.to_json()) + "\n")
    return path


def read(folder: Path) -> list[dict[str, Any]]:
    """The records in a folder, file by file; of those written before they had a fingerprint none.

    Raises ValueError with file and line for what is no record.
    """
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for where, row in fields.rows(path):
            if "fingerprint" not in row:
                continue
            for name in ("fingerprint", "evaluation"):
                fields.field(row, name, str, where=where)
            fields.field(row, "step", (int, None), where=where)
            fields.field(row, "stage", (str, None), where=where)
            fields.field(row, "values", {str: (float, None)}, where=where)
            fields.field(row, "intervals", {str: [float]}, where=where)
            fields.field(row, "n", int, where=where)
            weights = fields.field(row, "weights", dict, where=where)
            fields.field(weights, "checksum", str, where=f"{where}: weights")
            found.append(row)
    return found


def latest(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of records of the same weights and protocol the newest, in the order of steps."""
    newest: dict[tuple, dict[str, Any]] = {}
    for row in records:
        checksum = row["weights"]["checksum"]
        key = (row["evaluation"], row["fingerprint"], row["stage"], row["step"], checksum)
        newest[key] = row
    return sorted(newest.values(), key=lambda row: (row["evaluation"], row["step"] or 0))


def grouped(records: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(evaluation, fingerprint) -> its latest records: what may stand in one column."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in latest(records):
        groups.setdefault((row["evaluation"], row["fingerprint"]), []).append(row)
    return groups
