"""The files of a run directory that say who it belongs to, and which of its stages are done."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from dinojax import config as configs
from dinojax.config import Config, ConfigError, saved
from dinojax.eval import suite
from dinojax.files.drafts import SUFFIX, refuse_other, write_json
from dinojax.files.local import refuse_url
from dinojax.runs import finished, lock
from dinojax.runs.scalars import read_metrics

# Keys that may change when a run continues: they alter speed or reporting, never the result.
FREE_KEYS = (
    "mesh.",
    "accumulate",
    "data.num_",
    "data.prefetch",
    "data.max_bad_share",
    "checkpoint.",
    "log.",
    *(f"{section}." for section in suite.sections()),  # of evaluations
    "distill.teacher",  # the path; what it holds is compared with what it held
    "distill.strategy",
    "distill.place",
    "distill.share",
    "expect.",
    "hang.",
)
PACKAGES = ("dinojax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
HOSTS = "hosts.json"  # written by process 0 of a run of several
# Files that a run opens where they are; all others are replaced by new ones.
APPENDED = ("lock", "lock.*", "log*.txt", "*.jsonl", "stacks.*.txt", "eval/*.jsonl")
ACCEPT_DATA, ACCEPT_CONFIG = "new-data", "new-config"  # as the flags of `dinojax train` say it


def occupy(directory: Path, *, index: int = 0) -> contextlib.AbstractContextManager[None]:
    """Make the directory and hold its lock; raises ConfigError if it holds something else.

    index: of this process among those of the run; each has a lock of its own. Asks for no device,
    which the process that holds the lock may have taken all of.
    """
    refuse_url(directory, "--run")
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"{directory} is no folder; use another --run.")
    refuse_links(directory)
    if index == 0 and directory.exists():
        _refuse_foreign(directory)
    directory.mkdir(parents=True, exist_ok=True)
    return lock.held(directory, process=index)


def claim(
    directory: Path, configs_of_stages: Config | Sequence[Config], accept: Collection[str] = ()
) -> None:
    """Write config.json and env.json, or make sure that the run belongs to these configs.

    One per stage; a stage of which nothing was trained yet changes its config freely.
    Raises ConfigError if the directory belongs to another config.
    """
    stages = as_stages(configs_of_stages)
    path = directory / "config.json"
    if path.exists() and ACCEPT_CONFIG not in accept:
        _refuse_other(directory, stages)
    directory.mkdir(parents=True, exist_ok=True)
    enter(directory, next((c for c in stages if not is_finished(directory, c)), stages[-1]), stages)
    (directory / "stages").mkdir(exist_ok=True)
    for config in stages:
        path, over = finished.stage_file(directory, name_of(config)), last_step(directory, config)
        _save(config, path, stages, finished=over)
    write_json(directory / "env.json", environment())


def enter(directory: Path, config: Config, stages: Sequence[Config]) -> None:
    """From here on the run is at this stage: its config is the one in config.json."""
    _save(config, directory / "config.json", stages)


def as_stages(config: Config | Sequence[Config]) -> list[Config]:
    return [config] if isinstance(config, Config) else list(config)


def name_of(config: Config) -> str:
    return config.values()["stage"]  # not a read


def is_finished(directory: Path, config: Config) -> bool:
    """Whether a stage is over, and its last checkpoint stands."""
    return last_step(directory, config) is not None


def last_step(directory: Path, config: Config) -> int | None:
    """The step that a stage ended with; None if it has not, or its checkpoint is not there."""
    return finished.last_step(directory, config.values())


def stage_before(directory: Path, stage: str) -> str | None:
    """The stage that comes before another in a run; None for the first."""
    names = configs.saved_stages(directory)
    number = names.index(stage)
    return names[number - 1] if number else None


def _folder(directory: Path, stage: str) -> Path:
    return directory / "checkpoints" / stage


def _save(config: Config, path: Path, stages: Sequence[Config], **more: Any) -> None:
    configs.save(config, path, stages=[name_of(stage) for stage in stages], **more)


def _refuse_other(directory: Path, stages: Sequence[Config]) -> None:
    """Raise ConfigError if a stage that was trained here is not the recipe's."""
    wanted = {name_of(config): config for config in stages}
    # A run of one stage whose name the recipe has not was given another name, or is another's.
    saved = configs.saved_stages(directory)
    if len(saved) == len(wanted) == 1:
        wanted = dict.fromkeys(saved, stages[0])
    for name in saved:
        if not _has_results(directory, name, is_first=name == saved[0]):
            continue
        if name not in wanted:
            raise ConfigError(
                f"{directory} holds a stage {name}, which the recipe does not have (it has "
                f"{', '.join(wanted)}); use another --run, or the recipe it began with."
            )
        found = configs.diff(configs.read(directory, stage=name), wanted[name])
        changed = [change for change in found if not change[0].startswith(FREE_KEYS)]
        if changed:
            where = f" in stage {name}" if len(stages) > 1 else ""
            lines = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
            raise ConfigError(
                f"{directory} belongs to another config{where}, by its config.json:\n{lines}\n"
                "Use another --run, the config it began with, or --accept-new-config."
            )


def _refuse_foreign(directory: Path) -> None:
    """Raise ConfigError for a folder of something else, before anything is written to it."""
    if not os.path.lexists(directory / saved.FILE):
        if _foreign(directory):
            raise ConfigError(
                f"{directory} is not empty and no run directory, for it has no {saved.FILE}; use "
                "another --run."
            )
        return
    try:
        names = configs.saved_stages(directory)
        for name in names if len(names) > 1 else ():
            saved.read(directory / "stages" / f"{name}.json")
    except (ConfigError, FileNotFoundError) as error:
        raise ConfigError(f"{error} Use another --run.") from error


def refuse_links(directory: Path) -> None:
    """Raise NotOurs for a link among the files that a run appends to."""
    for pattern in APPENDED:
        for path in sorted(directory.glob(pattern)):
            refuse_other(path)


def _foreign(directory: Path) -> bool:
    """Whether it holds more than a killed process leaves before it has written config.json."""
    names = [entry.name for entry in directory.iterdir()]
    ours = (lock.FILE, HOSTS.split(".")[0])
    return any(not (n.endswith(SUFFIX) or n.split(".")[0] in ours) for n in names)


def _has_results(directory: Path, stage: str, *, is_first: bool) -> bool:
    if any(_folder(directory, stage).glob("*")):
        return True
    unnamed = stage if is_first else None
    rows = read_metrics(directory / "metrics.jsonl")
    return any(row.get("stage", unnamed) == stage for row in rows)


def environment() -> dict:
    """Versions, devices and commit, as far as they can be told."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "versions": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
        "num_processes": jax.process_count(),
        "commit": commit.stdout.strip() or None,
    }


def package_versions() -> dict[str, str]:
    """Of the packages that results may depend on, those that are installed."""
    found = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    return {p: importlib.metadata.version(p) for p in PACKAGES if p in found}
