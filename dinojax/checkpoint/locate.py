"""What a path of weights names: a checkpoint of some run, or a file."""

import contextlib
import dataclasses
from pathlib import Path

from dinojax import config as configs
from dinojax.checkpoint.manager import COMMITTED, Checkpoints
from dinojax.config import ConfigError
from dinojax.files.local import is_url


@dataclasses.dataclass(frozen=True)
class Place:
    """Where weights are: a checkpoint of some run, or a file (then step is None)."""

    path: Path  # RUN/checkpoints/STAGE, or the file
    step: int | None

    def __str__(self) -> str:
        return str(self.path if self.step is None else self.path / str(self.step))


def find(path: str, key: str) -> Place:
    """What a path names: a run (its newest checkpoint), a stage or step of one, or a file.

    key: of the config, for the message of the ConfigError where there is nothing.
    """
    if is_url(path):
        raise ConfigError(f"{key}={path}: a URL does not work here; give a path of this host.")
    where = Path(path)
    if not where.exists():
        raise ConfigError(
            f"{key}={path} does not exist; give a run directory, RUN/checkpoints/STAGE[/STEP], or "
            "a file or folder of weights."
        )
    if is_run(where):
        found = configs.read(where)
        where = where / "checkpoints" / found.stage
    step: int | None = None
    if where.name.isdigit() and (where / COMMITTED).exists():
        where, step = where.parent, int(where.name)
    if where.parent.name != "checkpoints":
        return Place(where, None)
    with contextlib.closing(Checkpoints.reader(where)) as checkpoints:
        return Place(where, checkpoints.restore_meta(step)["step"])


def is_run(path: str | Path) -> bool:
    """Whether a path is a directory that `dinojax train` filled."""
    return (Path(path) / "checkpoints").is_dir() and (Path(path) / "config.json").is_file()
