"""What is due now and then beside rows: evaluations of the ema, saves, the progress line."""

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from dinojax.distributed import process_group
from dinojax.eval.mosaic import NAME as MOSAIC
from dinojax.monitor.energy import EnergyMeter
from dinojax.monitor.watchdog import Watchdog
from dinojax.runs.scalars import MetricsLog, Progress
from dinojax.train.records import Row
from dinojax.train.stage import Run
from dinojax.train.state import State

log = logging.getLogger(__name__)

EVALUATED = ("knn/", "dense/")  # columns of the last thing that an evaluation writes
PROBED = ("probe/",)  # the same where there is no other


def evaluated_steps(metrics: MetricsLog, run: Run) -> set[int]:
    """Steps evaluated already, before the run was continued, according to its metrics."""
    rows = metrics.rows()
    last = PROBED if run.knn is None and run.mosaics is None else EVALUATED
    steps = [row["step"] for row in rows if any(name.startswith(last) for name in row)]
    return set(process_group.current().settle("evaluated steps", steps))


def is_evaluation_due(run: Run, number: int, done: set[int]) -> bool:
    """Whether a step is one to evaluate after. done: those that have been."""
    every = run.every.knn
    is_last = number == run.num_steps or run.watch.ended
    return every is not None and number not in done and (number % every == 0 or is_last)


def pauses(run: Run, number: int) -> bool:
    """Whether more than a step is due after a step: pictures, a save, an evaluation, an end.

    From the config alone, so that it is the same in processes that have no part in it.
    """
    every = run.every
    first = number == 1 and run.pictures
    evaluates = every.knn is not None and number % every.knn == 0
    saves = number % every.checkpoint == 0 or number == run.num_steps
    return first or evaluates or saves or run.watch.is_due(number)


def evaluate(
    run: Run, embed, state: State, number: int, *, metrics: MetricsLog, who: str = ""
) -> None:
    """Evaluate, write it down and say it; who: in front of what is said."""
    params, drift, results = state.ema["backbone"], None, {}
    if run.probe is not None:
        drift = run.probe.look(embed, params, number + run.steps_before)
    if run.knn is not None:
        accuracy = run.knn.accuracy(embed, params)
        results = {f"knn/{name}": value for name, value in accuracy.items()}
    if run.mosaics is not None:
        results[MOSAIC] = run.mosaics.accuracy(embed, params)
    if drift:  # written when all are there: an evaluation is repeated as a whole
        metrics.write(number, drift)
    if results:
        metrics.write(number, results)
    if run.knn is not None:
        log.info("%sstep %d: k-NN %.1f %%", who, number, results[f"knn/{run.knn.features}"])
    if run.mosaics is not None:
        log.info("%sstep %d: dense (mosaics) %.1f %%", who, number, results[MOSAIC])
    run.watch.add_evaluation(number, results)


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

    def is_due(self, number: int, *, asked: bool = False) -> bool:
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

    def wait(self) -> None:
        with self._watchdog.phase("waiting for a save"):
            self._run.checkpoints.wait()

    def save(self, state: State, number: int, position: int) -> None:
        if number == self._saved:
            return
        with self._watchdog.phase("saving"):
            self._run.save(state, step=number, position=position, seconds=self._clock.seconds())
        self._saved, self._last = number, time.monotonic()


class ProgressLine:
    """One line for all that learn in a program, shown by its first process."""

    def __init__(self, run: Run):
        """run: of one of those that learn; all have as many steps and images."""
        self._progress = Progress(run.num_steps, batch_size=run.loader_options["batch_size"])
        self._shown = 0  # step

    def show(self, number: int, rows: Mapping[str, Row | None]) -> None:
        """number: of steps done by all; rows: name -> the last row of each that is here."""
        rows_here = {name: row for name, row in rows.items() if row is not None}
        step = max((row.step for row in rows_here.values()), default=0 if rows else number)
        if step <= self._shown or not process_group.current().is_main:
            return
        self._shown = step
        waiting = max((row.waiting for row in rows_here.values()), default=0.0)
        losses = {name: row.loss for name, row in rows_here.items()}
        self._progress.update(step, loss=losses, waiting=waiting)


def energy_meter(
    directory: Path, devices: Sequence[jax.Device]
) -> contextlib.AbstractContextManager[EnergyMeter | None]:
    """While entered, measures the devices of a program for `directory`/energy.json.

    Of several processes the first one does; energy of other hosts is taken to be alike.
    """
    if not process_group.current().is_main:
        return contextlib.nullcontext()
    here = [d.local_hardware_id for d in devices if d.process_index == jax.process_index()]
    return EnergyMeter([d.device_kind for d in devices], directory / "energy.json", gpus=here)
