"""What the loop keeps in order beside its steps: the clock, saves, and the loader's end."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import jax

from dinojax import distill_rules, start
from dinojax.config import ConfigError
from dinojax.data.loader import Loader
from dinojax.interrupt import Interrupt
from dinojax.run import Run
from dinojax.state import State

log = logging.getLogger(__name__)

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

    def __init__(self, run: Run, clock: Clock):
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
