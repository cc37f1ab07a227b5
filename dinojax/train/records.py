"""What is written down of a stage's steps: rows of metrics, TensorBoard, steps gone wrong."""

import contextlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dinojax.config import saved_stages
from dinojax.distributed import process_group
from dinojax.monitor.autopsy import Autopsy
from dinojax.monitor.compilation import Compiles
from dinojax.runs.scalars import MetricsLog
from dinojax.runs.tensorboard import EventLog
from dinojax.train.stage import Run


class Row(NamedTuple):
    """What the progress line says of a row of metrics."""

    step: int
    loss: float
    waiting: float  # share of the time in which images were not there, 0 to 1


class Records:
    """Fetches the scalars of a step when the next one is under way, then writes down what is due.

    Loss and time of the last row are in `last`.
    """

    def __init__(self, run: Run, begin: int | None, *, compiles: Compiles, name: str):
        """begin: the step of the checkpoint that the stage goes on from. name: of a student."""
        self._run, self._compiles, self._name = run, compiles, name
        self._closing = contextlib.ExitStack()
        self.metrics = self._closing.enter_context(self._open_metrics(begin))
        self._autopsy = Autopsy(run.directory, seed=run.program.seed, steps_before=run.steps_before)
        self._pace = Pace(run.loader_options["batch_size"])
        self._pending: list[tuple] = []  # (number, scalars, now) of steps that were dispatched
        self.last: Row | None = None

    def _open_metrics(self, begin: int | None) -> MetricsLog:
        run, metrics = self._run, open_metrics(self._run, begin)
        if run.tensorboard and run.processes.is_main:
            events = EventLog(
                run.directory / "tensorboard", resume_step=begin, steps_before=run.steps_before
            )
            metrics.mirror = events
            self._closing.callback(events.close)
        return metrics

    def start(self) -> None:
        """Tell what watches the stage how it went so far; raises Alarm if that is too bad."""
        rows = self._run.watch.of_interest(self.metrics.rows())
        self._run.watch.begin(self._run.processes.settle("rows so far", rows))

    def keep_images(self, number: int, batch: Mapping[str, Any]) -> None:
        """Hold the images of a step until its scalars have been seen (Autopsy.keep)."""
        self._autopsy.keep(number, batch)

    def add(self, number: int, scalars: dict, now: dict) -> None:
        """A step was dispatched; scalars: what comes out of it, on the devices."""
        self._pending.append((number, scalars, now))

    def write_due(self, number: int, *, waited: float) -> None:
        """Write down all but the step dispatched last, that as well if it matters at once.

        number: of that step; waited: seconds in which its images were not there.
        """
        self._pace.wait(waited)
        self.flush(but=1)
        if self._autopsy.suspicious or self._run.watch.is_due(number):
            self.flush()  # so that a stop finds the weights of the bad steps

    def flush(self, *, but: int = 0) -> None:
        """Wait for what was dispatched, but for so many steps; write down what is due.

        Raises NonFiniteError at the third bad step in a row.
        """
        while len(self._pending) > but:
            self._write(*self._pending.pop(0))

    def _write(self, number: int, scalars: dict, now: dict) -> None:
        run = self._run
        scalars = jax.device_get(scalars)
        is_watched = run.watch.is_due(number)
        is_row = number % run.every.log == 0 or number == run.num_steps
        if scalars["bad_steps"] > 0 or is_watched or is_row:
            drawn = {f"images/{name}": num for name, num in run.num_drawn(number).items()}
            spent = self._compiles.seconds(self._name)
            times = self._pace.columns(number) | ({"compile_seconds": spent} if spent else {})
            self.metrics.write(number, {**scalars, **now, **drawn, **times})
            self.last = Row(number, float(scalars["total"]), times["data_wait"])
        if is_watched:
            run.watch.add_losses(number, scalars)
        with process_group.acting(run.processes):
            self._autopsy.check(number, scalars, now)

    def close(self) -> None:
        self._closing.close()


class Pace:
    """Images per second and waiting for data since the last row, whatever else happened."""

    def __init__(self, batch_size: int, *, clock=time.monotonic):
        self._batch_size, self._clock = batch_size, clock
        self._waited, self._since = 0.0, clock()  # seconds; time of the last row
        self._number: int | None = None  # step of the last row

    def wait(self, seconds: float) -> None:
        """Images of a step were not there for so long."""
        self._waited += seconds

    def columns(self, number: int) -> dict[str, float]:
        """Of the row of a step; no speed before the second row."""
        now, before = self._clock(), self._number
        elapsed, waited = now - self._since, self._waited
        self._number, self._since, self._waited = number, now, 0.0
        columns = {"data_wait": min(waited / elapsed, 1.0) if elapsed > 0 else 0.0}
        if before is not None and elapsed > 0:
            columns["images_per_second"] = (number - before) * self._batch_size / elapsed
        return columns


def open_metrics(run: Run, resume_step: int | None) -> MetricsLog:
    """metrics.jsonl, which one process writes; the rows of several stages say whose they are."""
    names = saved_stages(run.directory)
    return MetricsLog(
        run.directory / "metrics.jsonl" if run.processes.is_main else None,
        resume_step=resume_step,
        stage=run.stage if len(names) > 1 else None,
        is_first=run.stage == names[0],
    )
