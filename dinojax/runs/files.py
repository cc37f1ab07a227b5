"""What a run directory tells, read without a device: config, scalars, checkpoints, incidents."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from configs import base
from dinojax.config.recipe import flat
from dinojax.data.quarantine import KNN_FILE
from dinojax.runs.directory import FAMILY
from dinojax.runs.finished import last_step, stage_file
from dinojax.runs.scalars import read_metrics


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
    rows: list[dict[str, Any]]  # of training steps
    evaluations: list[dict[str, Any]]  # k-NN and probe rows
    checkpoints: list[int]  # steps of the stage
    autopsies: list[dict[str, Any]]
    bad_images: list[dict[str, Any]]  # replaced in training
    skipped_images: list[dict[str, Any]]  # left out of k-NN
    resumes: list[dict[str, Any]]
    environment: dict[str, Any]
    energy: dict[str, Any]  # of a student: of all that learn with it
    finished: int | None  # the step that the stage ended with
    starts: dict[str, int] = dataclasses.field(default_factory=dict)  # of `read_whole`: stage: step

    def column(self, name: str, last: float = 1.0) -> list[tuple[int, float]]:
        """(step, value) of the last share of training rows that have a finite value."""
        pairs = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        return pairs[len(pairs) - math.ceil(len(pairs) * last) :]


def read_run(directory: str | Path, *, stage: str | None = None) -> RunFiles:
    """What is known of a stage of a run, None = the one it is at; steps count from its start.

    Raises FileNotFoundError if it is no run directory, ValueError for a file that is damaged.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory} holds no config.json; name a run directory.")
    saved = _json(path)
    stages = saved["stages"] if "stages" in saved else [saved["config"]["stage"]]
    if stage is not None and stage != saved["config"]["stage"]:
        saved = _json(stage_file(directory, stage))
    default = flat(base.get_config())  # for keys declared since
    values = {**default, **flat(saved["config"])}
    rows = [
        row
        for row in read_metrics(directory / "metrics.jsonl")
        if row.get("stage", stages[0]) == values["stage"]
    ]
    folder = directory / "checkpoints" / values["stage"]
    above = directory.resolve().parent
    home = above if (above / FAMILY).exists() else directory
    lists = sorted(home.glob("bad_images*.jsonl"))  # one for each host
    before = values["start.steps_before"]  # counted in the names of autopsies
    own = range(before + 1, before + values["num_steps"] + 1)
    autopsies = sorted(directory.glob("autopsy/*/step.json"), key=lambda p: int(p.parent.name))
    autopsies = [path for path in autopsies if int(path.parent.name) in own]
    return RunFiles(
        directory=directory,
        home=home,
        stage=values["stage"],
        stages=stages,
        recipe=saved["recipe"],
        values=values,
        sources=dict.fromkeys(default, "base") | saved["sources"],
        rows=[row for row in rows if "total" in row],
        evaluations=[row for row in rows if "total" not in row],
        checkpoints=sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit()),
        autopsies=[{**_json(path), "folder": path.parent.name} for path in autopsies],
        bad_images=[row for path in lists if path.name != KNN_FILE for row in _lines(path)],
        skipped_images=_lines(directory / KNN_FILE),
        resumes=_lines(directory / "resumes.jsonl"),
        environment=_json(directory / "env.json"),
        energy=_json(home / "energy.json"),
        finished=last_step(directory, values),
    )


def read_whole(directory: str | Path) -> RunFiles:
    """The same with the rows of all stages up to the newest, their steps counted on."""
    newest = read_run(directory)
    names = newest.stages[: newest.stages.index(newest.stage) + 1]
    parts = [read_run(directory, stage=name) for name in names[:-1]] + [newest]

    def counted_on(part: RunFiles, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        before = part.values["start.steps_before"]
        return [{**row, "step": row["step"] + before} for row in rows]

    return dataclasses.replace(
        newest,
        rows=[row for part in parts for row in counted_on(part, part.rows)],
        evaluations=[row for part in parts for row in counted_on(part, part.evaluations)],
        starts={part.stage: part.values["start.steps_before"] for part in parts},
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); repair or remove it.") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line that was being written is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
