"""Ends a run in which no step finishes any more, after writing down what every thread is doing.

A collective that one process does not join, storage that never answers, a decoder that hangs: all
look like nothing from outside, and cost as much as training.
"""

import contextlib
import faulthandler
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from dinojax.files.drafts import open_append

TICK = 1.0  # seconds between two looks
REMEMBERED = 50  # steps whose median time counts


class Watchdog:
    """Watches, while entered, that `beat` is called in time; else calls `stalled` with the reason.

    factor: times the median of the last steps, None = no watching. seconds: at least. minutes: for
    a phase (compiling, evaluating, saving), in which no step is expected, and for the first step.
    """

    def __init__(
        self,
        stalled: Callable[[str], None],
        *,
        factor: float | None,
        seconds: float,
        minutes: float,
        tick: float = TICK,
    ):
        self._stalled, self._factor = stalled, factor
        self._least, self._phase_limit, self._tick = seconds, 60.0 * minutes, tick
        self._times: deque[float] = deque(maxlen=REMEMBERED)  # seconds of steps
        self._last: float | None = None  # when a step was finished, if nothing came between
        self._phase: str | None = "starting"
        self._waited = 0.0  # seconds since the last sign of life
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._factor is not None:
            self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def beat(self) -> None:
        """A step has finished."""
        now = time.monotonic()
        with self._lock:
            if self._last is not None:
                self._times.append(now - self._last)
            self._last, self._waited, self._phase = now, 0.0, None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """While something else than steps goes on; name: in words, as in "while compiling"."""
        with self._lock:
            before, self._phase, self._waited = self._phase, name, 0.0
        try:
            yield
        finally:
            with self._lock:
                self._phase, self._waited, self._last = before, 0.0, None

    def limit(self) -> tuple[float, str]:
        """(seconds until the next sign of life is due, what they follow from)."""
        if self._phase is not None:
            return self._phase_limit, f"hang.minutes, while {self._phase}"
        if not self._times or self._factor is None:
            return self._phase_limit, "hang.minutes, before the second step"
        median = statistics.median(self._times)
        found = self._factor * median
        if found < self._least:
            return self._least, f"hang.seconds; a step took {median:.2f} s"
        return found, f"hang.factor; a step took {median:.2f} s"

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._end.wait(self._tick):
            now = time.monotonic()
            with self._lock:
                # A machine or a process that was stopped for a while did not wait for a step.
                self._waited += min(now - before, 2 * self._tick)
                limit, source = self.limit()
                late = self._waited > limit
            before = now
            if late:
                self._stalled(f"no step finished within {limit:.0f} s ({source})")
                return


def dump_stacks(path: Path) -> None:
    """What every thread of this process is doing, at the end of a file."""
    with open_append(path) as file:
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
