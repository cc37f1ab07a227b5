"""Program 1: trains one recipe on one mesh, stage after stage.

main -> train -> _train -> _loop -> Step -> jax.grad(loss), the same for every stage.

The loop dispatches a step, then fetches the numbers of the one before: the devices stay busy and
at most one step is in flight.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from dinojax.config import Config, pick
from dinojax.data.loader import Loader, closed_in_time
from dinojax.distributed import process_group
from dinojax.distributed.interrupt import (
    NOT_SAVED,
    SAVED,
    Alarm,
    Asked,
    Interrupt,
    Interrupted,
    stoppable,
    within,
)
from dinojax.monitor.autopsy import Autopsy, NonFiniteError
from dinojax.monitor.compilation import Compiles
from dinojax.monitor.energy import EnergyMeter
from dinojax.monitor.watchdog import Watchdog
from dinojax.runs.directory import as_stages, claim, enter, is_finished, name_of, occupy
from dinojax.runs.scalars import DataWait, RunLog
from dinojax.runs.tensorboard import EventLog
from dinojax.sharding import mesh
from dinojax.sharding.batch import global_batch
from dinojax.train import finish, initialize, preflight
from dinojax.train.periodic import Clock, Saves
from dinojax.train.periodic import Report as _Report
from dinojax.train.periodic import evaluate as _evaluate
from dinojax.train.periodic import evaluated as _evaluated
from dinojax.train.program import Program
from dinojax.train.stage import (
    Run,
    check_data,
    check_start,
    check_teacher,
    lost,
    open_metrics,
    open_run,
    open_train_source,
    tell_of,
)
from dinojax.train.state import State
from dinojax.train.teacher_forward import OwnTeacher

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
        knn = runs[0].knn
        tell_of(runs[0].source, runs[0].config.batch_size, *((knn.bank, knn.query) if knn else ()))
        for run in runs:
            if len(stages) > 1:
                if processes.is_main:
                    enter(directory, run.config, stages)
                log.info("stage %s, %d of %d", run.stage, 1 + _number(run, stages), len(stages))
            state: Any = None  # gives back the memory of the stage before
            with mesh.use(run.program.layout), jax.default_matmul_precision(run.matmul):
                state = _train(run, interrupt, accept, is_last=run is runs[-1])
    return state


def _number(run: Run, stages: Sequence[Config]) -> int:
    return [name_of(c) for c in stages].index(run.stage)


def _train(run: Run, interrupt: Interrupt, accept: Collection[str], *, is_last: bool) -> State:
    """The state of the stage's last checkpoint, or its first one, taken to the end."""
    processes = process_group.current()
    begin = processes.settle("checkpoint", run.checkpoints.latest())
    with interrupt.unsaved(functools.partial(_last_words, run, begin or 0)):
        state, meta = _begin(run, begin, accept)
    run.note(event="start", step=begin or 0, devices=run.program.layout.mesh.size)
    loader = Loader(run.source, **run.loader_options, start=meta["position"])
    metrics = open_metrics(run, begin)
    clock = Clock(meta["seconds"])
    devices = list(run.program.layout.mesh.devices.flat)
    kinds = [device.device_kind for device in devices]
    here = [d.local_hardware_id for d in devices if d.process_index == jax.process_index()]
    with closed_in_time(loader), metrics, contextlib.ExitStack() as stack:
        if processes.is_main:  # the other hosts' energy is taken to be alike
            stack.enter_context(EnergyMeter(kinds, run.directory / "energy.json", gpus=here))
        if run.tensorboard and processes.is_main:
            events = EventLog(
                run.directory / "tensorboard",
                resume_step=begin,
                steps_before=run.steps_before,
            )
            metrics.mirror = events
            stack.callback(events.close)
        processes.last_words = functools.partial(lost, run.directory, [run])
        report = _Report(
            run,
            metrics=metrics,
            batches=DataWait(loader),
            autopsy=Autopsy(run.directory, seed=run.program.seed, steps_before=run.steps_before),
            watchdog=stack.enter_context(Watchdog(processes.report_stall, **run.hang)),
            compiles=stack.enter_context(Compiles()),
        )
        try:
            state = _loop(run, state, loader, report=report, interrupt=interrupt, clock=clock)
        except Exception as error:
            log.error("%s", error)
            with contextlib.suppress(OSError):  # a full disk takes no notes
                run.note_stop(error)
            raise
    last = int(state.step)
    run.note(event="stop", step=last, reason="finished")
    seconds = clock.seconds()
    if not is_last:
        return state
    try:
        with interrupt.ending(functools.partial(_last_words, run, last)):
            finish.finish(run, state, train_seconds=seconds)
    except Asked as asked:
        raise Interrupted(str(asked), last) from None
    return state


