"""A line between the processes of a run: plain TCP, so that it works when the devices do not.

Process 0 listens, all others call it. On the line they meet at the start, settle what none can
know alone, ask each other to stop, and learn at once who is gone: the kernel closes a connection
when its process ends, however. Messages are few and small; nothing is sent while nothing happens.
"""

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

# Until a connection whose other end vanished without a word counts as closed: 30 s.
KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
RETRY = 0.2  # seconds between two calls to a process 0 that does not answer yet
GONE = "gone"  # the notice in the name of a process that ended without a word

Combine = Callable[[Sequence[Any]], Any]  # the values of all processes, in order -> what holds


class HostError(ValueError):
    """The processes of a run do not fit together; the message says which, and the next move."""


class ControlChannel:
    """One process's end of the line. Values and notices are whatever JSON takes.

    `heard(sender, content)` receives every notice, the own ones too, in threads of the line and in
    one order in all processes; it must not block.
    """

    def __init__(self, index: int, count: int, heard: Callable[[int, dict], None]):
        self.index, self.count, self._heard = index, count, heard
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
        deadline = time.monotonic() + seconds
        self._names[self.index] = me
        if self.index == 0:
            self._ends = self._listen(address, deadline, seconds)
        else:
            self._ends = {0: self._call(address, deadline, seconds)}
        for other, end in self._ends.items():
            end.settimeout(None)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEP_ALIVE.items():
                if hasattr(socket, name):  # not everywhere
                    end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
            reader = threading.Thread(target=self._read, args=(other, end), daemon=True)
            self._readers.append(reader)
            reader.start()
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
        for other in list(self._ends):
            self._tell(other, {"bye": True})
        deadline = time.monotonic() + seconds
        for reader in self._readers if self.index == 0 else ():
            reader.join(max(deadline - time.monotonic(), 0.0))

    # -- meeting -------------------------------------------------------------------------------

    def _listen(self, address, deadline: float, seconds: float) -> dict[int, socket.socket]:
        ends: dict[int, socket.socket] = {}
        try:
            server = socket.create_server(("", address[1]), backlog=self.count)
        except OSError as error:
            raise HostError(
                f"port {address[1]} of this host cannot be listened on ({error.strerror}); if "
                "another run holds it, choose another --coordinator HOST:PORT (it and the next one)"
            ) from error
        refused: str | None = None
        with server:
            while len(ends) < self.count - 1 and refused is None:
                try:
                    server.settimeout(max(deadline - time.monotonic(), 0.01))
                    end = server.accept()[0]
                except TimeoutError:
                    refused = self._missing(ends, seconds)
                    break
                try:
                    end.settimeout(max(deadline - time.monotonic(), 0.01))
                    hello = _receive(end)
                    if (refused := self._fault(hello, ends)) is None:
                        ends[hello["index"]] = end
                        self._names[hello["index"]] = hello["me"]
                    else:
                        _send(end, {"refused": refused})
                        end.close()
                except (OSError, ValueError, KeyError, TypeError):
                    end.close()  # something else that tries ports, or a process that died
        names = [self._names.get(i) for i in range(self.count)]
        for end in ends.values():
            with contextlib.suppress(OSError):
                _send(end, {"refused": refused} if refused else {"names": names})
            if refused:
                end.close()
        if refused:
            raise HostError(refused)
        return ends

    def _missing(self, ends, seconds: float) -> str:
        missing = [str(i) for i in range(1, self.count) if i not in ends]
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        return (
            f"{len(missing)} of {self.count} processes did not come within {seconds:.0f} s: "
            f"--process-id {', '.join(missing[:20])}{more}. Start one process per host, all with "
            "the same --coordinator and --num-processes, and look at what those printed."
        )

    def _fault(self, hello: dict, ends) -> str | None:
        who, number = hello["me"], hello["index"]
        if hello["count"] != self.count:
            return (
                f"{who} was started with --num-processes {hello['count']}, process 0 with "
                f"{self.count}; give all the same."
            )
        if number not in range(1, self.count) or number in ends:
            taken = f", which {self._names[number]} has" if number in self._names else ""
            return (
                f"{who} was started with --process-id {number}{taken}; give each of 0 to "
                f"{self.count - 1} to one process."
            )
        return None

    def _call(self, address, deadline: float, seconds: float) -> socket.socket:
        where = f"{address[0]}:{address[1]}"
        while True:
            left = deadline - time.monotonic()
            try:
                end = socket.create_connection(address, timeout=max(left, 0.01))
                break
            except OSError as error:
                if left > RETRY:
                    time.sleep(RETRY)
                    continue
                raise HostError(
                    f"process 0 did not answer at {where} within {seconds:.0f} s ({error}). Is it "
                    "running, is --coordinator its address as seen from here, is the port open?"
                ) from error
        try:
            # Longer than process 0 waits for others, so that it can say who is missing.
            end.settimeout(max(deadline - time.monotonic(), 0.0) + seconds)
            me = self._names[self.index]
            _send(end, {"index": self.index, "count": self.count, "me": me})
            answer = _receive(end)
        except (OSError, ValueError) as error:
            end.close()
            raise HostError(
                f"process 0 at {where} ended before all had met ({error}); see its log."
            ) from error
        if "refused" in answer:
            end.close()
            raise HostError(answer["refused"])
        self._names = dict(enumerate(answer["names"]))
        return end

    # -- talking -------------------------------------------------------------------------------

    def _tell(self, other: int, message: dict) -> None:
        with self._lock, contextlib.suppress(OSError):  # who is gone is noticed by its reader
            _send(self._ends[other], message)

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
        with contextlib.suppress(OSError, ValueError), end, end.makefile("r") as lines:
            for text in lines:
                message = json.loads(text)
                if self.index:
                    self._deliver(message)
                elif "name" in message:
                    self._take(other, message["name"], message["value"], message.get("among"))
                elif "bye" in message:
                    self._said_bye.add(other)
                else:
                    self._broadcast({"notice": message["notice"], "sender": other})
        if other in self._said_bye:
            return
        gone = {"notice": {"what": GONE}, "sender": other}
        if self.index:
            self._deliver(gone)
        else:
            self._broadcast(gone)

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


def _send(end: socket.socket, message: dict) -> None:
    end.sendall((json.dumps(message) + "\n").encode())


def _receive(end: socket.socket) -> dict:
    """One message, byte by byte: what follows it belongs to the reader."""
    text = b""
    while not text.endswith(b"\n"):
        part = end.recv(1)
        if not part:
            raise OSError("the connection was closed")
        text += part
        if len(text) > 1 << 20:
            raise ValueError("no message of dinojax")
    return json.loads(text)
