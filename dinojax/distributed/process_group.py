"""The processes of a run, one per host: what they settle, and how they end together.

A process belongs to one process group, as it belongs to one JAX job: `current()` gives it, alone or
of many. Everything on devices is JAX's; the channel (channel.py) carries what must work without
devices.
"""

import contextlib
import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinojax.distributed.channel import GONE, SILENT, Combine, ControlChannel, HostError
from dinojax.distributed.cluster import WAIT, ProcessSpec
from dinojax.distributed.interrupt import FAILED, HURRY, LOST, Lost, end_now
from dinojax.distributed.sync_point import SyncPoint

log = logging.getLogger(__name__)

SETTLE = 600.0  # seconds for all to reach the same place: they may load or decode on the way
GRACE = 3.0  # seconds for the main thread to end by itself once the run is lost
LEAVE = 10.0  # seconds that process 0 waits for the others to end before it does


class ProcessGroup:
    """The processes of a run as one of them sees it. Alone, everything is settled at once."""

    def __init__(
        self, place: ProcessSpec | None = None, *, wait: float = WAIT, secret: bytes = b""
    ):
        """secret: of the run (secret.py), which all its processes have."""
        self.count, self.index = (1, 0) if place is None else (place.count, place.index)
        self.channel: ControlChannel | None = None
        self._settled = 0
        self._lock = threading.Lock()
        self._leaving = False
        self._lost: tuple[str, int] | None = None  # why, exit code
        self._failed_here = threading.Event()
        self.asked: Callable[[str], None] | None = None  # gets why, when all are asked to stop
        self.last_words: Callable[[str, bool], None] | None = None  # (why, whether it hangs)
        self._sync_point: SyncPoint | None = None
        self.subgroups: dict[tuple[int, ...], ProcessGroup] = {}  # parts of it (subgroup.py)
        if place is not None and place.count > 1:
            host, port = place.coordinator.rsplit(":", 1)
            channel = ControlChannel(self.index, self.count, self._heard, secret=secret)
            self._sync_point = SyncPoint(channel)
            me = f"{socket.gethostname()}, pid {os.getpid()}"
            # The last port of all has none after it; SLURM's detection may give it.
            beside = int(port) + (1 if int(port) < 65535 else -1)
            self.channel = channel.open((host, beside), me=me, seconds=wait)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what there is one of."""
        return self.index == 0

    @property
    def members(self) -> tuple[int, ...]:
        """Its processes, by their numbers in the run."""
        return tuple(range(self.count))

    @property
    def has_me(self) -> bool:
        """Whether this process is one of them."""
        return self.index in self.members

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether a stop was asked for whose turn has not come yet."""
        return self._sync_point is not None and self._sync_point.awaits("stop")

    def name(self, index: int) -> str:
        return f"process {index}" if self.channel is None else self.channel.name(index)

    def settle(self, what: str, value: Any = None, combine: Combine | None = None, seconds=SETTLE):
        """What `combine` makes of the values of all, None = the value of process 0.

        All processes call it at the same place. Raises HostError, naming who does not come.
        """
        combine = combine or _first
        if self.channel is None:
            return combine([value])
        self._settled += 1
        return self.channel.settle(f"{what} {self._settled}", value, combine, seconds=seconds)

    def all_or_raise(self, what: str, fault: str | None, seconds: float = SETTLE) -> None:
        """Raise HostError in all processes if there is a fault in any."""

        def named(faults):
            return [f"{self.name(i)}: {text}" for i, text in enumerate(faults) if text]

        if lines := self.settle(what, fault, named, seconds):
            raise HostError(f"{what}:\n  " + "\n  ".join(lines))

    # -- stopping ------------------------------------------------------------------------------

    def ask(self, what: str, why: str) -> None:
        """Ask all processes to "stop" or to "save" at the same turn. From any thread."""
        assert self._sync_point is not None
        self._sync_point.ask(what, why)

    def turn(self) -> Mapping[str, str]:
        """Called before everything that all do together; {what: why} of what was asked for."""
        return {} if self._sync_point is None else self._sync_point.take()

    def all_ending(self, here: bool) -> bool:
        """Whether all are where nothing can be saved. Once per run; from a thread of its own."""
        if self.channel is None:
            return True
        try:
            return self.channel.settle("ending", here, all, seconds=HURRY)
        except HostError as error:  # one is through already, or hangs
            log.warning("%s", error)
            return False

    def report_stall(self, why: str) -> None:
        """No step finishes: all processes dump their stacks and end with LOST."""
        if self.channel is None:
            self._lose(why, LOST, stalled=True, now=True)
        else:
            self.channel.notify({"what": "stall", "why": why})
            # Should the channel be dead as well, this process still ends.
            threading.Timer(2 * GRACE, self._lose, (why, LOST, True, True)).start()

    def failed(self, error: BaseException) -> BaseException:
        """This process ends by an error: tell the others; the error to show, which may be another.

        An error that another process's end has caused gives way to that.
        """
        if self.channel is None:
            return error
        with self._lock:
            self._leaving = True
        if self._lost is None and isinstance(error, jax.errors.JaxRuntimeError):
            self._failed_here.wait(GRACE)  # a collective that broke: word of why is on its way
        if self._lost is not None:
            return Lost(*self._lost)
        first = (str(error).splitlines() or [""])[0]
        self.channel.notify({"what": "failed", "why": f"{type(error).__name__}: {first}"})
        return error

    def lost(self) -> Lost | None:
        """Why an error here may be another process's end, after a moment for word of it to come."""
        if self.channel is None:
            return None
        self._failed_here.wait(GRACE)
        return None if self._lost is None else Lost(*self._lost)

    def end(self, code: int) -> None:
        """End this process, process 0 last: JAX's coordinator lives in it."""
        with self._lock:
            self._leaving = True
        if self.channel is not None:
            self.channel.close(seconds=LEAVE)
        end_now(code)

    def _heard(self, sender: int, content: dict) -> None:
        what = content["what"]
        if what == "ask":
            assert self._sync_point is not None
            if (
                self._sync_point.heard(content)
                and content["ask"] == "stop"
                and self.asked is not None
            ):
                self.asked(content["why"])
        elif what == "stall":
            self._lose(f"{self.name(sender)}: {content['why']}", LOST, stalled=True)
        elif what == "failed" and sender != self.index:
            self._lose(f"{self.name(sender)} failed: {content['why']}", FAILED)
        elif what == GONE:
            ended = f"{self.name(sender)} ended without a word (killed, or out of memory?)"
            self._lose(ended, LOST, now=sender == 0)
        elif what == SILENT:
            silent = f"no sign of life for {content['seconds']:.0f} s (stopped, or its host hangs?)"
            self._lose(f"{self.name(sender)} has given {silent}", LOST, now=sender == 0)

    def _lose(self, why: str, code: int, stalled: bool = False, now: bool = False) -> None:
        """The run cannot go on: this process ends, by itself or after GRACE."""
        with self._lock:
            if self._lost is not None:
                return
            self._lost = (why, code)
            self._failed_here.set()
            if self._leaving:
                return

        def end() -> None:
            with self._lock:
                if self._leaving and not stalled:
                    return  # the main thread got to know of it itself
            log.error("%s; this process ends. The last checkpoint stands.", why)
            if self.last_words is not None:
                with contextlib.suppress(OSError):
                    self.last_words(why, stalled)
            self.end(code)

        if now:
            end()
        else:
            timer = threading.Timer(0.0 if stalled else GRACE, end)
            timer.daemon = True
            timer.start()


