"""Program 1: trains one recipe on one mesh, stage after stage.

main -> train -> _train -> _loop -> Step -> jax.grad(loss), the same for every stage.

The loop dispatches a step, then fetches the numbers of the one before: the devices stay busy and
at most one step is in flight.
"""

import contextlib
import errno
import functools
import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax

from dinojax import finish, mesh, start
from dinojax.autopsy import Autopsy, NonFiniteError
from dinojax.config import Config, pick
from dinojax.data.loader import Loader
from dinojax.directory import as_stages, claim, enter, is_finished, name_of, occupy
from dinojax.energy import EnergyMeter
from dinojax.eval.mosaic import NAME as MOSAIC
from dinojax.interrupt import NOT_SAVED, SAVED, Alarm, Asked, Interrupt, Interrupted, StorageError
from dinojax.metrics import DataWait, MetricsLog, Progress, RunLog
from dinojax.program import Program
from dinojax.run import (
    Run,
    check_data,
    check_teacher,
    open_metrics,
    open_run,
    open_train_source,
)
from dinojax.state import State
from dinojax.teaching import Lessons
from dinojax.tensorboard import EventLog
from dinojax.upkeep import Clock, Saves, check, closed_in_time, stoppable

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # disks that are, or read-only ones
EVALUATED = ("knn/", "dense/")  # columns of the last thing that an evaluation writes


