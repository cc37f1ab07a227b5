"""The report's part about records of evaluations: one table and chart for each protocol."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dinojax.eval.row import Row
from dinojax.eval.suite import SUITE
from dinojax.monitor.pages import Figure
from dinojax.runs.files import RunFiles
from dinojax.runs.records import grouped
from dinojax.viz.charts import line_chart


class Table(NamedTuple):
    """Results of one evaluation under one protocol."""

    title: str
    fingerprint: str
    told: str  # settings of the protocol
    rows: list[dict[str, Any]]


def tables(run: RunFiles) -> Iterator[Table]:
    """One for each evaluation and fingerprint: values of another protocol stand elsewhere."""
    for row, fingerprint, records in _groups(run):
        columns = list(dict.fromkeys(column for one in records for column in one["values"]))
        rows = [
            {
                "stage": one["stage"] or "",
                "step": one["step"],
                "n": one["n"],
                **{column.removeprefix(row.prefix): _cell(row, one, column) for column in columns},
            }
            for one in records
        ]
        yield Table(row.title, fingerprint, _told(records[-1]), rows)


def figures(run: RunFiles) -> Iterator[Figure]:
    """Values over the steps of the run, all stages, where there are two or more."""
    for row, fingerprint, records in _groups(run):
        lines = {
            column.removeprefix(row.prefix): sorted(
                (one["step"] + run.starts.get(one["stage"], 0), one["values"][column])
                for one in records
                if one["step"] is not None and one["values"].get(column) is not None
            )
            for column in row.columns(one["values"] for one in records)
        }
        lines = {name: points for name, points in lines.items() if len(points) > 1}
        chart = line_chart(lines, unit=row.unit, starts=run.starts)
        yield Figure(f"Checkpoints: {row.title}", f"Protocol {fingerprint}.", chart)


def _groups(run: RunFiles) -> Iterator[tuple[Row, str, Sequence[Mapping[str, Any]]]]:
    for (name, fingerprint), records in grouped(run.records).items():
        if name in SUITE:  # else of a version that has it
            yield SUITE[name], fingerprint, records


def _told(record: Mapping[str, Any]) -> str:
    """Settings of the protocol in words, and what there was to measure."""
    protocol = record.get("protocol", {})
    pixels = protocol.get("preprocessing", {})
    said = [str(record["told"])] if record.get("told") else []
    if record.get("protocol_name"):
        said.append(f"--protocol {record['protocol_name']}")
    if pixels.get("crop_size"):
        said.append(f"{pixels['crop_size']} pixels of {pixels.get('resize_size')}")
    said += [f"{key} {value}" for key, value in protocol.get("settings", {}).items()]
    return ", ".join(said)


def _cell(row: Row, record: Mapping[str, Any], column: str) -> str:
    """A value and its interval."""
    if (value := record["values"].get(column)) is None:
        return ""
    if column == f"{row.prefix}skipped":
        return str(value)
    ends = record["intervals"].get(column)
    return row.shown(value) + (f" ({row.shown(ends[0])} to {row.shown(ends[1])})" if ends else "")
