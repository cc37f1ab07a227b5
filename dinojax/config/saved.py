"""The config.json of a run: what `config.save` wrote, or whatever has come to stand there since."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinojax.config import rules
from dinojax.config.overrides import typed
from dinojax.config.recipe import ConfigError, flat, is_packaged
from dinojax.configs import base
from dinojax.data import fields
from dinojax.files.drafts import write_json

FILE = "config.json"
FAMILY = "family.json"  # of the directory that holds those of students


class Saved(NamedTuple):
    """A saved config: dotted keys with values in the types of configs/keys/."""

    values: dict[str, Any]  # of every declared key; where the file lacks one, its default
    strange: dict[str, Any]  # values of keys that are not declared (any more)
    lacking: list[str]  # keys declared since
    sources: dict[str, str]  # key -> who set it
    recipe: str
    stages: list[str]  # names of all stages of the run


def write(
    path: str | Path,
    values: dict,
    sources: dict,
    recipe: str,
    stages: Sequence[str],
    **more: Any,
) -> None:
    """config.json of nested values; stages: where the run has several; more: of a stage's file."""
    content = {
        "config": values,
        "sources": sources,
        "recipe": recipe,
        **({"stages": list(stages)} if len(stages) > 1 else {}),
        **more,
    }
    write_json(path, content)


def read(path: str | Path) -> Saved:
    """What a config.json holds.

    Raises FileNotFoundError without one, and ConfigError, with file and key, for anything that
    `dinojax train` does not write.
    """
    try:
        return _read(Path(path))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{error} It is no config of a run of `dinojax train`.") from error


def folder_of(recipe: str | Path) -> Path | None:
    """The run directory, of `train` or `distill`, that stands where a recipe may; else None.

    A bare name of a packaged recipe is that recipe, also beside a folder of that name.
    """
    folder = Path(recipe)
    if is_packaged(recipe) or not any((folder / name).is_file() for name in (FILE, FAMILY)):
        return None
    return folder


def family(folder: Path) -> tuple[str, ...]:
    """Names of the students of a directory of `dinojax distill`; empty for any other run."""
    path = folder / FAMILY
    return (
        tuple(fields.field(fields.read(path), "students", [str], where=path))
        if path.is_file()
        else ()
    )


def _refuse_other_shape(found: dict, default: dict, path: Path) -> None:
    """A value where a section is declared, or a section where a value is."""
    for key, value in found.items():
        if key in default:
            continue
        if any(other.startswith(f"{key}.") for other in default):
            raise ConfigError(
                f"{path}: {key} is {fields.shown(value)}; expected a section of keys."
            )
        parts = key.split(".")
        for number in range(1, len(parts)):
            if (above := ".".join(parts[:number])) in default:
                raise ConfigError(f"{path}: {above} is a section; expected a value.")


def _read(path: Path) -> Saved:
    content = fields.read(path)
    tree = fields.field(content, "config", dict, where=path)
    found, default = flat(tree), flat(base.get_config())
    _refuse_other_shape(found, default, path)
    known = {k: typed(k, v, default, place=f"{path}: ") for k, v in found.items() if k in default}
    stage = fields.field(tree, "stage", str, where=path)
    stages = fields.field(content, "stages", [str], where=path, default=[stage])
    if bad := [name for name in (stage, *stages) if not re.fullmatch(rules.STAGE, name)]:
        raise ConfigError(f"{path}: {fields.shown(bad[0])} is no name of a stage.")
    if stage not in stages:
        raise ConfigError(f"{path}: the stage {stage} is none of stages={stages}.")
    values = default | known
    if broken := rules.of_single_keys(values):
        raise ConfigError(f"{path}: " + "\n  ".join(broken))
    sources = fields.field(content, "sources", {str: str}, where=path)
    return Saved(
        values=values,
        strange={key: value for key, value in found.items() if key not in default},
        lacking=sorted(default.keys() - known.keys()),
        sources=dict.fromkeys(default, "base") | sources,
        recipe=fields.field(content, "recipe", str, where=path),
        stages=stages,
    )