_current = ProcessGroup()
_acting: ContextVar[ProcessGroup | None] = ContextVar("acting", default=None)


def current() -> ProcessGroup:
    """The processes of this process, or the part of it that it acts with."""
    return _acting.get() or _current


@contextlib.contextmanager
def acting(processes: ProcessGroup) -> Iterator[None]:
    """In this thread, this process group alone settles, fetches and writes."""
    token = _acting.set(processes)
    try:
        yield
    finally:
        _acting.reset(token)


def join(place: ProcessSpec | None, *, wait: float = WAIT, secret: bytes = b"") -> ProcessGroup:
    """Meet the other processes and start JAX's own coordination; must come before any device work.

    Raises HostError naming who does not come within `wait` seconds.
    """
    global _current
    _current = ProcessGroup(place, wait=wait, secret=secret)
    if place is not None and place.count > 1:
        # Ours: JAX's own takes SIGTERM away and knows nothing of what can be saved when.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(wait),
        )
    return _current


def fetch(x: jax.Array) -> np.ndarray:
    """The whole of an array whose parts other processes may hold; then all call it."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)


def together(function: Any) -> Callable:
    """A jitted function that several processes compile before any of them runs it.

    Collectives wait for others a limited time (on CPU 30 s), and who finds a program in the
    compilation cache is minutes ahead of who does not.
    """
    compiled: dict[tuple, Any] = {}

    @functools.wraps(function)
    def call(*args):
        if current().count == 1:
            return function(*args)
        leaves, structure = jax.tree.flatten(args)
        key = (structure, *((x.shape, x.dtype, x.sharding) for x in leaves))
        if key not in compiled:
            compiled[key] = function.lower(*args).compile()
            current().settle("compiled")
        return compiled[key](*args)

    return call


def _first(values):
    return values[0]
