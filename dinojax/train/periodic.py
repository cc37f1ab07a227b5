"""What the loop does at boundaries beside saving: rows of metrics, evaluations of the ema."""

import logging
import time

import jax

from dinojax.distributed import process_group
from dinojax.eval.mosaic import NAME as MOSAIC
from dinojax.monitor.autopsy import Autopsy
from dinojax.monitor.compilation import Compiles
from dinojax.monitor.watchdog import Watchdog
from dinojax.runs.scalars import DataWait, MetricsLog, Progress
from dinojax.train.stage import Run
from dinojax.train.state import State

log = logging.getLogger(__name__)

EVALUATED = ("knn/", "dense/")  # columns of the last thing that an evaluation writes
PROBED = ("probe/",)  # the same where there is no other


class Report:
    """Fetches the scalars of a step when the next one is under way, then logs them."""

    def __init__(
        self,
        run: Run,
        *,
        metrics: MetricsLog,
        batches: DataWait,
        autopsy: Autopsy,
        watchdog: Watchdog,
        compiles: Compiles,
    ):
        self._run, self.metrics, self.batches = run, metrics, batches
        self.autopsy, self.watchdog, self.compiles = autopsy, watchdog, compiles
        self._progress = Progress(run.num_steps, batch_size=run.loader_options["batch_size"])
        self._pending: tuple | None = None
        self._speed = Speed(run.loader_options["batch_size"])

    def begin(self) -> None:
        """Tell what watches the stage how it went so far; raises Alarm if that is too bad."""
        rows = self._run.watch.of_interest(self.metrics.rows())
        self._run.watch.begin(process_group.current().settle("rows so far", rows))

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
        self.watchdog.beat()
        self.compiles.step_ended(number)
        bad, is_look = scalars["bad_steps"] > 0, self._run.watch.is_look(number)
        due = number % self._run.every.log == 0 or number == self._run.num_steps
        if bad or is_look or due:
            waiting = self.batches.share()
            drawn = {f"images/{name}": num for name, num in self._run.num_drawn(number).items()}
            spent = self.compiles.seconds()
            times = {"data_wait": waiting, **({"compile_seconds": spent} if spent else {})}
            self.metrics.write(number, {**scalars, **now, **drawn, **times, **self._speed(number)})
            if process_group.current().is_main:
                self._progress.update(number, loss=float(scalars["total"]), waiting=waiting)
        if is_look:
            self._run.watch.look(number, scalars)
        self.autopsy.check(number, scalars, now)


class Speed:
    """Images per second since the last row, whatever else happened in between."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._written: tuple[int, float] | None = None  # step and time of the last row

    def __call__(self, number: int) -> dict[str, float]:
        """A column of the row of a step; none before the second row."""
        before, self._written = self._written, (number, time.monotonic())
        if before is None:
            return {}
        images = (number - before[0]) * self._batch_size
        return {"images_per_second": images / (self._written[1] - before[1])}


def evaluated(metrics: MetricsLog, run: Run) -> set[int]:
    """Steps evaluated already, before the run was continued, according to its metrics."""
    rows = metrics.rows()
    last = PROBED if run.knn is None and run.mosaics is None else EVALUATED
    found = [row["step"] for row in rows if any(name.startswith(last) for name in row)]
    return set(process_group.current().settle("evaluated steps", found))


def evaluate(run: Run, embed, state: State, number: int, *, report: Report, done: set[int]):
    """Probe and k-NN of the ema at step 0, every `knn.every` steps and at the end."""
    if not is_due(run, number, done):
        return
    report.flush()  # rows in the same order whether or not a signal ends the evaluation
    report.compiles.elsewhere()
    with report.watchdog.phase("evaluating"):
        look(run, embed, state, number, metrics=report.metrics)


def is_due(run: Run, number: int, done: set[int]) -> bool:
    """Whether a step is one to evaluate after. done: those that have been."""
    every = run.every.knn
    is_last = number == run.num_steps or run.watch.ended
    return every is not None and number not in done and (number % every == 0 or is_last)


def pauses(run: Run, number: int) -> bool:
    """Whether more than a step is due after a step: pictures, a save or an evaluation.

    From the config alone, so that it is the same in processes that have no part in it.
    """
    every = run.every
    first = number == 1 and run.pictures
    looks = every.knn is not None and number % every.knn == 0
    return first or looks or number % every.checkpoint == 0 or number == run.num_steps


def look(run: Run, embed, state: State, number: int, *, metrics: MetricsLog, who: str = "") -> None:
    """Evaluate, write it down and say it; who: in front of what is said."""
    params, seen, found = state.ema["backbone"], None, {}
    if run.probe is not None:
        seen = run.probe.look(embed, params, number + run.steps_before)
    if run.knn is not None:
        accuracy = run.knn.accuracy(embed, params)
        found = {f"knn/{name}": value for name, value in accuracy.items()}
    if run.mosaics is not None:
        found[MOSAIC] = run.mosaics.accuracy(embed, params)
    if seen:  # written when all are there: an evaluation is repeated as a whole
        metrics.write(number, seen)
    if found:
        metrics.write(number, found)
    if run.knn is not None:
        log.info("%sstep %d: k-NN %.1f %%", who, number, found[f"knn/{run.knn.features}"])
    if run.mosaics is not None:
        log.info("%sstep %d: dense (mosaics) %.1f %%", who, number, found[MOSAIC])
    run.watch.evaluated(number, found)


class Clock:
    """Seconds of training, over all the times the run was continued."""

    def __init__(self, earlier: float):
        self._earlier, self._began = earlier, time.monotonic()

    def seconds(self) -> float:
        return self._earlier + time.monotonic() - self._began


class Saves:
    """When to save, by steps, by minutes and at the end; each step at most once."""

    def __init__(self, run: Run, clock: Clock, watchdog: Watchdog):
        self._run, self._clock, self._watchdog = run, clock, watchdog
        self._saved: int | None = run.checkpoints.latest()
        self._last = time.monotonic()

    def due(self, number: int, *, asked: bool = False) -> bool:
        """Also where an earlier save is found to have failed: that is raised here.

        asked: the processes of the run have agreed to save here (their clocks differ).
        """
        self._run.checkpoints.check()
        every, processes = self._run.every, self._run.processes
        late = every.minutes is not None and time.monotonic() - self._last >= 60 * every.minutes
        if late and processes.count > 1:
            late, self._last = False, time.monotonic()
            if processes.is_main:
                processes.ask("save", f"{every.minutes} minutes")
        return asked or late or number % every.checkpoint == 0 or number == self._run.num_steps

    def finish(self, state: State, number: int, position: int) -> None:
        """Save, and wait until it is on disk."""
        self.save(state, number, position)
        self.wait()

    def wait(self) -> None:
        with self._watchdog.phase("waiting for a save"):
            self._run.checkpoints.wait()

    def save(self, state: State, number: int, position: int) -> None:
        if number == self._saved:
            return
        with self._watchdog.phase("saving"):
            self._run.save(state, step=number, position=position, seconds=self._clock.seconds())
        self._saved, self._last = number, time.monotonic()
