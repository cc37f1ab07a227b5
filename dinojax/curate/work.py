"""The folder of a curation: one folder a step, each of which says what it was made of and by what.

A step that is finished is not done again. One that was made by other settings, or of other results
of the step before, is refused by name, or made anew where that is asked for.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinojax.curate.allocate import Tree
from dinojax.curate.hierarchy import Found, read_level
from dinojax.curate.pool import Pool, open_pool
from dinojax.curate.recipe import Recipe
from dinojax.data import fields
from dinojax.data.example import Source
from dinojax.data.header import ReadOptions
from dinojax.data.sources import open_at
from dinojax.distributed import process_group
from dinojax.files.drafts import open_new, write_json
from dinojax.sharding.mesh import Layout
from dinojax.weights import run
from dinojax.weights.load import Backbone

STEP = "step.json"


@dataclasses.dataclass(frozen=True)
class Work:
    """What all steps are given."""

    recipe: Recipe
    out: Path
    layout: Layout | None = None
    anew: bool = False

    @property
    def embeddings(self) -> Path:
        return self.out / "embed" / "pool"

    def others(self, kind: str, name: str) -> Path:
        """Embeddings of a benchmark or seed set."""
        return self.out / "embed" / f"{kind}-{name}"

    def settings(self, section: str) -> dict[str, Any]:
        return dataclasses.asdict(getattr(self.recipe, section))

    def say(self, text: str) -> None:
        if process_group.current().is_main:
            print(text, flush=True)


def backbone_of(work: Work) -> Backbone:
    """The network of the recipe."""
    return run.load(work.recipe.weights)


def source_at(work: Work, path: str, channels: int, key: str) -> Source:
    """Images at a path, read as those of the run were that the weights are of."""
    own = run.read_options_of(work.recipe.weights)
    options = ReadOptions(value_range=own.value_range, max_pixels=own.max_pixels)
    return open_at(path, channels=channels, key=key, options=options)


def embedded(folder: Path) -> tuple[Pool, str]:
    """(the pool, a digest of its rows). Raises FileNotFoundError if `embed` was not run."""
    pool = open_pool(folder)
    return pool, digest(pool.index["digest"], pool.index["parts"])


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that was begun. result: None until it is finished."""

    folder: Path
    made: dict[str, Any]
    result: dict[str, Any] | None


def begin(folder: Path, settings: Any, inputs: Mapping[str, str], *, anew: bool = False) -> Step:
    """The step in `folder`, made if absent.

    settings: of the recipe, as JSON. inputs: digests of what it works on, by name. anew: remove
    what was made otherwise, in place of an error that says what differs.
    """
    made = json.loads(json.dumps({"settings": settings, "inputs": dict(inputs)}))
    path, group = folder / STEP, process_group.current()
    saved = group.settle(f"{folder.name} begun", _read(path) if path.exists() else None)
    if saved is not None and saved["made"] != made:
        if not anew:
            raise ValueError(
                f"{folder} was made otherwise ({_differing(saved['made'], made)}); give --anew to "
                "make it and what follows again, or another --out."
            )
        if group.is_main:
            shutil.rmtree(folder)
        saved = None
    if saved is None and group.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"made": made, "result": None})
    group.settle(f"{folder.name} there")
    return Step(folder, made, saved["result"] if saved else None)


def finish(step: Step, result: dict[str, Any]) -> dict[str, Any]:
    """Say that all of a step is on disk; result: what people and later steps read."""
    group = process_group.current()
    if group.is_main:
        write_json(step.folder / STEP, {"made": step.made, "result": result})
    group.settle(f"{step.folder.name} finished")
    return result


def result_of(folder: Path, command: str) -> dict[str, Any]:
    """What a finished step said. Raises ValueError that names the command for one that is not."""
    path = folder / STEP
    saved = _read(path) if path.exists() else {"result": None}
    if saved["result"] is None:
        raise ValueError(f"{folder} is not finished; run dinojax curate {command} first.")
    return saved["result"]


def read_levels(work: Work) -> list[Found]:
    """The hierarchy that the step kmeans made."""
    result_of(work.out / "kmeans", "kmeans")
    numbers_of = range(1, len(work.recipe.kmeans.clusters) + 1)
    return [read_level(work.out / "kmeans" / f"level{number}") for number in numbers_of]


def tree_of(levels: list[Found]) -> Tree:
    """The hierarchy as lists of children, to sample from."""
    return Tree(
        [np.asarray(level.assignment) for level in levels],
        [len(level.centers_KD) for level in levels],
        [np.asarray(level.distances) for level in levels],
    )


def digest(*parts: Any) -> str:
    """Of JSON values; changes with any of them."""
    told = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def digest_of_file(path: Path) -> str:
    """Of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    content = fields.read(path)
    fields.field(content, "made", dict, where=path)
    fields.field(content, "result", (dict, None), where=path)
    return content


def _differing(saved: dict, made: dict) -> str:
    found = []
    for name, value in made["settings"].items():
        before = saved.get("settings", {}).get(name)
        if before != value:
            found.append(f"{name}: {fields.shown(before)} there, {fields.shown(value)} now")
    for name, value in made["inputs"].items():
        if saved.get("inputs", {}).get(name) != value:
            found.append(f"other {name}")
    return "; ".join(found) or "settings that are no longer there"


def save(path: Path, array: np.ndarray) -> None:
    """A .npy file, whole or not at all."""
    with open_new(path) as file:
        np.save(file, array)
