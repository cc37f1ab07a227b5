"""What the loop keeps in order beside its steps: the clock, saves, and the loader's end."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from dinojax import distill_rules, hosts, start
from dinojax.config import ConfigError
from dinojax.data.loader import Loader
from dinojax.interrupt import Interrupt
from dinojax.run import Run
from dinojax.state import State
from dinojax.watchdog import Watchdog, dump_stacks

log = logging.getLogger(__name__)

RESERVE = 600.0  # seconds of --max-wall that are kept for saving, at most
CLOSE_SECONDS = 10  # for the loader's threads and processes to end


def check(run: Run) -> None:
    """Refuse what cannot start, and settings that nothing has read."""
    start.check(run.config, run.directory, began=run.checkpoints.latest() is not None)
    without_knn = ("knn.",) if run.knn is None else ()
    if without_knn:
        log.info("no k-NN, for want of labels: set knn.query (and knn.bank) to have it")
    if run.knn is None and run.mosaics is None and run.config.knn.alarm is not None:
        raise ConfigError(
            f"knn.alarm={run.config.knn.alarm} has nothing to watch, for want of labels; set "
            "knn.query (and knn.bank), or knn.mosaics (128, for example), which needs no labels."
        )
    besides = (*without_knn, *distill_rules.in_vain(run.config.values()))
    run.config.check_all_read(besides=besides)
    layout = run.program.layout
    log.info(
        "%s: %d images, %d devices (%s), strategy %s",
        run.directory,
        len(run.source),
        layout.mesh.size,
        jax.default_backend(),
        layout.strategy,
    )


def lost(directory: Path, runs: Sequence[Run], why: str, hangs: bool) -> None:
    """Of a process that another one takes with it, or that hangs."""
    if hangs:
        path = directory / f"stacks.{hosts.current().index}.txt"
        dump_stacks(path)
        log.error("what every thread was doing is in %s", path)
    for run in runs:
        run.note(event="stop", reason=why)


@contextlib.contextmanager
def closed_in_time(loader: Loader) -> Iterator[None]:
    """Close the loader at the end, but wait only so long for a decoder that hangs."""
    try:
        yield
    finally:
        closer = threading.Thread(target=loader.close, daemon=True)
        closer.start()
        closer.join(CLOSE_SECONDS)
        if closer.is_alive():
            log.warning("the data loader did not end within %d s", CLOSE_SECONDS)


@contextlib.contextmanager
def within(max_wall: float | None, interrupt: Interrupt) -> Iterator[None]:
    """Ask the run to stop when a tenth of `max_wall` seconds is left, but RESERVE at most."""
    if max_wall is None:
        yield
        return
    why = f"--max-wall ({max_wall:.0f} s left when the run was opened)"
    wait = max(max_wall - min(max_wall / 10, RESERVE), 0.0)
    timer = threading.Timer(wait, interrupt.ask, (why,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


class Clock:
    """Seconds of training, over all the times the run was continued."""

    def __init__(self, earlier: float):
        self._earlier, self._began = earlier, time.monotonic()

    def seconds(self) -> float:
        return self._earlier + time.monotonic() - self._began


def stoppable(embed: Callable, interrupt: Interrupt) -> Callable:
    """The same function, which raises Asked between two batches once a signal came."""

    def stoppable(params, images_BHWC):
        interrupt.check()
        return embed(params, images_BHWC)

    return stoppable


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
        every, team = self._run.every, self._run.team
        late = every.minutes is not None and time.monotonic() - self._last >= 60 * every.minutes
        if late and team.count > 1:
            late, self._last = False, time.monotonic()
            if team.is_main:
                team.ask("save", f"{every.minutes} minutes")
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
