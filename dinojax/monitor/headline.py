"""The first lines of a report: how far a run is, what it has learned, and what it took."""

import dataclasses
import datetime
import os
from collections.abc import Iterator, Mapping
from typing import Any

from dinojax.configs.keys import ALL_TERMS
from dinojax.eval.suite import SUITE
from dinojax.runs import early_stopping, lock
from dinojax.runs.files import RunFiles
from dinojax.runs.loss_ranges import loss_ranges
from dinojax.runs.scalars import TIME, duration
from dinojax.viz.charts import short


@dataclasses.dataclass(frozen=True)
class Tile:
    """A value, its name, and more of it in words."""

    name: str
    value: str
    detail: str = ""
    severity: str = ""  # "problem" marks it


def tiles(run: RunFiles) -> Iterator[Tile]:
    """State, steps, losses, results, cost and alarm of a run."""
    yield state(run)
    step, num_steps = run.step, run.values["num_steps"]
    stage = run.values["stage"]
    where = f"of stage {stage}" if len(run.stages) > 1 else ""
    yield Tile("step", f"{step:,} of {num_steps:,}", where)
    yield Tile("images seen", f"{run.num_images:,}")
    if run.rows:
        total = run.rows[-1]["total"]
        text = "not finite" if total is None else short(total)
        severity = "problem" if total is None else ""
        yield Tile("last loss", text, "all terms", severity)
    yield from _results(run)
    spent, sessions = seconds(run)
    if sessions:
        yield Tile("time", duration(spent), f"{sessions} starts" if sessions > 1 else "")
    if run.energy:
        kwh = run.energy["energy_kwh"]
        whose = "of all students" if run.home != run.directory else ""
        yield Tile("energy", "not known" if kwh is None else f"{kwh:.3g} kWh", whose)
    yield alarm(run)


def state(run: RunFiles) -> Tile:
    """Whether the run is over, under way, stopped, or ended without a word."""
    last = run.resumes[-1] if run.resumes else {"event": ""}
    holder = lock.holder(run.directory)
    others = holder is not None and not holder.startswith(f"process {os.getpid()} ")
    when = f"at {_clock(last['time'])}" if "time" in last else ""
    if run.is_over:
        return Tile("state", "finished", when)
    if last["event"] == "stop" and not others:
        reason = last.get("reason", "")
        if reason == "finished":
            return Tile("state", f"stage {run.stage} is over", when)
        return Tile("state", "stopped", f"{when}: {reason}"[:200], "problem")
    if holder is not None:
        return Tile("state", "under way", holder)
    if not run.resumes:
        return Tile("state", "not begun")
    told = f"begun {when}, and no end is written down: killed, or the machine went down"
    return Tile("state", "ended without a word", told, "problem")


def alarm(run: RunFiles) -> Tile:
    """What knn.alarm says of the last evaluation."""
    share = run.values["knn.alarm"]
    if share is None:
        return Tile("alarm", "none set", "knn.alarm")
    if lost := early_stopping.fallen(run.values, run.evaluations):
        return Tile("alarm", "RAISED", lost, "problem")
    return Tile("alarm", "quiet", f"knn.alarm={share:g}")


def _results(run: RunFiles) -> Iterator[Tile]:
    """The one number of each evaluation: its best and last value."""
    rows = {row["column"]: row for row in evaluations(run)}
    for evaluation in SUITE.values():
        if row := rows.get(evaluation.main_column(run.values)):
            best = f"; best {row['best']}" if "best" in row else ""
            yield Tile(evaluation.title, row["last"].split(" at ")[0], f"{row['column']}{best}")


def evaluations(run: RunFiles) -> list[dict[str, str]]:
    """First, best and last value of every column of evaluations; the best one of percentages."""
    rows = []
    for evaluation in SUITE.values():
        for column in evaluation.columns(run.evaluations):
            found = [(r["step"], r[column]) for r in run.evaluations if r.get(column) is not None]
            chosen = {"first": found[0], "best": max(found, key=lambda p: p[1]), "last": found[-1]}
            if evaluation.unit != "%":
                del chosen["best"]  # it may be the lowest
            said = {n: f"{evaluation.shown(v)} at step {step:,}" for n, (step, v) in chosen.items()}
            rows.append({"column": column, **said})
    return rows


def losses(run: RunFiles) -> list[dict[str, str]]:
    """Every loss term: first and last value, and between what it can lie."""
    ranges, rows = loss_ranges(run.values), []
    for term in ("total", *ALL_TERMS):
        found = run.column(term)
        if not found:
            continue
        row = {"loss": term, "first": short(found[0][1]), "last": short(found[-1][1])}
        if term in ranges:
            row |= {"chance": short(ranges[term].chance), "floor": short(ranges[term].floor)}
        rows.append(row)
    return rows


def learned(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table of quickstart.json: k-NN on test tiles."""
    names = {"raw": "raw pixels", "random": "random weights (best)", "ema": "ema, trained"}
    return [
        {"k-NN on test tiles": said, "right": f"{content[name]:.1f} %"}
        for name, said in names.items()
        if name in content
    ]


def seconds(run: RunFiles) -> tuple[float, int]:
    """Seconds from starts to stops, and how many starts; a killed one lasts to its last row."""
    spent, began, sessions = 0.0, None, 0
    written = [moment for row in run.rows if (moment := _moment(row.get(TIME))) is not None]
    last_row = max(written, default=None)
    for event in run.resumes:
        moment = _moment(event.get("time"))
        if moment is None:
            continue
        if event["event"] == "start":
            spent += 0.0 if began is None else _until(began, written, moment)
            began, sessions = moment, sessions + 1
        elif began is not None:
            spent, began = spent + (moment - began).total_seconds(), None
    if began is not None and last_row is not None and last_row > began:
        spent += (last_row - began).total_seconds()
    return spent, sessions


def _until(began: datetime.datetime, written: list, end: datetime.datetime) -> float:
    """Seconds of a session that was killed: to its last row that was kept."""
    rows = [moment for moment in written if began < moment < end]
    return (max(rows) - began).total_seconds() if rows else 0.0


def _moment(text: Any) -> datetime.datetime | None:
    try:
        found = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):  # of older runs
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _clock(text: str) -> str:
    moment = _moment(text)
    return text if moment is None else moment.strftime("%Y-%m-%d %H:%M UTC")
