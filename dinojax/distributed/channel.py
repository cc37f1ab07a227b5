"""A line between the processes of a run: plain TCP, so that it works when the devices do not.

Process 0 listens, all others call it. On the line they meet at the start, settle what none can
know alone, ask each other to stop, and learn at once who is gone: the kernel closes a connection
when its process ends, however. Messages are few and small. A thread of each process says every BEAT
seconds that it is there, whatever else it does: a process that is stopped, or whose host hangs, is
noticed by its silence.
"""

import contextlib
import json
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from dinojax.distributed import meeting
from dinojax.distributed.frames import MAX_FRAME, send
from dinojax.distributed.meeting import HostError as HostError

log = logging.getLogger(__name__)

# Until a connection whose other end vanished without a word counts as closed: 30 s.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
BEAT = 5.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one after which a process counts as hanging
GONE = "gone"  # the notice in the name of a process that ended without a word
SILENT = "silent"  # the notice in the name of a process that gives no sign of life; with `seconds`

Combine = Callable[[Sequence[Any]], Any]  # the values of all processes, in order -> what holds


class ControlChannel:
    """One process's end of the line. Values and notices are whatever JSON takes.

    `heard(sender, content)` receives every notice, the own ones too, in threads of the line and in
    one order in all processes; it must not block.
    """

    def __init__(
        self,
        index: int,
        count: int,
        heard: Callable[[int, dict], None],
        *,
        secret: bytes = b"",
        beat: float = BEAT,
        silence: float = SILENCE,
    ):
        """secret: of the run (secret.py). beat, silence: in seconds, as above."""
        self.index, self.count, self._heard, self._secret = index, count, heard, secret
        self._beat, self._silence = beat, silence
        self._quiet: dict[int, float] = {}  # seconds since the others' last signs of life
        self._closed = threading.Event()
        self._lock = threading.RLock()  # of all below; also keeps messages in one order
        self._ends: dict[int, socket.socket] = {}  # of process 0: all others; else process 0 alone
        self._names: dict[int, str] = {}
        self._said_bye: set[int] = set()
        self._readers: list[threading.Thread] = []
        self._judges: dict[str, Combine] = {}  # of process 0
        self._given: dict[str, dict[int, Any]] = {}  # of process 0
        self._among: dict[str, Sequence[int]] = {}  # of process 0: whose values count, if not all's
        self._results: dict[str, queue.Queue] = {}

    def open(self, address: tuple[str, int], *, me: str, seconds: float) -> "ControlChannel":
        """Meet the others. me: this process in words, for their messages.

        Raises HostError after `seconds`, naming who is missing.
        """
        if self.index == 0:
            self._ends, self._names = meeting.listen(
                address, self.count, me, self._secret, seconds=seconds
            )
        else:
            end, self._names = meeting.call(
                address, self.index, self.count, me, self._secret, seconds=seconds
            )
            self._ends = {0: end}
        for other, end in self._ends.items():
            self._quiet[other] = 0.0
            end.settimeout(None)
            # Who does not read must not keep the others from talking.
            limit = struct.pack("@ll", max(int(self._silence), 1), 0)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else answers wait 40 ms
            for name, value in KEEP_ALIVE.items():
                if hasattr(socket, name):  # not everywhere
                    end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            reader = threading.Thread(target=self._read, args=(other, end), daemon=True)
            self._readers.append(reader)
            reader.start()
        threading.Thread(target=self._keep_beating, daemon=True).start()
        return self

    def name(self, index: int) -> str:
        """A process in words."""
        return f"process {index} ({self._names.get(index, 'unknown')})"

    def settle(self, name: str, value: Any, combine: Combine, *, seconds: float) -> Any:
        """What `combine` makes, in process 0, of the values of all; every process calls it.

        name: another one in each call. Raises HostError after `seconds`, naming who is late.
        """
        self.give(name, value, combine)
        return self.settled(name, seconds=seconds)

    def gather(self, name: str, value: Any, among: Sequence[int], *, seconds: float) -> list[Any]:
        """The values of some processes, in the order of `among`; each of these calls it.

        Raises as `settle`.
        """
        if self.index:
            self._tell(0, {"name": name, "value": value, "among": list(among)})
        else:
            self._take(0, name, value, among)
        return self.settled(name, seconds=seconds)

    def give(self, name: str, value: Any, combine: Combine) -> None:
        """This process's value of what `settled` waits for."""
        if self.index:
            self._tell(0, {"name": name, "value": value})
            return
        with self._lock:
            self._judges[name] = combine
            self._take(0, name, value)

    def settled(self, name: str, *, seconds: float) -> Any:
        try:
            return self._result(name).get(timeout=seconds)
        except queue.Empty:
            pass
        late = "see the log of process 0"
        if self.index == 0:
            with self._lock:
                wanted, given = self._among.get(name, range(self.count)), self._given.get(name, {})
                absent = [i for i in wanted if i not in given]
            late = f"{', '.join(map(self.name, absent))} did not answer"
        raise HostError(f"the processes did not settle `{name}` within {seconds:.0f} s: {late}.")

    def notify(self, content: dict) -> None:
        """Tell all, this process too."""
        if self.index:
            self._tell(0, {"notice": content})
        else:
            self._broadcast({"notice": content, "sender": 0})

    def close(self, *, seconds: float) -> None:
        """Say good-bye. Process 0 waits until the others have ended, so that it is the last."""
        self._closed.set()
        for other in list(self._ends):
            self._tell(other, {"bye": True})
        deadline = time.monotonic() + seconds
        for reader in self._readers if self.index == 0 else ():
            reader.join(max(deadline - time.monotonic(), 0.0))

    # -- talking -------------------------------------------------------------------------------

    def _tell(self, other: int, message: dict) -> None:
        with self._lock:
            try:
                send(self._ends[other], message)
            except OSError:  # who is gone is noticed by its reader
                with contextlib.suppress(OSError):  # half a message is no message
                    self._ends[other].shutdown(socket.SHUT_RDWR)

    def _broadcast(self, message: dict) -> None:
        with self._lock:
            for other in self._ends:
                self._tell(other, message)
            self._deliver(message)

    def _deliver(self, message: dict) -> None:
        if "settled" in message:
            self._result(message["settled"]).put(message["value"])
        elif "bye" in message:
            self._said_bye.add(0)
        else:
            self._heard(message["sender"], message["notice"])

    def _read(self, other: int, end: socket.socket) -> None:
        try:
            with end, end.makefile("rb") as lines:
                while line := lines.readline(MAX_FRAME + 1):
                    if len(line) > MAX_FRAME:
                        raise ValueError(f"a message of more than {MAX_FRAME} bytes")
                    self._quiet[other] = 0.0
                    self._receive(other, json.loads(line))
        except OSError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.error("%s sent what is no message: %s", self.name(other), error)
        if other not in self._said_bye:
            self._in_the_name_of(other, {"what": GONE})

    def _receive(self, other: int, message: dict) -> None:
        if "beat" in message:
            return
        if self.index:
            self._deliver(message)
        elif "name" in message:
            self._take(other, message["name"], message["value"], message.get("among"))
        elif "bye" in message:
            self._said_bye.add(other)
        else:
            self._in_the_name_of(other, message["notice"])

    def _in_the_name_of(self, other: int, notice: dict) -> None:
        message = {"notice": notice, "sender": other}
        if self.index:
            self._deliver(message)
        else:
            self._broadcast(message)

    def _keep_beating(self) -> None:
        """Say that this process is there, and notice who does not, once each."""
        before, told = time.monotonic(), set[int]()
        while not self._closed.wait(self._beat):
            now = time.monotonic()
            for other in set(self._ends) - self._said_bye - told:
                self._tell(other, {"beat": True})
                # A machine or a process that was stopped for a while has not listened either.
                self._quiet[other] += min(now - before, 2 * self._beat)
                if self._quiet[other] > self._silence:
                    told.add(other)
                    notice = {"what": SILENT, "seconds": self._quiet[other]}
                    self._in_the_name_of(other, notice)
            before = now

    def _take(self, sender: int, name: str, value: Any, among: Sequence[int] | None = None) -> None:
        """In process 0: a value has come; when all have, the result goes out."""
        with self._lock:
            given = self._given.setdefault(name, {})
            given[sender] = value
            if among is not None:
                self._among[name] = among
            wanted = range(self.count) if among is None else among
            if len(given) < len(wanted):
                return
            values = [given[i] for i in wanted]
            del self._given[name]
            if among is None:
                self._broadcast({"settled": name, "value": self._judges.pop(name)(values)})
                return
            del self._among[name]
            for member in among:
                message = {"settled": name, "value": values}
                self._tell(member, message) if member else self._deliver(message)

    def _result(self, name: str) -> queue.Queue:
        with self._lock:
            return self._results.setdefault(name, queue.Queue())