def _begin(run: Run, step: int | None, accept: Collection[str]) -> tuple[State, dict[str, Any]]:
    """The state that a stage goes on from and what was saved with it; step: of a checkpoint."""
    if step is None:
        state = initialize.first_state(run.program, run.config, run.directory)
        return state, {"position": 0, "seconds": 0.0}
    meta = run.checkpoints.restore_meta(step)
    check_data(meta, run.source, accept)
    state = run.checkpoints.restore(run.program.abstract_state(), step)
    log.info("continuing from step %d", step)
    return state, meta


def _loop(
    run: Run,
    state: State,
    loader: Loader,
    *,
    report: _Report,
    interrupt: Interrupt,
    clock: Clock,
) -> State:
    """Steps from `state.step` to the end, with logging, saving and evaluation at boundaries.

    Raises Interrupted, after saving, when a signal asks the run to stop, and so Alarm.
    """
    report.begin()
    embed = stoppable(run.program.embed(), interrupt)
    number, position = int(state.step), loader.position
    saves = Saves(run, clock, report.watchdog)
    evaluated = _evaluated(report.metrics, run)
    try:
        last_words = functools.partial(_last_words, run, number)
        with report.watchdog.phase("compiling"), interrupt.ending(last_words):
            own_teacher, steps, renewed = _prepare(run, state)
        _evaluate(run, embed, state, number, report=report, done=evaluated)
        while number < run.num_steps and not run.watch.ended:
            with interrupt.breakable():
                host_batch = next(report.batches)
            report.autopsy.keep(number + 1, host_batch)
            batch = global_batch(
                run.program.layout, {name: host_batch[name] for name in ("images", "sizes")}
            )
            if number == 0 and run.pictures:
                finish.draw_crops(run, state, batch)
            now = run.program.now(number)
            which = run.draw(number)
            teacher_features = (
                () if own_teacher is None else (own_teacher.of_step(which, number, batch),)
            )
            state, scalars = steps[which](state, batch, now, *teacher_features)
            number, position = number + 1, loader.position
            if renewed is not None and run.anchor is not None and run.anchor.renews(number):
                state = renewed(state)
                log.info("step %d: the gram anchor is now the ema", number)
            report.add(number, scalars, now)
            if report.autopsy.suspicious or run.watch.is_look(number):
                report.flush()  # at once, so that a stop finds the weights of the bad steps
            if run.watch.ended or saves.due(number, asked="save" in interrupt.due):
                interrupt.due.discard("save")
                report.flush()  # what is on disk for a step includes its row of metrics
                report.compiles.elsewhere()
                saves.save(state, number, position)
            _evaluate(run, embed, state, number, report=report, done=evaluated)
            interrupt.check()
    except Asked as asked:
        report.flush()
        saves.finish(state, number, position)
        raise Interrupted(str(asked), number) from None
    except (NonFiniteError, Alarm):  # the weights are those before the bad steps
        saves.finish(state, number, position)
        raise
    report.flush()
    saves.wait()
    return state


def _last_words(run: Run, number: int, name: str) -> int:
    """Of a process asked to stop while nothing is there to save: the exit code, after a note."""
    is_saved = run.checkpoints.latest() is not None
    log.error("stopped by %s before anything new was done; the same command continues", name)
    run.note(event="stop", step=number, reason=f"{name}, with nothing new to save")
    return SAVED if is_saved else NOT_SAVED


def _prepare(run: Run, state: State):
    """(the teacher or None, compiled steps, what renews the Gram anchor or None)."""
    own_teacher = _own_teacher(run)
    steps = [_compile(built) for built in run.programs]
    renewed = None if run.anchor is None else initialize.refresh(state)
    process_group.current().settle("compiled", seconds=60.0 * run.hang["minutes"])
    return own_teacher, steps, renewed


def _own_teacher(run: Run) -> OwnTeacher | None:
    """The teacher of a distillation, loaded and compared with the one the run began with."""
    teacher_forwards = [
        built.teacher_forward for built in run.programs if built.teacher_forward is not None
    ]
    if not teacher_forwards:
        return None
    own_teacher = OwnTeacher(teacher_forwards, run.program.layout)
    if (begin := run.checkpoints.latest()) is not None:
        check_teacher(run.checkpoints.restore_meta(begin), own_teacher.fingerprint)
    return own_teacher


def _compile(built: Program):
    began = time.monotonic()
    log.info("compiling the step")
    step = built.lower().compile()
    log.info("compiled in %.0f s", time.monotonic() - began)
    return step
