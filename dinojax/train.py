"""Program 1: trains one recipe on one mesh. main -> train -> _loop -> Step -> jax.grad(loss).

The loop dispatches a step, then fetches the numbers of the one before: the devices stay busy and
at most one step is in flight.
"""

import contextlib
import errno
import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from dinojax import config as configs
from dinojax import finish, mesh, program
from dinojax.autopsy import Autopsy, NonFiniteError
from dinojax.config import Config, ConfigError
from dinojax.data.loader import Loader
from dinojax.data.sources import open_knn_sources
from dinojax.energy import EnergyMeter
from dinojax.eval.online import build_knn
from dinojax.interrupt import NOT_SAVED, SAVED, Asked, Interrupt, Interrupted, StorageError
from dinojax.metrics import DataWait, MetricsLog, Progress, RunLog, read_metrics
from dinojax.run import Run, check_data, claim, open_checkpoints, open_run, open_train_source
from dinojax.state import State
from dinojax.tensorboard import EventLog

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # disks that are, or read-only ones
CLOSE_SECONDS = 10  # for the loader's threads and processes to end
EVALUATED = "knn/"  # columns of the last thing that an evaluation writes


def train(config: Config, run_dir: str | Path, *, accept: Collection[str] = ()) -> State:
    """Train until `num_steps`, from the last checkpoint in `run_dir` if it has one.

    accept: "new-data", "new-config": continue although images or config changed.
    Raises ConfigError if the directory belongs to another config, ValueError or FileNotFoundError
    for data and sizes that do not work, all before any device work; Interrupted after a signal.
    """
    directory = Path(run_dir)
    source = open_train_source(config)
    claim(directory, config, accept)
    with RunLog(directory / "log.txt"), contextlib.ExitStack() as stack:
        layout = mesh.from_section(config.mesh)
        stack.enter_context(jax.default_matmul_precision(config.precision.matmul))
        interrupt = stack.enter_context(Interrupt())
        run = open_run(config, directory, layout, source)
        stack.callback(run.checkpoints.close)
        without_knn = ("knn.",) if run.knn is None else ()
        if without_knn:
            log.info("no k-NN, for want of labels: set knn.query (and knn.bank) to have it")
        config.check_all_read(besides=without_knn)
        stack.enter_context(mesh.use(layout))
        log.info(
            "%s: %d images, %d devices (%s), strategy %s",
            directory,
            len(source),
            layout.mesh.size,
            jax.default_backend(),
            layout.strategy,
        )
        return _train(run, interrupt, accept)


def _train(run: Run, interrupt: Interrupt, accept: Collection[str]) -> State:
    """The state of the last checkpoint, or a new one, taken to the end."""
    start, meta = run.checkpoints.latest(), dict[str, Any](position=0, seconds=0.0)
    if start is None:
        state = run.program.new_state()
    else:
        meta = run.checkpoints.restore_meta(start)
        check_data(meta, run.source, accept)
        state = run.checkpoints.restore(run.program.abstract_state(), start)
        log.info("continuing from step %d", start)
    run.note(event="start", step=start or 0, devices=run.program.layout.mesh.size)
    loader = Loader(
        run.source,
        **run.loader_options,
        start=meta["position"],
        host_index=jax.process_index(),
        num_hosts=jax.process_count(),
    )
    metrics = MetricsLog(run.directory / "metrics.jsonl", resume_step=start)
    clock = _Clock(meta["seconds"])
    devices = list(run.program.layout.mesh.devices.flat)
    kinds = [device.device_kind for device in devices]
    here = [d.local_hardware_id for d in devices if d.process_index == jax.process_index()]
    with _closed_in_time(loader), metrics, contextlib.ExitStack() as stack:
        stack.enter_context(EnergyMeter(kinds, run.directory / "energy.json", gpus=here))
        if run.tensorboard:
            metrics.mirror = EventLog(run.directory / "tensorboard", resume_step=start)
            stack.callback(metrics.mirror.close)
        try:
            state = _loop(run, state, loader, metrics=metrics, interrupt=interrupt, clock=clock)
        except Exception as error:
            log.error("%s", error)
            with contextlib.suppress(OSError):  # a full disk takes no notes
                run.note_stop(error)
            if isinstance(error, OSError) and error.errno in FULL:
                raise StorageError(f"{run.directory} cannot be written to: {error}") from error
            raise
    run.note(event="stop", step=run.num_steps, reason="finished")
    seconds = clock.seconds()
    try:
        with interrupt.ending(functools.partial(_last_words, run, run.num_steps)):
            finish.finish(run, state, train_seconds=seconds)
    except Asked as asked:
        raise Interrupted(str(asked), run.num_steps) from None
    return state


@contextlib.contextmanager
def _closed_in_time(loader: Loader) -> Iterator[None]:
    """Close the loader at the end, but wait only so long for a decoder that hangs."""
    try:
        yield
    finally:
        closer = threading.Thread(target=loader.close, daemon=True)
        closer.start()
        closer.join(CLOSE_SECONDS)
        if closer.is_alive():
            log.warning("the data loader did not end within %d s", CLOSE_SECONDS)


class _Clock:
    """Seconds of training, over all the times the run was continued."""

    def __init__(self, earlier: float):
        self._earlier, self._began = earlier, time.monotonic()

    def seconds(self) -> float:
        return self._earlier + time.monotonic() - self._began


