"""A line that says how far a long pass over images is, with the time left."""

import sys
import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """Counts images. On a terminal one line is rewritten; elsewhere one is printed at times."""

    def __init__(
        self,
        verb: str,
        total: int,
        *,
        stream: TextIO | None = None,
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """seconds: between lines that are not on a terminal."""
        self._verb, self._total = verb, total
        self._stream, self._clock = stream or sys.stderr, clock
        self._terminal = self._stream.isatty()
        self._seconds = 0.2 if self._terminal else seconds
        self._done, self._skipped = 0, 0
        self._began = self._printed = clock()

    def skip(self, count: int) -> None:
        """Images done in an earlier call: they count, but say nothing about the speed."""
        self._done, self._skipped = self._done + count, self._skipped + count

    def add(self, count: int = 1) -> None:
        self._done += count
        now = self._clock()
        if now - self._printed < self._seconds and self._done < self._total:
            return
        self._printed = now
        fresh, elapsed = self._done - self._skipped, now - self._began
        speed = fresh / elapsed if elapsed > 0 else 0.0
        left = f"{(self._total - self._done) / speed:,.0f} s left" if speed else "unknown time left"
        line = f"{self._verb} {self._done:,}/{self._total:,}  {speed:,.0f} images/s  {left}"
        end = "\n" if self._done >= self._total or not self._terminal else ""
        self._stream.write(("\r\x1b[K" if self._terminal else "") + line + end)
        self._stream.flush()
