"""Program 1: trains one recipe on one mesh, stage after stage.

main -> train -> Trainer.step -> Step -> jax.grad(loss), the same for every stage.

What a stage is and does after a step is in trainer.py; here are stages, images and stops.
"""

import contextlib
import functools
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from dinojax.config import Config, pick
from dinojax.data.loader import Batch, Loader, closed_in_time
from dinojax.distributed import process_group
from dinojax.distributed.interrupt import (
    Alarm,
    Asked,
    Interrupt,
    Interrupted,
    within,
)
from dinojax.monitor.autopsy import NonFiniteError
from dinojax.monitor.compilation import Compiles
from dinojax.monitor.watchdog import Watchdog
from dinojax.runs.directory import as_stages, claim, enter, is_finished, name_of, occupy
from dinojax.runs.scalars import DataWait, RunLog
from dinojax.train import preflight
from dinojax.train.checks import check_start, tell_of
from dinojax.train.periodic import ProgressLine, energy_meter
from dinojax.train.stage import Run, open_run, open_train_source
from dinojax.train.state import State
from dinojax.train.stops import lost, unsaved
from dinojax.train.teacher_forward import SharedTeacher
from dinojax.train.trainer import Trainer

log = logging.getLogger(__name__)


def train(
    config: Config | Sequence[Config],
    run_dir: str | Path,
    *,
    accept: Collection[str] = (),
    stage: str | None = None,
    max_wall: float | None = None,
) -> State:
    """Train every stage to its end, from the last checkpoint in `run_dir` if it has one.

    config: of the only stage, or of each in order. A stage that is done is not run again. accept:
    "new-data", "new-config": continue although images or config changed. stage: run this one only.
    max_wall: seconds within which to save and end, as a signal does.
    Raises ConfigError if the directory belongs to another config, ValueError or FileNotFoundError
    for data and sizes that do not work, all before any device work; Interrupted after a signal.
    """
    directory, stages = Path(run_dir), as_stages(config)
    wanted = stages if stage is None else [pick(stages, stage)]
    with _opened(directory, stages, wanted, accept, max_wall) as (runs, interrupt):
        for run in runs:
            state: Any = None  # gives back the memory of the stage before
            _enter(run, stages)
            with _at_work(run, interrupt, accept, is_last=run is runs[-1]) as (trainer, batches):
                for host_batch in batches:
                    trainer.step(host_batch)
            state = trainer.state
            del trainer  # holds it as well
    return state


@contextlib.contextmanager
def _opened(
    directory: Path,
    stages: Sequence[Config],
    wanted: Sequence[Config],
    accept: Collection[str],
    max_wall: float | None,
) -> Iterator[tuple[list[Run], Interrupt]]:
    """The run directory in this process's hands, and what stages of it are to do, all checked."""
    sources = {name_of(c): open_train_source(c) for c in wanted}
    processes = process_group.current()
    preflight.check_same(processes, wanted, sources, directory)
    with contextlib.ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(occupy(directory))
        preflight.check_storage(processes, directory)
        if not processes.is_main:
            stack.enter_context(occupy(directory, index=processes.index))
        stack.enter_context(
            RunLog(directory / ("log.txt" if processes.is_main else f"log.{processes.index}.txt"))
        )
        if processes.count > 1:
            jax.devices()  # made by all processes together, which claim asks in one alone
        if processes.is_main:
            claim(directory, stages, accept)
        finished = processes.settle("finished stages", [is_finished(directory, c) for c in wanted])
        todo = [c for c, done in zip(wanted, finished, strict=True) if not done] or wanted[-1:]
        for done in wanted[: len(wanted) - len(todo)]:
            log.info("stage %s is done", name_of(done))
        several = processes if processes.count > 1 else None
        interrupt = stack.enter_context(Interrupt(processes=several))
        stack.enter_context(within(max_wall, interrupt))
        preflight.check_devices(processes, [c.expect for c in todo])
        runs = [open_run(c, directory, sources[name_of(c)]) for c in todo]
        for run in runs:
            stack.callback(run.checkpoints.close)
            check_start(run)
        others = [s for made in runs[0].evaluations.values() for s in made.sources]
        tell_of(runs[0].source, runs[0].config.batch_size, *others)
        yield runs, interrupt