def _loop(
    run: Run,
    state: State,
    loader: Loader,
    *,
    metrics: MetricsLog,
    interrupt: Interrupt,
    clock: _Clock,
) -> State:
    """Steps from `state.step` to the end, with logging, saving and evaluation at boundaries.

    Raises Interrupted, after saving, when a signal asks the run to stop.
    """
    embed, batches = _stoppable(run.program.embed(), interrupt), DataWait(loader)
    autopsy = Autopsy(run.directory, seed=run.config.seed)
    report = _Report(run, metrics, batches, autopsy)
    number, position = int(state.step), loader.position
    saves = _Saves(run, number, clock)
    evaluated = _evaluated(metrics)
    try:
        with interrupt.ending(functools.partial(_last_words, run, number)):
            step = _compile(run)
        _evaluate(run, embed, state, number, report=report, done=evaluated)
        while number < run.num_steps:
            with interrupt.breakable():
                host_batch = next(batches)
            autopsy.keep(number + 1, host_batch)
            batch = mesh.global_batch(
                run.program.layout, {name: host_batch[name] for name in ("images", "sizes")}
            )
            if number == 0 and run.pictures:
                finish.draw_crops(run, state, batch)
            now = run.program.now(number)
            state, scalars = step(state, batch, now)
            number, position = number + 1, loader.position
            report.add(number, scalars, now)
            if autopsy.suspicious:
                report.flush()  # at once, so that a stop finds the weights of the bad steps
            if saves.due(number):
                report.flush()  # what is on disk for a step includes its row of metrics
                saves.save(state, number, position)
            _evaluate(run, embed, state, number, report=report, done=evaluated)
            interrupt.check()
    except Asked as asked:
        report.flush()
        saves.save(state, number, position)
        run.checkpoints.wait()
        raise Interrupted(str(asked), number) from None
    except NonFiniteError:  # the weights are those before the bad steps
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


def _stoppable(embed: Callable, interrupt: Interrupt) -> Callable:
    """The same function, which raises Asked between two batches once a signal came."""

    def stoppable(params, images_BHWC):
        interrupt.check()
        return embed(params, images_BHWC)

    return stoppable


def _compile(run: Run):
    began = time.monotonic()
    log.info("compiling the step")
    step = run.program.lower().compile()
    log.info("compiled in %.0f s", time.monotonic() - began)
    return step


class _Saves:
    """When to save, by steps, by minutes and at the end; each step at most once."""

    def __init__(self, run: Run, start: int, clock: _Clock):
        self._run, self._clock = run, clock
        self._saved: int | None = run.checkpoints.latest()
        self._last = time.monotonic()

    def due(self, number: int) -> bool:
        """Also where an earlier save is found to have failed: that is raised here."""
        self._run.checkpoints.check()
        every = self._run.every
        if every.minutes is not None and time.monotonic() - self._last >= 60 * every.minutes:
            return True
        return number % every.checkpoint == 0 or number == self._run.num_steps

    def save(self, state: State, number: int, position: int) -> None:
        if number == self._saved:
            return
        self._run.save(state, step=number, position=position, seconds=self._clock.seconds())
        self._saved, self._last = number, time.monotonic()


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
        bad = scalars["bad_steps"] > 0
        if bad or number % self._run.every.log == 0 or number == self._run.num_steps:
            waiting = self._batches.share()
            drawn = {f"images/{name}": num for name, num in self._run.num_drawn(number).items()}
            self.metrics.write(
                number, {**scalars, **now, **drawn, "data_wait": waiting, **self._speed(number)}
            )
            self._progress.update(number, loss=float(scalars["total"]), waiting=waiting)
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
    rows = read_metrics(metrics.path)
    return {row["step"] for row in rows if any(name.startswith(EVALUATED) for name in row)}


def _evaluate(run: Run, embed, state: State, number: int, *, report: _Report, done: set[int]):
    """Probe and k-NN of the ema at step 0, every `knn.every` steps and at the end."""
    every = run.every.knn
    if every is None or number in done or (number % every and number != run.num_steps):
        return
    report.flush()  # rows in the same order whether or not a signal ends the evaluation
    params, seen, found = state.ema["backbone"], None, None
    if run.probe is not None:
        seen = run.probe.look(embed, params, number)
    if run.knn is not None:
        found = run.knn.accuracy(embed, params)
    if seen:  # written when both are there: an evaluation is repeated as a whole
        report.metrics.write(number, seen)
    if run.knn is not None and found is not None:
        report.metrics.write(number, {f"knn/{name}": value for name, value in found.items()})
        log.info("step %d: k-NN %.1f %%", number, found[run.knn.features])


def evaluate_knn(run_dir: str | Path, overrides: Sequence[str], step: int | None) -> None:
    """`dinojax eval knn`: k-NN of the ema of a checkpoint; prints and appends to eval/knn.jsonl."""
    directory = Path(run_dir)
    config = configs.read(directory, overrides)
    sources = open_knn_sources(config.data, config.knn, channels=config.image.channels)
    if sources is None:
        raise ConfigError("k-NN needs labels: --set knn.bank=FOLDER --set knn.query=FOLDER.")
    knn = build_knn(sources, image=config.image, knn=config.knn)
    layout = mesh.from_section(config.mesh)
    built = program.build(config, layout)
    checkpoints = open_checkpoints(config, directory, read_only=True)
    with mesh.use(layout), contextlib.closing(checkpoints):
        step = checkpoints.restore_meta(step)["step"]
        state = checkpoints.restore(built.abstract_state(), step)
        found = knn.accuracy(built.embed(), state.ema["backbone"])
    row = {"step": step, "neighbors": knn.neighbors, "temperature": knn.temperature, **found}
    (directory / "eval").mkdir(exist_ok=True)
    with (directory / "eval" / "knn.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"step {step}, {len(knn.bank)} images in the bank, {len(knn.query)} queries")
    for name, value in found.items():
        print(f"  {name:8s} {value:5.1f} %")
