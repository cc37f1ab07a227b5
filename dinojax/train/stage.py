"""One stage of a run: what is open for it in the run directory, and its history."""

import dataclasses
import datetime
import json
import logging
from pathlib import Path

from dinojax.checkpoint.manager import Checkpoints, open_checkpoints
from dinojax.config import Config, saved_stages
from dinojax.config.stages import Anchor, BoxDraw, SizeDraw
from dinojax.data.example import Source
from dinojax.data.metadata import Column
from dinojax.data.mixture import num_drawn, parts_of
from dinojax.data.quarantine import Quarantine
from dinojax.data.sources import open_source
from dinojax.distributed import process_group, subgroup
from dinojax.eval import suite
from dinojax.eval.contract import Evaluation, Setting, build_asked
from dinojax.eval.features import fixed_statistics
from dinojax.files.drafts import write_text
from dinojax.models import zoo
from dinojax.monitor import report as reports
from dinojax.runs.directory import environment
from dinojax.runs.early_stopping import Watch
from dinojax.sharding import mesh
from dinojax.sharding.batch import loaded_rows
from dinojax.sharding.mesh import Layout
from dinojax.train import program, text_program
from dinojax.train.networks import open_columns
from dinojax.train.program import Program
from dinojax.train.state import State
from dinojax.viz.probe import Probe

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Every:
    """When the things happen that happen at boundaries."""

    log: int  # steps
    checkpoint: int  # steps
    minutes: float | None  # between checkpoints, whichever comes first; None = steps alone
    probe: int | None  # steps between looks at the probe; None = never
    evaluations: dict[str, int | None]  # steps of each that was asked for, by its name in the table

    @property
    def measuring(self) -> set[int]:
        """Steps between all that evaluates the ema."""
        return {every for every in (self.probe, *self.evaluations.values()) if every is not None}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory and all that the program needs to fill it with one stage."""

    directory: Path
    config: Config
    programs: tuple[Program, ...]  # one per size that steps may have
    draw: SizeDraw  # which of them a step takes
    anchor: Anchor | None  # of a frozen gram network
    source: Source
    loader_options: dict
    evaluations: dict[str, Evaluation]  # name in the table -> what measures the ema
    checkpoints: Checkpoints
    num_steps: int
    every: Every
    matmul: str  # precision of float32 products
    pictures: bool
    probe: Probe | None  # the images whose features are watched
    tensorboard: bool
    watch: Watch
    hang: dict  # options of the watchdog
    metadata: dict[str, Column]  # of guides, by the images' ids
    processes: process_group.ProcessGroup  # the processes that work on it; the first of them writes

    @property
    def program(self) -> Program:
        """The program of the plain sizes; all share parameters, state and evaluation."""
        return self.programs[0]

    @property
    def stage(self) -> str:
        return self.config.stage

    @property
    def steps_before(self) -> int:
        """Steps of the run's earlier stages."""
        return self.config.start.steps_before

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
        if self.program.teacher_forward is not None:
            meta["teacher"] = self.program.teacher_forward.teacher.fingerprint
        self.checkpoints.save(state, step=step, meta=meta)

    def num_drawn(self, step: int) -> dict[str, int]:
        """Images drawn from each source of a mixture in the first `step` steps."""
        size, seed = self.config.batch_size, self.program.seed
        return num_drawn(self.source, seed=seed, position=step * size, batch_size=size)

    def note(self, **content) -> None:
        """A line of resumes.jsonl: when the run started or stopped, where, and why."""
        if not self.processes.is_main:
            return
        if len(saved_stages(self.directory)) > 1:
            content = {"stage": self.stage, **content}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        path = self.directory / "resumes.jsonl"
        before = path.read_text() if path.exists() else ""
        whole = before[: before.rfind("\n") + 1]  # a killed process may leave half a line
        write_text(path, whole + json.dumps({"time": now, **content}) + "\n")

    def note_stop(self, error: Exception) -> None:
        """The last line of a run that ends before its time, and the report that shows it."""
        self.note(event="stop", reason=f"{type(error).__name__}: {error}".splitlines()[0])
        if self.processes.is_main:
            reports.refresh(self.directory)


