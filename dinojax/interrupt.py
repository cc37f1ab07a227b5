"""Why a run stops before its end: a signal, taken where nothing is lost, or storage that fails.

SIGTERM, SIGINT and SIGUSR1 ask once: the run saves and ends with SAVED. Asked a second time it
ends at once with NOT_SAVED (two within SAME seconds are one); what an earlier save completed stays.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SAVED, NOT_SAVED = 75, 76  # exit codes; 75 is what schedulers know as "try again"
ALARMED = 3  # exit code that no scheduler tries again
GRACE = 2.0  # seconds to come to an end where nothing can be saved anyway
SAME = 2.0  # seconds in which a second signal is the first once more: some send it twice


class Asked(BaseException):
    """A signal asked the run to stop; carries the signal's name.

    Not an Exception, for libraries catch those where they can go on without what failed.
    """


class Interrupted(Exception):
    """The run stopped because it was asked to; everything up to `step` is on disk."""

    def __init__(self, name: str, step: int):
        super().__init__(f"stopped by {name} after step {step}; saved, the same command continues")
        self.name, self.step = name, step


class Alarm(Exception):
    """The run stopped because its results fell too far, as its recipe asked; saved."""


class StorageError(RuntimeError):
    """A checkpoint could not be written; says which one still stands."""


class Interrupt:
    """While open, a signal sets a flag; within `breakable()` it also ends what is waited for.

    Python runs handlers between two instructions of the main thread, and a compile is one that
    may take minutes. A thread that hears of signals through a socket ends the process where the
    handler cannot. Outside the main thread Python delivers no signals: then nothing is installed.
    """

    def __init__(self, *, grace: float = GRACE) -> None:
        self._asked: str | None = None
        self._breakable = False
        self._grace = grace
        self._last_words: Callable[[str], int] | None = None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            told, heard = socket.socketpair()
            told.setblocking(False)  # a signal must never wait
            listener = threading.Thread(target=self._listen, args=(heard,), daemon=True)
            listener.start()
            self._undo.callback(heard.close)
            self._undo.callback(listener.join)
            self._undo.callback(told.close)  # ends the listener
            self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(told.fileno()))
            for number in SIGNALS:
                self._undo.callback(signal.signal, number, signal.signal(number, self._take))
        return self

    def __exit__(self, *_) -> None:
        self._undo.close()

    def check(self) -> None:
        """Raise Asked if a signal came since the run began."""
        if self._asked is not None:
            raise Asked(self._asked)

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """For waiting in plain Python, which may end anywhere: a signal raises Asked at once.

        Not for code that traces or compiles: jax's own extensions crash on such an exception.
        """
        self._breakable = True
        try:
            self.check()
            yield
        finally:
            self._breakable = False
        self.check()

    @contextlib.contextmanager
    def ending(self, last_words: Callable[[str], int]) -> Iterator[None]:
        """For long work during which there is nothing to save, such as a compile.

        A signal raises Asked afterwards. If that is not within the time of grace, another thread
        calls last_words with the signal's name and ends the process with the code it returns.
        """
        self.check()
        self._last_words = last_words
        try:
            yield
        finally:
            self._last_words = None
        self.check()

    def _take(self, number: int, frame: object) -> None:
        del frame
        self._asked = self._asked or signal.Signals(number).name
        if self._breakable:
            self._breakable = False
            raise Asked(self._asked)

    def _listen(self, heard: socket.socket) -> None:
        since: float | None = None
        while message := heard.recv(1):
            if message[0] not in SIGNALS:
                continue
            if since is None:
                since = time.monotonic()
                timer = threading.Timer(self._grace, self._end, (signal.Signals(message[0]).name,))
                timer.daemon = True
                timer.start()
            elif time.monotonic() - since >= SAME:
                os._exit(NOT_SAVED)  # asked twice: whoever asks has no time left

    def _end(self, name: str) -> None:
        if (last_words := self._last_words) is not None:
            end_now(last_words(name))


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """While open, a signal ends the process with NOT_SAVED: for the time before a run is opened."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        del frame
        print(f"stopped by {signal.Signals(number).name} before the run was opened", flush=True)
        end_now(NOT_SAVED)

    before = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_now(code: int) -> None:
    """End the process with that code, whatever hangs or crashes while Python takes itself apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