def _enter(run: Run, stages: Sequence[Config]) -> None:
    """From here on the run is at this stage."""
    if len(stages) == 1:
        return
    if process_group.current().is_main:
        enter(run.directory, run.config, stages)
    number = 1 + [name_of(c) for c in stages].index(run.stage)
    log.info("stage %s, %d of %d", run.stage, number, len(stages))


@contextlib.contextmanager
def _at_work(
    run: Run, interrupt: Interrupt, accept: Collection[str], *, is_last: bool
) -> Iterator[tuple[Trainer, Iterator[Batch]]]:
    """A stage from its last checkpoint, or its first state, to its end: its trainer and images.

    Raises Interrupted, after saving, when a signal asks the run to stop; so NonFiniteError, Alarm.
    """
    processes = process_group.current()
    processes.last_words = functools.partial(lost, run.directory, [run])
    last_words = functools.partial(unsaved, [run])
    watchdog = Watchdog(processes.report_stall, **run.hang)
    with contextlib.ExitStack() as stack:
        compiles = stack.enter_context(Compiles())
        with interrupt.unsaved(last_words):
            trainer = Trainer(
                run,
                interrupt=interrupt,
                watchdog=watchdog,
                compiles=compiles,
                teacher=_teacher(run),
                accept=accept,
            )
        stack.callback(trainer.close)
        loader = Loader(run.source, **run.loader_options, start=trainer.position)
        stack.enter_context(closed_in_time(loader))
        devices = list(run.program.layout.mesh.devices.flat)
        stack.enter_context(energy_meter(run.directory, devices))
        stack.enter_context(watchdog)
        with _stops_noted(trainer):
            trainer.start()
            with interrupt.ending(last_words):
                trainer.compile()
                processes.settle("compiled", seconds=60.0 * run.hang["minutes"])
            trainer.evaluate()
            yield trainer, _batches(trainer, loader, interrupt, watchdog, compiles)
            trainer.end()
    if is_last:
        try:
            with interrupt.ending(last_words):
                trainer.finish()
        except Asked as asked:
            raise Interrupted(str(asked), trainer.number) from None


def _batches(
    trainer: Trainer, loader: Loader, interrupt: Interrupt, watchdog: Watchdog, compiles: Compiles
) -> Iterator[Batch]:
    """The images of every step to come; once it was taken, what is due after it."""
    batches, progress = DataWait(loader), ProgressLine(trainer.run)
    while not trainer.is_over:
        with interrupt.breakable():
            host_batch = next(batches)
        yield host_batch
        asked = "save" in interrupt.due
        interrupt.due.discard("save")
        trainer.after_step(waited=batches.seconds, save=asked)
        progress.show(trainer.number, {trainer.name: trainer.last_row})
        watchdog.beat()
        compiles.step_ended(trainer.number)
        interrupt.check()


@contextlib.contextmanager
def _stops_noted(trainer: Trainer) -> Iterator[None]:
    """Whatever ends the stage is written down; what leaves its state whole is saved before."""
    try:
        try:
            yield
        except Asked as asked:
            trainer.save_now()
            raise Interrupted(str(asked), trainer.number) from None
        except (NonFiniteError, Alarm):  # the weights are those before the bad steps
            trainer.save_now()
            raise
    except Exception as error:
        log.error("%s", error)
        with contextlib.suppress(OSError):  # a full disk takes no notes
            trainer.run.note_stop(error)
        raise


def _teacher(run: Run) -> SharedTeacher | None:
    """The teacher of a distillation, loaded and compiled on the student's devices."""
    forwards = [built.teacher_forward for built in run.programs if built.teacher_forward]
    if not forwards:
        return None
    with jax.default_matmul_precision(run.matmul):
        return SharedTeacher(forwards, forwards[0].layout.sharding("image"))