def train(
    config: Config | Sequence[Config],
    run_dir: str | Path,
    *,
    accept: Collection[str] = (),
    stage: str | None = None,
) -> State:
    """Train every stage to its end, from the last checkpoint in `run_dir` if it has one.

    config: of the only stage, or of each in order. A stage that is done is not run again. accept:
    "new-data", "new-config": continue although images or config changed. stage: run this one only.
    Raises ConfigError if the directory belongs to another config, ValueError or FileNotFoundError
    for data and sizes that do not work, all before any device work; Interrupted after a signal.
    """
    directory, stages = Path(run_dir), as_stages(config)
    wanted = stages if stage is None else [pick(stages, stage)]
    sources = {name_of(c): open_train_source(c) for c in wanted}
    with occupy(directory), contextlib.ExitStack() as stack:
        claim(directory, stages, accept)
        stack.enter_context(RunLog(directory / "log.txt"))
        todo = [c for c in wanted if not is_finished(directory, c)] or wanted[-1:]
        for done in wanted[: len(wanted) - len(todo)]:
            log.info("stage %s is done", name_of(done))
        interrupt = stack.enter_context(Interrupt())
        runs = [open_run(c, directory, sources[name_of(c)]) for c in todo]
        for run in runs:
            stack.callback(run.checkpoints.close)
            check(run)
        for run in runs:
            if len(stages) > 1:
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
    begin, meta = run.checkpoints.latest(), dict[str, Any](position=0, seconds=0.0)
    if begin is None:
        state = start.first_state(run.program, run.config, run.directory)
    else:
        meta = run.checkpoints.restore_meta(begin)
        check_data(meta, run.source, accept)
        state = run.checkpoints.restore(run.program.abstract_state(), begin)
        log.info("continuing from step %d", begin)
    run.note(event="start", step=begin or 0, devices=run.program.layout.mesh.size)
    loader = Loader(
        run.source,
        **run.loader_options,
        start=meta["position"],
        host_index=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    metrics = open_metrics(run, begin)
    clock = Clock(meta["seconds"])
    devices = list(run.program.layout.mesh.devices.flat)
    kinds = [device.device_kind for device in devices]
    here = [d.local_hardware_id for d in devices if d.process_index == jax.process_index()]
    with closed_in_time(loader), metrics, contextlib.ExitStack() as stack:
        stack.enter_context(EnergyMeter(kinds, run.directory / "energy.json", gpus=here))
        if run.tensorboard:
            events = EventLog(
                run.directory / "tensorboard",
                resume_step=begin,
                steps_before=run.steps_before,
            )
            metrics.mirror = events
            stack.callback(events.close)
        try:
            state = _loop(run, state, loader, metrics=metrics, interrupt=interrupt, clock=clock)
        except Exception as error:
            log.error("%s", error)
            with contextlib.suppress(OSError):  # a full disk takes no notes
                run.note_stop(error)
            if isinstance(error, OSError) and error.errno in FULL:
                raise StorageError(f"{run.directory} cannot be written to: {error}") from error
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


def _loop(
    run: Run,
    state: State,
    loader: Loader,
    *,
    metrics: MetricsLog,
    interrupt: Interrupt,
    clock: Clock,
) -> State:
    """Steps from `state.step` to the end, with logging, saving and evaluation at boundaries.

    Raises Interrupted, after saving, when a signal asks the run to stop, and so Alarm.
    """
    run.watch.begin(metrics.rows())
    embed, batches = stoppable(run.program.embed(), interrupt), DataWait(loader)
    autopsy = Autopsy(run.directory, seed=run.program.seed, steps_before=run.steps_before)
    report = _Report(run, metrics, batches, autopsy)
    number, position = int(state.step), loader.position
    saves = Saves(run, clock)
    evaluated = _evaluated(metrics)
    try:
        with interrupt.ending(functools.partial(_last_words, run, number)):
            lessons = _lessons(run)
            steps = [_compile(built) for built in run.programs]
            renewed = None if run.anchor is None else start.refresh(state)
        _evaluate(run, embed, state, number, report=report, done=evaluated)
        while number < run.num_steps and not run.watch.ended:
            with interrupt.breakable():
                host_batch = next(batches)
            autopsy.keep(number + 1, host_batch)
            batch = mesh.global_batch(
                run.program.layout, {name: host_batch[name] for name in ("images", "sizes")}
            )
            if number == 0 and run.pictures:
                finish.draw_crops(run, state, batch)
            now = run.program.now(number)
            which = run.draw(number)
            taught = () if lessons is None else (lessons.of_step(which, number, batch),)
            state, scalars = steps[which](state, batch, now, *taught)
            number, position = number + 1, loader.position
            if renewed is not None and run.anchor is not None and run.anchor.renews(number):
                state = renewed(state)
                log.info("step %d: the gram anchor is now the ema", number)
            report.add(number, scalars, now)
            if autopsy.suspicious or run.watch.is_look(number):
                report.flush()  # at once, so that a stop finds the weights of the bad steps
            if saves.due(number) or run.watch.ended:
                report.flush()  # what is on disk for a step includes its row of metrics
                saves.save(state, number, position)
            _evaluate(run, embed, state, number, report=report, done=evaluated)
            interrupt.check()
    except Asked as asked:
        report.flush()
        saves.save(state, number, position)
        run.checkpoints.wait()
        raise Interrupted(str(asked), number) from None
    except (NonFiniteError, Alarm):  # the weights are those before the bad steps
        saves.save(state, number, position)
        run.checkpoints.wait()
        raise
    report.flush()
    run.checkpoints.wait()
    return state


def _last_words(run: Run, number: int, name: str) -> int:
    """Of a process asked to stop while nothing is there to save: the exit code, after a note."""
    is_saved = run.checkpoints.latest() is not None
    log.error("stopped by %s before anything new was done; the same command continues", name)
    run.note(event="stop", step=number, reason=f"{name}, with nothing new to save")
    return SAVED if is_saved else NOT_SAVED


def _lessons(run: Run) -> Lessons | None:
    """The teacher of a distillation, loaded and compared with the one the run began with."""
    teachings = [built.teaching for built in run.programs if built.teaching is not None]
    if not teachings:
        return None
    lessons = Lessons(teachings, run.program.layout)
    if (begin := run.checkpoints.latest()) is not None:
        check_teacher(run.checkpoints.restore_meta(begin), lessons.fingerprint)
    return lessons


def _compile(built: Program):
    began = time.monotonic()
    log.info("compiling the step")
    step = built.lower().compile()
    log.info("compiled in %.0f s", time.monotonic() - began)
    return step


class _Report:
    """Fetches the scalars of a step when the next one is under way, then logs them."""

    def __init__(self, run: Run, metrics: MetricsLog, batches: DataWait, autopsy: Autopsy):
        self._run, self.metrics, self._batches = run, metrics, batches
        self._autopsy = autopsy
        self._progress = Progress(run.num_steps, batch_size=run.loader_options["batch_size"])
        self._pending: tuple | None = None
        self._written: tuple[int, float] | None = None  # step and time of the last row

    def add(self, number: int, scalars: dict, now: dict) -> None:
        """The scalars of the step just dispatched."""
        self.flush()
        self._pending = (number, scalars, now)

    def flush(self) -> None:
        """Wait for the step dispatched last; write it down where it is due."""
        if self._pending is None:
            return
        number, scalars, now = self._pending
        self._pending = None
        scalars = jax.device_get(scalars)
        bad, is_look = scalars["bad_steps"] > 0, self._run.watch.is_look(number)
        due = number % self._run.every.log == 0 or number == self._run.num_steps
        if bad or is_look or due:
            waiting = self._batches.share()
            drawn = {f"images/{name}": num for name, num in self._run.num_drawn(number).items()}
            self.metrics.write(
                number, {**scalars, **now, **drawn, "data_wait": waiting, **self._speed(number)}
            )
            self._progress.update(number, loss=float(scalars["total"]), waiting=waiting)
        if is_look:
            self._run.watch.look(number, scalars)
        self._autopsy.check(number, scalars, now)

    def _speed(self, number: int) -> dict[str, float]:
        """Images per second since the last row, whatever else happened in between."""
        before, self._written = self._written, (number, time.monotonic())
        if before is None:
            return {}
        images = (number - before[0]) * self._run.loader_options["batch_size"]
        return {"images_per_second": images / (self._written[1] - before[1])}


def _evaluated(metrics: MetricsLog) -> set[int]:
    """Steps evaluated already, before the run was continued, according to its metrics."""
    rows = metrics.rows()
    return {row["step"] for row in rows if any(name.startswith(EVALUATED) for name in row)}


def _evaluate(run: Run, embed, state: State, number: int, *, report: _Report, done: set[int]):
    """Probe and k-NN of the ema at step 0, every `knn.every` steps and at the end."""
    every = run.every.knn
    is_last = number == run.num_steps or run.watch.ended
    if every is None or number in done or (number % every and not is_last):
        return
    report.flush()  # rows in the same order whether or not a signal ends the evaluation
    params, seen, found = state.ema["backbone"], None, {}
    if run.probe is not None:
        seen = run.probe.look(embed, params, number + run.steps_before)
    if run.knn is not None:
        accuracy = run.knn.accuracy(embed, params)
        found = {f"knn/{name}": value for name, value in accuracy.items()}
    if run.mosaics is not None:
        found[MOSAIC] = run.mosaics.accuracy(embed, params)
    if seen:  # written when all are there: an evaluation is repeated as a whole
        report.metrics.write(number, seen)
    if found:
        report.metrics.write(number, found)
    if run.knn is not None:
        log.info("step %d: k-NN %.1f %%", number, found[f"knn/{run.knn.features}"])
    if run.mosaics is not None:
        log.info("step %d: dense (mosaics) %.1f %%", number, found[MOSAIC])
    run.watch.evaluated(number, found)
