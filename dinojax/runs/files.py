"""What a run directory tells, read without a device: config, scalars, checkpoints, incidents."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinojax.checkpoint.manager import COMMITTED
from dinojax.config import saved as saved_files
from dinojax.config.saved import FAMILY
from dinojax.data import fields
from dinojax.data.quarantine import KNN_FILE
from dinojax.runs import records
from dinojax.runs.finished import last_step, stage_file
from dinojax.runs.rows import Rows
from dinojax.runs.scalars import iterate_metrics


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A stage of a run as far as it has come. Lists are empty where a file does not exist (yet)."""

    directory: Path
    home: Path  # of what all students of a family share: images, devices; else the same
    stage: str
    stages: list[str]  # all of the run, in their order
    recipe: str
    values: dict[str, Any]  # config: dotted key -> value
    sources: dict[str, str]  # dotted key -> who set it
    rows: Rows  # of training steps
    evaluations: Rows  # k-NN and probe rows
    checkpoints: list[int]  # steps of the stage, those that are whole
    autopsies: list[dict[str, Any]]
    bad_images: list[dict[str, Any]]  # replaced in training
    skipped_images: list[dict[str, Any]]  # left out of k-NN
    resumes: list[dict[str, Any]]
    environment: dict[str, Any]
    energy: dict[str, Any]  # of a student: of all that learn with it
    records: list[dict[str, Any]]  # results of evaluations (runs/records.py), of all stages
    finished: int | None  # the step that the stage ended with
    unwritten: list[int]  # steps of checkpoints under way, or torn
    num_images: int  # seen so far, in earlier stages too
    starts: dict[str, int] = dataclasses.field(default_factory=dict)  # of `read_whole`: stage: step

    @property
    def step(self) -> int:
        """Steps of the stage that are known to be done."""
        rows = [row["step"] for row in self.rows[-1:]]
        return max([0, *rows, *self.checkpoints[-1:]])

    @property
    def is_over(self) -> bool:
        """Whether the last stage is."""
        return self.finished is not None and self.stage == self.stages[-1]

    def column(self, name: str, last: float = 1.0) -> list[tuple[int, float]]:
        """(step, value) of the last share of training rows that have a finite value."""
        pairs = self.rows.column(name)
        return pairs[len(pairs) - math.ceil(len(pairs) * last) :]


def read_run(directory: str | Path, *, stage: str | None = None) -> RunFiles:
    """What is known of a stage of a run, None = the one it is at; steps count from its start.

    Raises FileNotFoundError if it is no run directory, ValueError for a file that is damaged.
    """
    directory = Path(directory)
    path = directory / saved_files.FILE
    if not path.exists():
        raise FileNotFoundError(f"{directory} holds no config.json; name a run directory.")
    saved = saved_files.read(path)
    stages = saved.stages
    if stage is not None and stage != saved.values["stage"]:
        saved = saved_files.read(stage_file(directory, stage))
    values = saved.values | saved.strange  # of keys declared then, too
    rows, evaluations, last = Rows(), Rows(), 0
    for row in iterate_metrics(directory / "metrics.jsonl"):
        if row.get("stage", stages[0]) == values["stage"]:
            (rows if "total" in row else evaluations).append(row)
            last = max(last, row["step"])
    folder = directory / "checkpoints" / values["stage"]
    above = directory.resolve().parent
    home = above if (above / FAMILY).exists() else directory
    lists = sorted(home.glob("bad_images*.jsonl"))  # one for each host
    before = values["start.steps_before"]  # counted in the names of autopsies
    own = range(before + 1, before + values["num_steps"] + 1)
    numbered = [p for p in directory.glob("autopsy/*/step.json") if p.parent.name.isdecimal()]
    autopsies = sorted(numbered, key=lambda p: int(p.parent.name))
    steps = {int(p.name): p for p in folder.glob("*") if p.name.isdecimal()}
    whole = sorted(step for step, p in steps.items() if (p / COMMITTED).exists())
    drafts = [p.name.split(".")[0] for p in folder.glob("*.orbax-checkpoint-tmp*")]
    under_way = {*steps, *(int(name) for name in drafts if name.isdecimal())} - set(whole)
    images = _num_images(directory, values, stages, max([last, *whole]))
    return RunFiles(
        directory=directory,
        home=home,
        stage=values["stage"],
        stages=stages,
        recipe=saved.recipe,
        values=values,
        sources=saved.sources | dict.fromkeys(saved.strange, "base") | saved.sources,
        rows=rows,
        evaluations=evaluations,
        checkpoints=whole,
        unwritten=sorted(under_way),
        num_images=images,
        autopsies=[_autopsy(path) for path in autopsies if int(path.parent.name) in own],
        bad_images=[row for path in lists if path.name != KNN_FILE for row in _images(path)],
        skipped_images=_images(directory / KNN_FILE),
        resumes=_resumes(directory / "resumes.jsonl"),
        environment=_object(directory / "env.json"),
        energy=_energy(home / "energy.json"),
        records=records.read(directory / records.FOLDER),
        finished=last_step(directory, values),
    )


