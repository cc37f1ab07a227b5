"""What the console shows is dinojax's: the lines of JAX, absl and others go to log.txt."""

import contextlib
import logging
import sys
from collections.abc import Iterator

from dinojax.runs.scalars import library_log

OURS = "dinojax"
# Of others what users must see, in our words: part of the message -> what is said.
TOLD = {
    "Falling back to cpu": "JAX found an accelerator that it cannot use and computes on the CPU"
}


class _Forward(logging.Handler):
    """Takes what nobody else handles."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name.split(".")[0] == OURS:
            print(text, file=sys.stderr)
            return
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({type(record.exc_info[1]).__name__}: {record.exc_info[1]})"
        for part, said in TOLD.items():
            if part in text:
                print(f"dinojax: {said}", file=sys.stderr)
        if not logging.getLogger(OURS).propagate:  # a run's log is open
            library_log.info("%s: %s", record.name, " ".join(text.split()))


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """While open, libraries that log or warn do not write to the console.

    Loggers that were given a handler, such as by JAX_LOGGING_LEVEL, keep it.
    """
    handler = _Forward(logging.WARNING)
    logging.root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        logging.root.removeHandler(handler)
