"""Scalars to metrics.jsonl, lines to log.txt, progress to the terminal. Quick to import."""

import datetime
import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TextIO

from dinojax.data import fields
from dinojax.files.drafts import open_append, write_text

Clock = Callable[[], float]  # seconds
CLEAR_LINE = "\r\x1b[K"
MOST_STEPS = 2**40  # a row may name
TIME = "time"  # the column of a row that says when it was written, in UTC
TEXTS: dict[str, Any] = {"stage": str, TIME: (str, float)}  # columns that are no scalars
# What goes to log.txt alone: progress, and the words of libraries.
progress_log = logging.getLogger("dinojax.progress")
library_log = logging.getLogger("dinojax.libraries")


class MetricsLog:
    """Appends rows to a JSON-lines file: `step` first, then floats, last the time; each flushed.

    resume_step: the step of the checkpoint a run continues from; rows of later steps are dropped,
    because the run will write them again. None starts an empty file.
    stage: of a run of several stages; the second column. Rows of other stages stay as they are,
    and those without a stage belong to the first. Without a path nothing is written: for the
    processes beside the first.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        resume_step: int | None = None,
        stage: str | None = None,
        is_first: bool = True,
    ):
        self.path = None if path is None else Path(path)
        self._file: IO[str] | None = None
        self.mirror: Callable[[int, Mapping[str, Any]], None] | None = None  # gets rows as well
        self._stage, self._unnamed = stage, stage if is_first else None
        if self.path is None:
            return
        last = -1 if resume_step is None else resume_step
        rows = read_metrics(self.path)
        kept = [row for row in rows if not self._is_own(row) or row["step"] <= last]
        write_text(self.path, "".join(map(_line, kept)))
        self._file = open_append(self.path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One row. Scalar arrays are fetched; what is not finite is written as null."""
        if "step" in values:
            raise ValueError("step is the row's first column; pass it as the first argument")
        if self._file is None:
            return
        named = {} if self._stage is None else {"stage": self._stage}
        self._file.write(_line({"step": step, **named, **values, TIME: _now()}))
        self._file.flush()
        if self.mirror is not None:
            self.mirror(step, values)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of this stage so far."""
        rows = [] if self.path is None else read_metrics(self.path)
        return [row for row in rows if self._is_own(row)]

    def _is_own(self, row: Mapping[str, Any]) -> bool:
        return row.get("stage", self._unnamed) == self._stage

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(path: str | Path, *, last_step: int | None = None) -> list[dict[str, Any]]:
    """Rows of a metrics file, up to and including last_step; a missing file has none."""
    rows = iterate_metrics(path)
    return [row for row in rows if last_step is None or row["step"] <= last_step]


def iterate_metrics(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a metrics file one by one; a missing file has none.

    A last line without its end (the run was killed while writing) is left out; any other line
    that is no row (a step, and finite numbers or null besides) raises ValueError with its number.
    """
    for where, row in fields.rows(path):
        step = fields.field(row, "step", int, where=where)
        if not 0 <= step <= MOST_STEPS:
            raise ValueError(f"{where}: step is {fields.shown(step)}; expected 0 to {MOST_STEPS}.")
        for name, value in row.items():
            kind = TEXTS[name] if name in TEXTS else (float, None)
            fields.checked(value, kind, name=name, where=where)
        yield row


def _line(row: Mapping[str, Any]) -> str:
    numbers = {n: value if n in TEXTS else _finite(value) for n, value in row.items()}
    return json.dumps({**numbers, "step": int(row["step"])}) + "\n"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _finite(value: Any) -> float | None:
    # JSON has no nan; None is what an earlier row holds when read back.
    return None if value is None or not math.isfinite(value) else float(value)


class DataWait:
    """An iterator over batches that measures how long the loop waits for them."""

    def __init__(self, batches: Iterator, *, clock: Clock = time.monotonic):
        self._batches, self._clock = batches, clock
        self.seconds = 0.0  # waited for the last batch

    def __iter__(self) -> "DataWait":
        return self

    def __next__(self):
        start = self._clock()
        try:
            return next(self._batches)
        finally:
            self.seconds = self._clock() - start


class Progress:
    """The line that says how far a run is: step, loss, images/s, time left, waiting for data.

    On a terminal one line is rewritten twice a second; elsewhere a line is printed every `seconds`.
    log.txt receives all of them.
    The speed is that of the last 50 steps, so compilation does not spoil the time left.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        batch_size: int,
        stream: TextIO | None = None,
        seconds: float = 10.0,
        clock: Clock = time.monotonic,
    ):
        self._num_steps, self._batch_size = num_steps, batch_size
        self._stream, self._clock = stream or sys.stderr, clock
        self._terminal = self._stream.isatty()
        self._seconds = 0.5 if self._terminal else seconds
        self._recent: deque[tuple[int, float]] = deque(maxlen=51)  # (step, time)
        self._printed = -math.inf

    def update(self, step: int, *, loss: Mapping[str, float], waiting: float) -> None:
        """step: updates done. loss: name of each that learns ("" for one alone) -> its loss.
        waiting: share of the time spent waiting for data, 0 to 1."""
        now = self._clock()
        self._recent.append((step, now))
        losses = ", ".join(f"{name} {value:.4f}".lstrip() for name, value in loss.items())
        line = f"step {step}/{self._num_steps}" + (f"  loss {losses}" if losses else "")
        line += self._speed()
        line += f"  waiting for data {waiting:.0%}"
        progress_log.info("%s", line)
        if now - self._printed < self._seconds and step < self._num_steps:
            return
        self._printed = now
        end = "\n" if step >= self._num_steps or not self._terminal else ""
        self._stream.write((CLEAR_LINE if self._terminal else "") + line + end)
        self._stream.flush()

    def _speed(self) -> str:
        (first, start), (last, now) = self._recent[0], self._recent[-1]
        if last <= first or now <= start:
            return ""
        step_seconds = (now - start) / (last - first)
        left = duration((self._num_steps - last) * step_seconds)
        return f"  {self._batch_size / step_seconds:,.0f} images/s  {left} left"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds in short: 1:02:03, 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class RunLog:
    """Sends the messages of all dinojax loggers to a file and to the terminal while it is open."""

    def __init__(self, path: str | Path, *, stream: TextIO | None = None):
        self._path, self._stream = path, stream or sys.stderr
        self._handlers: list[logging.Handler] = []
        self._file: IO[str] | None = None

    def __enter__(self) -> logging.Logger:
        self._file = open_append(self._path)
        file = logging.StreamHandler(self._file)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        terminal = logging.StreamHandler(self._stream)
        # A message that comes while a progress line stands takes its place.
        clear = CLEAR_LINE if self._stream.isatty() else ""
        terminal.setFormatter(logging.Formatter(clear + "%(message)s"))
        terminal.addFilter(lambda record: record.name not in (progress_log.name, library_log.name))
        self._handlers = [file, terminal]
        logger = logging.getLogger("dinojax")
        logger.setLevel(logging.INFO)
        logger.propagate = False  # libraries put handlers of their own on the root
        for handler in self._handlers:
            logger.addHandler(handler)
        return logger

    def __exit__(self, *_) -> None:
        logging.getLogger("dinojax").propagate = True
        for handler in self._handlers:
            logging.getLogger("dinojax").removeHandler(handler)
            handler.close()
        if self._file is not None:
            self._file.close()
            self._file = None
