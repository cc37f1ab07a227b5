"""A run directory: who it belongs to, what is open in it, and its history."""

import dataclasses
import datetime
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Collection
from pathlib import Path

import jax

from dinojax import config as configs
from dinojax import mesh, program
from dinojax.checkpoint import Checkpoints
from dinojax.config import Config, ConfigError
from dinojax.data.example import Source
from dinojax.data.mixture import num_drawn, parts_of
from dinojax.data.quarantine import Quarantine
from dinojax.data.sources import open_knn_sources, open_source
from dinojax.eval.online import Knn, build_knn
from dinojax.program import Program
from dinojax.state import State
from dinojax.viz import report as reports
from dinojax.viz.probe import Probe

log = logging.getLogger(__name__)

# Keys that may change when a run continues: they alter speed or reporting, never the result.
FREE_KEYS = (
    "mesh.",
    "accumulate",
    "data.num_",
    "data.prefetch",
    "data.max_bad_share",
    "checkpoint.",
    "log.",
    "knn.",
)
PACKAGES = ("dinojax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
ACCEPT_DATA, ACCEPT_CONFIG = "new-data", "new-config"  # as the flags of `dinojax train` say it


@dataclasses.dataclass(frozen=True)
class Every:
    """When the things happen that happen at boundaries."""

    log: int  # steps
    checkpoint: int  # steps
    minutes: float | None  # between checkpoints, whichever comes first; None = steps alone
    knn: int | None  # steps; None = never


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory and all that the program needs to fill it."""

    directory: Path
    config: Config
    program: Program
    source: Source
    loader_options: dict
    knn: Knn | None
    checkpoints: Checkpoints
    num_steps: int
    every: Every
    pictures: bool
    probe: Probe | None  # the images whose features are watched
    tensorboard: bool

    def save(self, state: State, *, step: int, position: int, seconds: float) -> None:
        """Start a checkpoint. position: images consumed; seconds: of training so far."""
        meta = {
            "position": position,
            "seconds": seconds,
            "fingerprint": self.source.fingerprint,
            "num_images": len(self.source),
            "config": self.config.to_dict(),
            "devices": self.program.layout.mesh.size,
            "versions": environment()["versions"],
        }
        self.checkpoints.save(state, step=step, meta=meta)
        reports.refresh(self.directory)

    def num_drawn(self, step: int) -> dict[str, int]:
        """Images drawn from each source of a mixture in the first `step` steps."""
        size, seed = self.config.batch_size, self.config.seed
        return num_drawn(self.source, seed=seed, position=step * size, batch_size=size)

    def note(self, **content) -> None:
        """A line of resumes.jsonl: when the run started or stopped, where, and why."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        path = self.directory / "resumes.jsonl"
        before = path.read_text() if path.exists() else ""
        whole = before[: before.rfind("\n") + 1]  # a killed process may leave half a line
        draft = path.with_name(path.name + ".draft")
        draft.write_text(whole + json.dumps({"time": now, **content}) + "\n")
        os.replace(draft, path)

    def note_stop(self, error: Exception) -> None:
        """The last line of a run that ends before its time, and the report that shows it."""
        self.note(event="stop", reason=f"{type(error).__name__}: {error}".splitlines()[0])
        reports.refresh(self.directory)


def open_run(config: Config, directory: Path, layout: mesh.Layout, source: Source) -> Run:
    """Program, evaluation and checkpoints of a run; nothing is computed yet."""
    if config.gram.enabled and config.gram.teacher == "frozen":
        raise ConfigError(
            "gram.teacher=frozen needs an earlier ema to hold on to, and a run of one stage has "
            "none; use gram.teacher=ema (each step's own teacher), or gram.enabled=False."
        )
    data, channels = config.data, config.image.channels
    sources = open_knn_sources(data, config.knn, channels=channels)
    built = program.build(config, layout)
    return Run(
        directory=directory,
        config=config,
        program=built,
        source=source,
        loader_options=dict(
            batch_size=config.batch_size,
            box_size=data.box_size,
            seed=config.seed,
            num_workers=data.num_workers,
            num_threads=data.num_threads,
            prefetch=data.prefetch,
            quarantine=Quarantine(
                directory,
                max_share=data.max_bad_share,
                parts=parts_of(source),
                host=jax.process_index(),
            ),
        ),
        knn=build_knn(sources, image=config.image, knn=config.knn) if sources else None,
        checkpoints=open_checkpoints(config, directory),
        num_steps=config.num_steps,
        every=Every(
            log=config.log.every,
            checkpoint=config.checkpoint.every,
            minutes=config.checkpoint.minutes,
            knn=config.knn.every,
        ),
        pictures=config.log.pictures,
        probe=_probe(config, directory, built, source) if config.log.pictures else None,
        tensorboard=config.log.tensorboard,
    )


def _probe(config: Config, directory: Path, built: Program, source: Source) -> Probe:
    return Probe(
        source,
        built.eval_transform,
        directory / "pictures",
        patch_size=config.model.patch_size,
    )


def open_train_source(config: Config) -> Source:
    """The images of a run. Raises ValueError or FileNotFoundError if there are none to read."""
    return open_source(config.data, channels=config.image.channels)


def open_checkpoints(config: Config, directory: Path, *, read_only=False) -> Checkpoints:
    return Checkpoints(
        directory / "checkpoints" / config.stage,
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
        read_only=read_only,
    )


def claim(directory: Path, config: Config, accept: Collection[str] = ()) -> None:
    """Make the run directory, or make sure that it belongs to this config.

    A directory in which nothing was trained yet changes its config freely.
    Raises ConfigError if it belongs to another config or holds something else.
    """
    path = directory / "config.json"
    if path.exists() and _has_results(directory) and ACCEPT_CONFIG not in accept:
        found = configs.diff(configs.read(path), config)
        changed = [change for change in found if not change[0].startswith(FREE_KEYS)]
        if changed:
            lines = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
            raise ConfigError(
                f"{directory} belongs to another config:\n{lines}\n"
                "Use another --run, the config it began with, or --accept-new-config."
            )
    elif not path.exists() and directory.exists() and _foreign(directory):
        raise ConfigError(f"{directory} is not empty and no run directory; use another --run.")
    directory.mkdir(parents=True, exist_ok=True)
    draft = directory / "config.json.draft"
    configs.save(config, draft)
    os.replace(draft, path)
    write_json(directory / "env.json", environment())


def _foreign(directory: Path) -> bool:
    """Whether it holds more than the draft that a killed process was writing."""
    return any(not entry.name.endswith(".draft") for entry in directory.iterdir())


def _has_results(directory: Path) -> bool:
    metrics = directory / "metrics.jsonl"
    logged = metrics.exists() and metrics.stat().st_size > 0
    return logged or any(directory.glob("checkpoints/*/*"))


def check_data(meta: dict, source: Source, accept: Collection[str] = ()) -> None:
    """Raise ConfigError if a checkpoint's images are not those of the source."""
    if meta["fingerprint"] == source.fingerprint:
        return
    counts = f"{meta['num_images']:,} images then, {len(source):,} now"
    if ACCEPT_DATA not in accept:
        raise ConfigError(
            f"The images changed since the checkpoint was saved ({counts}), so their order "
            "would differ. Restore them, start another --run, or pass --accept-new-data."
        )
    log.warning("continuing on changed images (%s): from here on their order differs", counts)


def environment() -> dict:
    """Versions, devices and commit, as far as they can be told."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    found = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    return {
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES if p in found},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
        "num_processes": jax.process_count(),
        "commit": commit.stdout.strip() or None,
    }


def write_json(path: Path, content: dict) -> None:
    """The file, whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(draft, path)
