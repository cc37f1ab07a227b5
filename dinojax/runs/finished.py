"""Whether a stage is over: `finished` of RUN/stages/STAGE.json is the step it ended with.

Runs made before that was written have no such field; of these it is worked out from checkpoints and
rows of metrics.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinojax import config as configs
from dinojax.checkpoint.manager import COMMITTED
from dinojax.config.recipe import flat
from dinojax.data import fields
from dinojax.files.drafts import write_json
from dinojax.runs import early_stopping
from dinojax.runs.scalars import MOST_STEPS, read_metrics

ENDS = ("num_steps", "until.left_chance", "until.every")  # keys that say when a stage is over


def stage_file(directory: Path, stage: str) -> Path:
    """The config of a stage of the run, and whether it is over."""
    return directory / "stages" / f"{stage}.json"


def last_step(directory: Path, values: Mapping[str, Any]) -> int | None:
    """The step that a stage ended with; None if it has not, or its checkpoint is not there.

    values: the stage's config, dotted key -> value. Where it ends otherwise than the saved one (a
    run that goes on with more steps), what was saved counts for nothing.
    """
    path = stage_file(directory, values["stage"])
    saved = _read(path) if path.exists() else {}
    if "finished" in saved and _same_end(flat(saved["config"]), values):
        steps = [saved["finished"]]
    else:
        steps = _possible_ends(directory, values)
    folder = directory / "checkpoints" / values["stage"]
    stand = (step for step in steps if step is not None)
    return next((step for step in stand if (folder / str(step) / COMMITTED).exists()), None)


def mark_finished(directory: Path, stage: str, step: int) -> None:
    """Write that a stage is over, whole or not at all."""
    path = stage_file(directory, stage)
    write_json(path, {**_read(path), "finished": step})


def rows_of(directory: Path, stage: str) -> list[dict]:
    """The rows of a stage in metrics.jsonl; those without a stage are the first one's."""
    rows = read_metrics(directory / "metrics.jsonl")
    first = configs.saved_stages(directory)[0] if rows else stage
    return [row for row in rows if row.get("stage", first) == stage]


def _read(path: Path) -> dict[str, Any]:
    """A stage's file; ValueError for one that cannot say whether the stage is over."""
    content = fields.read(path)
    fields.field(content, "config", dict, where=path)
    step = fields.field(content, "finished", (int, None), where=path, default=None)
    if step is not None and not 0 <= step <= MOST_STEPS:
        raise ValueError(f"{path}: finished is {fields.shown(step)}; expected a step.")
    return content


def _same_end(saved: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(key in saved and saved[key] == values[key] for key in ENDS)


def _possible_ends(directory: Path, values: Mapping[str, Any]) -> list[int | None]:
    """num_steps, or a step before it where the losses left chance (until.left_chance)."""
    ends: list[int | None] = [values["num_steps"]]
    if values["until.left_chance"] is not None:
        rows = [row for row in rows_of(directory, values["stage"]) if "total" in row]
        ends.insert(0, early_stopping.left_chance(values, rows))
    return ends
