"""What becomes of the output of the command line where its reader closes it, and `--version`."""

import argparse
import contextlib
import importlib.metadata
import os
import select
import sys
from collections.abc import Iterator

CLOSED = 141  # what shells say of a program that SIGPIPE ended


class Closed(Exception):
    """Whoever read our output, such as `head`, has closed it."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raises Closed once nobody reads stdout any more; a letter that it cannot take is escaped."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if _is_open():
            raise  # another pipe
        raise Closed from None
    except SystemExit:  # of argparse, which has printed help
        if not _is_open():
            raise Closed from None
        raise


def _is_open() -> bool:
    """Whether stdout still has a reader; if not, what is left to write goes nowhere."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError):  # none of the system's
        return True
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return True
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return False


class Version(argparse.Action):
    """`--version`: of dinojax and of what its results depend on most."""

    def __init__(self, option_strings, dest, **_):
        told = "versions of dinojax and jax"
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=told)

    def __call__(self, parser, *_):
        print(", ".join(f"{name} {_version(name)}" for name in ("dinojax", "jax", "jaxlib")))
        parser.exit()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed as a package)"