def _num_images(directory: Path, values: dict[str, Any], stages: list[str], step: int) -> int:
    """Images that steps have seen: those of this stage, and all of the stages before it."""
    seen = step * values["batch_size"]
    place = stages.index(values["stage"]) if values["stage"] in stages else 0
    for name in stages[:place]:
        before = _values_of(directory, name)
        seen += (last_step(directory, before) or before["num_steps"]) * before["batch_size"]
    return seen


def _values_of(directory: Path, stage: str) -> dict[str, Any]:
    """Dotted key -> value of a stage's saved config."""
    saved = saved_files.read(stage_file(directory, stage))
    return saved.values | saved.strange


def read_whole(directory: str | Path) -> RunFiles:
    """The same with the rows of all stages up to the newest, their steps counted on."""
    newest = read_run(directory)
    names = newest.stages[: newest.stages.index(newest.stage) + 1]
    parts = [read_run(directory, stage=name) for name in names[:-1]] + [newest]
    starts = {part.stage: part.values["start.steps_before"] for part in parts}
    if not any(starts.values()):
        return dataclasses.replace(newest, starts=starts)

    def counted_on(part: RunFiles, rows: Rows) -> Iterator[dict[str, Any]]:
        before = starts[part.stage]
        return ({**row, "step": row["step"] + before} for row in rows)

    return dataclasses.replace(
        newest,
        rows=Rows(row for part in parts for row in counted_on(part, part.rows)),
        evaluations=Rows(row for part in parts for row in counted_on(part, part.evaluations)),
        starts=starts,
    )


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty without the file."""
    if not path.exists():
        return {}
    return fields.checked(fields.read(path), dict, name="the whole", where=path)


def _autopsy(path: Path) -> dict[str, Any]:
    """step.json of an autopsy, and the name of its folder."""
    content = _object(path)
    for name, kind in (("step", int), ("culprit", str), ("scalars", {str: (float, str)})):
        fields.field(content, name, kind, where=path)
    fields.field(content["scalars"], "bad_steps", float, where=f"{path}: scalars")
    return {**content, "folder": path.parent.name}


def _energy(path: Path) -> dict[str, Any]:
    """energy.json (energy.summed)."""
    content = _object(path)
    if content:
        for name in ("energy_kwh", "tonnes_co2e"):
            fields.field(content, name, (float, None), where=path)
        for name in ("device_hours", "pue", "tonnes_per_mwh"):
            fields.field(content, name, float, where=path)
        fields.field(content, "method", str, where=path)
        for number, one in enumerate(fields.field(content, "sessions", [dict], where=path)):
            fields.field(one, "notes", [str], where=f"{path}: sessions[{number}]")
    return content


def _images(path: Path) -> list[dict[str, Any]]:
    """Rows of a list of bad images (data/quarantine.py)."""
    found = list(fields.rows(path))
    for where, row in found:
        fields.field(row, "reason", str, where=where)
    return [row for _, row in found]


def _resumes(path: Path) -> list[dict[str, Any]]:
    """Starts and stops (run.Run.note)."""
    found = list(fields.rows(path))
    for where, row in found:
        fields.field(row, "event", str, where=where)
        for name in ("time", "reason"):
            fields.field(row, name, str, where=where, default="")
    return [row for _, row in found]
