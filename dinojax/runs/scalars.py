"""Scalars to metrics.jsonl, lines to log.txt, progress to the terminal. Standard library only."""

import json
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

Clock = Callable[[], float]  # seconds
CLEAR_LINE = "\r\x1b[K"


class MetricsLog:
    """Appends rows to a JSON-lines file: `step` first, then floats; one flush per row.

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
        self._file: TextIO | None = None
        self.mirror: Callable[[int, Mapping[str, Any]], None] | None = None  # gets rows as well
        self._stage, self._unnamed = stage, stage if is_first else None
        if self.path is None:
            return
        last = -1 if resume_step is None else resume_step
        rows = read_metrics(self.path)
        kept = [row for row in rows if not self._is_own(row) or row["step"] <= last]
        draft = self.path.with_name(self.path.name + ".draft")
        draft.write_text("".join(map(_line, kept)))
        os.replace(draft, self.path)  # atomic: killed here, the old file or the new one exists
        self._file = self.path.open("a")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One row. Scalar arrays are fetched; what is not finite is written as null."""
        if "step" in values:
            raise ValueError("step is the row's first column; pass it as the first argument")
        if self._file is None:
            return
        named = {} if self._stage is None else {"stage": self._stage}
        self._file.write(_line({"step": step, **named, **values}))
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
    """Rows of a metrics file, up to and including last_step; a missing file has none.

    A last line without its end (the run was killed while writing) is left out; any other line
    that is not JSON raises ValueError with its number.
    """
    path = Path(path)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}:{number} is not JSON ({error}); repair or remove it"
            ) from error
    return [row for row in rows if last_step is None or row["step"] <= last_step]


def _line(row: Mapping[str, Any]) -> str:
    numbers = {n: value if n == "stage" else _finite(value) for n, value in row.items()}
    return json.dumps({**numbers, "step": int(row["step"])}) + "\n"


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
        if now - self._printed < self._seconds and step < self._num_steps:
            return
        self._printed = now
        losses = ", ".join(f"{name} {value:.4f}".lstrip() for name, value in loss.items())
        line = f"step {step}/{self._num_steps}" + (f"  loss {losses}" if losses else "")
        line += self._speed()
        line += f"  waiting for data {waiting:.0%}"
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

    def __enter__(self) -> logging.Logger:
        file = logging.FileHandler(self._path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        terminal = logging.StreamHandler(self._stream)
        # A message that comes while a progress line stands takes its place.
        clear = CLEAR_LINE if self._stream.isatty() else ""
        terminal.setFormatter(logging.Formatter(clear + "%(message)s"))
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