def open_run(
    config: Config,
    directory: Path,
    source: Source,
    programs: tuple[Program, ...] | None = None,
    *,
    layout: Layout | None = None,
) -> Run:
    """Programs, evaluation and checkpoints of a stage; nothing is computed yet.

    programs: made already, on a part of the devices; None = of the config alone. layout: of the
    devices that batches go to, None = those of the programs. It belongs to the processes that act
    together (process_group.acting); one that is none of them only looks.
    """
    processes, hang = process_group.current(), config.hang
    columns = open_columns(config, source)
    if programs is None:
        own = mesh.from_section(config.mesh)
        programs = program.build_sizes(config, own, columns=columns)
    draw = SizeDraw(programs[0].seed, config.crops.more_rates)
    rows = loaded_rows(layout or programs[0].layout, config.batch_size)
    frozen = config.gram.enabled and config.gram.teacher == "frozen"
    return Run(
        directory=directory,
        config=config,
        programs=programs,
        draw=draw,
        anchor=zoo.fill(Anchor, config.gram) if frozen else None,
        source=source,
        loader_options=_loader_options(config, programs, draw)
        | dict(
            quarantine=_quarantine(config, directory, source, processes.index),
            rows=rows,
            num_hosts=config.batch_size // len(rows),
            captions=text_program.caption_reader(config, programs[0].seed),
        ),
        evaluations=build_asked(
            Setting(
                config,
                programs[0].eval_transform,
                patch_size=config.model.patch_size,
                images=lambda: source,
                directory=directory,
            )
        ),
        checkpoints=_checkpoints(config, directory, processes),
        num_steps=config.num_steps,
        every=_every(config),
        matmul=config.precision.matmul,
        pictures=config.log.pictures,
        probe=_probe(config, directory, programs[0], source) if config.log.pictures else None,
        tensorboard=config.log.tensorboard,
        watch=Watch(config.until, config.knn, values=config.values()),
        hang=dict(factor=hang.factor, seconds=hang.seconds, minutes=hang.minutes),
        metadata=columns,
        processes=processes,
    )


def _loader_options(config: Config, programs: tuple[Program, ...], draw: SizeDraw) -> dict:
    """What the loader is told whoever loads."""
    data, boxes = config.data, tuple(built.batch_shape[1] for built in programs)
    return dict(
        batch_size=config.batch_size,
        box_size=boxes[0] if len(set(boxes)) == 1 else BoxDraw(draw, boxes),
        seed=programs[0].seed,
        num_workers=data.num_workers,
        num_threads=data.num_threads,
        prefetch=data.prefetch,
    )


def _quarantine(config: Config, directory: Path, source: Source, host: int) -> Quarantine:
    share = config.data.max_bad_share
    return Quarantine(directory, max_share=share, parts=parts_of(source), host=host)


def _every(config: Config) -> Every:
    asked = {n: row for n, row in suite.SUITE.items() if row.is_asked(config.values())}
    return Every(
        log=config.log.every,
        checkpoint=config.checkpoint.every,
        minutes=config.checkpoint.minutes,
        probe=config.knn.every,
        evaluations={name: getattr(config, row.section).every for name, row in asked.items()},
    )


def _checkpoints(
    config: Config, directory: Path, processes: process_group.ProcessGroup
) -> Checkpoints:
    if processes.has_me:
        return open_checkpoints(config, directory)
    with process_group.acting(subgroup.of(processes, (processes.index,))):
        return open_checkpoints(config, directory, read_only=True)


def _probe(config: Config, directory: Path, built: Program, source: Source) -> Probe:
    return Probe(
        source,
        built.eval_transform,
        directory / "pictures",
        patch_size=config.model.patch_size,
        max_bad_share=config.data.max_bad_share,
        **dict(zip(("mean", "std"), fixed_statistics(config.image), strict=True)),
    )


def open_train_source(config: Config) -> Source:
    """The images of a run. Raises ValueError or FileNotFoundError if there are none to read."""
    if config.text.enabled:
        return text_program.open_pairs(config)
    return open_source(config.data, channels=config.image.channels)
