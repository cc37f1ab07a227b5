"""Why a run stops before its end: a signal, taken where nothing is lost, or storage that fails.

SIGTERM, SIGINT and SIGUSR1 ask once: the run saves and ends with SAVED. Asked a second time it
ends at once with NOT_SAVED (two within SAME seconds are one); what an earlier save completed stays.
Of a run of several processes any one may be asked: all stop at the same turn (sync_point.py).
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
FINISHED, FAILED, REFUSED = 0, 1, 2  # exit codes
SAVED, NOT_SAVED = 75, 76  # exit codes; 75 is what schedulers know as "try again"
ALARMED = 3  # exit code that no scheduler tries again
LOST = 77  # exit code: no step finishes any more, or another process of the run is gone
GRACE = 2.0  # seconds to come to an end where nothing can be saved anyway
HURRY = 60.0  # seconds for several processes to come to the turn at which they stop
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


class Lost(RuntimeError):
    """Another process of the run is gone, failed or hangs; carries the exit code."""

    def __init__(self, why: str, code: int):
        super().__init__(f"{why}. The last checkpoint stands; the same command continues.")
        self.code = code


class StorageError(RuntimeError):
    """A checkpoint could not be written; says which one still stands."""


class Several(Protocol):
    """What an Interrupt needs of a run of several processes (process_group.ProcessGroup)."""

    asked: Callable[[str], None] | None

    def ask(self, what: str, why: str) -> None: ...
    def turn(self) -> Mapping[str, str]: ...
    def all_ending(self, here: bool) -> bool: ...
    def end(self, code: int) -> None: ...


class Interrupt:
    """While open, a signal sets a flag; within `breakable()` it also ends what is waited for.

    Python runs handlers between two instructions of the main thread, and a compile is one that
    may take minutes. A thread that hears of signals through a socket ends the process where the
    handler cannot. Outside the main thread Python delivers no signals: then nothing is installed.
    With a `processes` a signal asks all processes, and `check` is a turn of all of them.
    """

    def __init__(self, *, grace: float = GRACE, processes: Several | None = None) -> None:
        self._asked: str | None = None
        self._why: str | None = None  # what asked, where it was no signal
        self._installed = False  # handlers of signals
        self._breakable = False
        self._grace, self._processes = grace, processes
        self._last_words: Callable[[str], int] | None = None
        self._lock = threading.Lock()  # of the last words and the vote on them
        self._vote: threading.Event | None = None  # set once it was refused to end here
        self._reached = False  # the turn at which the process group stops
        self._timers: list[threading.Timer] = []
        self._closed = False
        self._undo = contextlib.ExitStack()
        self.due: set[str] = set()  # what else the process group was asked to do at this turn

    def __enter__(self) -> "Interrupt":
        if self._processes is not None:
            self._processes.asked = lambda why: self._after(self._grace, self._end, why)
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
            self._installed = True
        return self

    def __exit__(self, *_) -> None:
        self._installed, self._closed = False, True
        for timer in self._timers:
            timer.cancel()
        self._undo.close()

    def ask(self, why: str) -> None:
        """As a signal does, from any thread; `why` stands for the signal's name."""
        self._why = why
        if self._installed:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        elif self._processes is not None:
            self._processes.ask("stop", why)
        else:
            self._asked = self._asked or why

    def check(self) -> None:
        """Raise Asked if a signal came since the run began; of several processes at one turn."""
        if self._processes is not None:
            due = self._processes.turn()
            self.due |= set(due) - {"stop"}
            if "stop" in due:
                self._reached = True
                raise Asked(due["stop"])
        elif self._asked is not None:
            raise Asked(self._asked)

    @contextlib.contextmanager
    def breakable(self) -> Iterator[None]:
        """For waiting in plain Python, which may end anywhere: a signal raises Asked at once.

        Not for code that traces or compiles: jax's own extensions crash on such an exception. In a
        processes what others wait for must not end, so that it is waited for.
        """
        self.check()
        self._breakable = self._processes is None
        try:
            if self._breakable:
                self.check()
            yield
        finally:
            self._breakable = False
        self.check()

    @contextlib.contextmanager
    def ending(self, last_words: Callable[[str], int]) -> Iterator[None]:
        """For long work during which there is nothing to save, such as a compile.

        A signal raises Asked afterwards, or ends the process as in `unsaved`.
        """
        self.check()
        with self.unsaved(last_words):
            yield
        self.check()

    @contextlib.contextmanager
    def unsaved(self, last_words: Callable[[str], int]) -> Iterator[None]:
        """The same where nothing there is could be saved: what to do is left to the next check.

        Where that is not within the time of grace, another thread calls last_words with the
        signal's name and ends the process with the code it returns; one of several does so if all
        are here.
        """
        with self._lock:
            self._last_words = last_words
        try:
            yield
        finally:
            with self._lock:
                self._last_words = None
            if self._vote is not None:
                self._vote.wait(HURRY)

    def _take(self, number: int, frame: object) -> None:
        del frame
        self._asked = self._asked or self._why or signal.Signals(number).name
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
                why = self._why or signal.Signals(message[0]).name
                if self._processes is None:
                    self._after(self._grace, self._end, why)
                else:
                    self._processes.ask("stop", why)
            elif time.monotonic() - since >= SAME:
                os._exit(NOT_SAVED)  # asked twice: whoever asks has no time left

    def _after(self, seconds: float, action: Callable[[str], None], why: str) -> None:
        if self._closed:
            return
        timer = threading.Timer(seconds, action, (why,))
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _end(self, why: str) -> None:
        with self._lock:
            last_words = self._last_words
            if last_words is not None and self._processes is not None:
                self._vote = threading.Event()
        if self._processes is None:
            if last_words is not None:
                end_now(last_words(why))
        elif self._processes.all_ending(last_words is not None) and last_words is not None:
            self._processes.end(last_words(why))
        else:
            if self._vote is not None:
                self._vote.set()
            self._after(HURRY, self._give_up, why)

    def _give_up(self, why: str) -> None:
        """Where a process of the group hangs, all end with what was saved before."""
        if self._processes is not None and not self._reached:
            print(f"stopped by {why}: not all processes came to a stop together", flush=True)
            self._processes.end(NOT_SAVED)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """While open, a signal ends the process with NOT_SAVED: for the time before a run is opened."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        del frame
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of a print
            sys.stdout.flush()
        why = f"stopped by {signal.Signals(number).name} before the run was opened\n"
        os.write(1, why.encode())
        os._exit(NOT_SAVED)

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


RESERVE = 600.0  # seconds of --max-wall that are kept for saving, at most


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


def stoppable(embed: Callable, interrupt: Interrupt) -> Callable:
    """The same function, which raises Asked between two batches once a signal came."""

    def stoppable(params, images_BHWC):
        interrupt.check()
        return embed(params, images_BHWC)

    return stoppable
