"""What is due now and then beside rows: evaluations of the ema, saves, the progress line."""

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from dinojax.distributed import process_group
from dinojax.eval.contract import draw
from dinojax.eval.network import Network
from dinojax.eval.suite import SUITE, is_result
from dinojax.monitor import report as reports
from dinojax.monitor.energy import EnergyMeter
from dinojax.monitor.watchdog import Watchdog
from dinojax.runs.scalars import MetricsLog, Progress
from dinojax.train.records import Row
from dinojax.train.stage import Run
from dinojax.train.state import State

log = logging.getLogger(__name__)

PROBED = "probe/"  # columns of the last thing that is written where nothing is evaluated


def evaluated_steps(metrics: MetricsLog, run: Run) -> set[int]:
    """Steps evaluated already, before the run was continued, according to its metrics."""
    rows = metrics.rows()
    is_last = is_result if run.evaluations else _is_of_probe
    steps = [row["step"] for row in rows if any(map(is_last, row))]
    return set(process_group.current().settle("evaluated steps", steps))


def _is_of_probe(column: str) -> bool:
    return column.startswith(PROBED)


def is_evaluation_due(run: Run, number: int, done: set[int]) -> bool:
    """Whether a step is one to evaluate after. done: those that have been."""
    return number not in done and any(_is_due(run, number, n) for n in run.every.measuring)


def _is_due(run: Run, number: int, every: int | None) -> bool:
    """Of what comes at step 0, every so many steps, and at the end."""
    is_last = number == run.num_steps or run.watch.ended
    return every is not None and (number % every == 0 or is_last)


def pauses(run: Run, number: int) -> bool:
    """Whether more than a step is due after a step: pictures, a save, an evaluation, an end.

    From the config alone, so that it is the same in processes that have no part in it.
    """
    every = run.every
    first = number == 1 and run.pictures
    evaluates = any(number % steps == 0 for steps in every.measuring)
    saves = number % every.checkpoint == 0 or number == run.num_steps
    return first or evaluates or saves or run.watch.is_due(number)


def evaluate(
    run: Run,
    network_of: Callable[[dict], Network],
    state: State,
    number: int,
    *,
    metrics: MetricsLog,
    who: str = "",
) -> None:
    """What is due of the table, and the probe: measure the ema, write it down, say it.

    network_of: of backbone parameters. who: in front of what is said.
    """
    drift: dict[str, float] | None = None
    results: dict[str, float] = {}
    network = network_of(state.ema["backbone"])
    if run.config.text.enabled:
        network.words = {**state.ema, **state.student}
    if run.probe is not None and _is_due(run, number, run.every.probe):
        drift = run.probe.look(network, number + run.steps_before)
    due = [n for n in run.evaluations if _is_due(run, number, run.every.evaluations[n])]
    for name in due:
        measured = run.evaluations[name].measure(network)
        results |= measured.values
        if run.processes.is_main:
            draw(run.directory / "pictures", f"{name}-{number + run.steps_before:08d}", measured)
    if drift:  # written when all are there: an evaluation is repeated as a whole
        metrics.write(number, drift)
    if results:
        metrics.write(number, results)
    for name in due:
        row = SUITE[name]
        main = results[row.main_column(run.config.values())]
        log.info("%sstep %d: %s %s", who, number, row.title, row.shown(main))
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


class Page:
    """report.html, made anew when what is new is all on disk: a checkpoint takes its time."""

    def __init__(self, run: Run):
        self._run, self._is_due = run, True  # with the first row

    def changed(self) -> None:
        """There is a result, or a checkpoint was begun."""
        self._is_due = True

    def write_due(self, *, has_rows: bool) -> None:
        """After a step; has_rows: there is something to show."""
        if self._is_due and has_rows and not self._run.checkpoints.is_saving:
            self.write()

    def write(self) -> None:
        self._is_due = False
        # Python looks for cycles among old objects the less often the more there are; in a long run
        # what they hold would lie between what stays, and its memory would grow.
        gc.collect()
        if self._run.processes.is_main:
            reports.refresh(self._run.directory)


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
