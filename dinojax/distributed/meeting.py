"""How processes of a run meet: process 0 listens, all others call it, and both show who they are.

Each side sends a number used once and proves that it knows the run's secret (secret.py). Whoever
does not is dropped and counted: it can neither join, nor end the run, nor keep others waiting.
"""

import contextlib
import logging
import queue
import secrets
import socket
import threading
import time

from dinojax.distributed.frames import MAX_FRAME, is_proof, proof, receive, send

log = logging.getLogger(__name__)

RETRY = 0.2  # seconds between two calls to a process 0 that does not answer yet
GREETING = 10.0  # seconds in which whoever calls must have shown who it is
MORE = 64  # who may be doing so at once, beside the processes of the run

Address = tuple[str, int]


class HostError(ValueError):
    """The processes of a run do not fit together; the message says which, and the next move."""


def listen(
    address: Address, count: int, me: str, secret: bytes, *, seconds: float
) -> tuple[dict[int, socket.socket], dict[int, str]]:
    """In process 0: connections and names of all others. Raises HostError, in them too."""
    return _Host(count, me, secret).meet(address, seconds)


class _Host:
    """Process 0 while the others come."""

    def __init__(self, count: int, me: str, secret: bytes):
        self._count, self._secret = count, secret
        self._ends: dict[int, socket.socket] = {}
        self._names, self._nonces = {0: me}, dict[int, str]()
        self._greeted: queue.Queue[tuple[dict, socket.socket]] = queue.Queue()
        self._room = threading.Semaphore(count + MORE)
        self._strangers = 0

    def meet(self, address: Address, seconds: float):
        deadline = time.monotonic() + seconds
        try:
            server = socket.create_server(("", address[1]), backlog=self._count + MORE)
        except OSError as error:
            raise HostError(
                f"port {address[1]} of this host cannot be listened on ({error.strerror}); if "
                "another run holds it, choose another --coordinator HOST:PORT (it and the next one)"
            ) from error
        refused: str | None = None
        with server:
            server.settimeout(RETRY / 4)
            while len(self._ends) < self._count - 1 and refused is None:
                self._accept(server)
                with contextlib.suppress(queue.Empty):
                    while refused is None:
                        refused = self._seat(*self._greeted.get_nowait())
                if refused is None and time.monotonic() > deadline:
                    refused = self._missing(seconds)
        self._answer(refused)
        if refused:
            raise HostError(refused)
        return self._ends, self._names

    def _accept(self, server: socket.socket) -> None:
        try:
            end = server.accept()[0]
        except TimeoutError:
            return
        if self._room.acquire(blocking=False):
            threading.Thread(target=self._greet, args=(end,), daemon=True).start()
        else:
            end.close()  # one of us calls again

    def _greet(self, end: socket.socket) -> None:
        """In a thread for each that calls, so that none keeps another waiting."""
        deadline, nonce = time.monotonic() + GREETING, secrets.token_hex(16)
        try:
            end.settimeout(GREETING)
            send(end, {"nonce": nonce})
            hello = receive(end, deadline=deadline)
            said = [hello[name] for name in ("index", "count", "me", "nonce")]
            if not is_proof(hello["proof"], self._secret, nonce, *said):
                send(end, {"stranger": True})
                raise ValueError("it does not know the secret")
            self._greeted.put((hello, end))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            end.close()  # something else that tries ports, or a process that died
            self._strangers += 1
            if self._strangers == 1:
                log.warning("somebody who is none of the run's processes calls (%s)", error)
        finally:
            self._room.release()

    def _seat(self, hello: dict, end: socket.socket) -> str | None:
        """Take in one of us; why not, if it does not fit."""
        who, number = hello["me"], hello["index"]
        fault = None
        if hello["count"] != self._count:
            fault = (
                f"{who} was started with --num-processes {hello['count']}, process 0 with "
                f"{self._count}; give all the same."
            )
        elif number not in range(1, self._count) or number in self._ends:
            taken = f", which {self._names[number]} has" if number in self._names else ""
            fault = (
                f"{who} was started with --process-id {number}{taken}; give each of 0 to "
                f"{self._count - 1} to one process."
            )
        if fault is None:
            self._ends[number], self._names[number] = end, who
            self._nonces[number] = hello["nonce"]
        else:
            self._say(end, hello["nonce"], {"refused": fault})
            end.close()
        return fault

    def _answer(self, refused: str | None) -> None:
        names = [self._names.get(i) for i in range(self._count)]
        for index, end in self._ends.items():
            self._say(
                end, self._nonces[index], {"refused": refused} if refused else {"names": names}
            )
            if refused:
                end.close()

    def _say(self, end: socket.socket, nonce: str, content: dict) -> None:
        with contextlib.suppress(OSError):
            send(end, {"answer": content, "proof": proof(self._secret, nonce, content)})

    def _missing(self, seconds: float) -> str:
        missing = [str(i) for i in range(1, self._count) if i not in self._ends]
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        others = (
            f" {self._strangers} connections of others were dropped: who is one of the run's "
            "processes sees the same --run, or has the same DINOJAX_SECRET."
        )
        return (
            f"{len(missing)} of {self._count} processes did not come within {seconds:.0f} s: "
            f"--process-id {', '.join(missing[:20])}{more}. Start one process per host, all with "
            "the same --coordinator and --num-processes, and look at what those printed."
            f"{others if self._strangers else ''}"
        )


def call(
    address: Address, index: int, count: int, me: str, secret: bytes, *, seconds: float
) -> tuple[socket.socket, dict[int, str]]:
    """In another process: the connection to process 0, and the names of all. Raises HostError."""
    deadline, where = time.monotonic() + seconds, f"{address[0]}:{address[1]}"
    end, theirs = _reach(address, where, deadline, seconds)
    said = [index, count, me, secrets.token_hex(16)]
    hello = dict(zip(("index", "count", "me", "nonce"), said, strict=True))
    try:
        send(end, {**hello, "proof": proof(secret, theirs, *said)})
        # Longer than process 0 waits for others, so that it can say who is missing.
        late = max(deadline, time.monotonic()) + seconds
        found = receive(end, deadline=late, limit=MAX_FRAME)
        answer = found.get("answer", {})
        known = is_proof(found.get("proof"), secret, said[-1], answer)
    except (OSError, ValueError) as error:
        end.close()
        raise HostError(
            f"process 0 at {where} ended before all had met ({error}); see its log."
        ) from error
    if known and "names" in answer:
        return end, dict(enumerate(answer["names"]))
    end.close()
    if known:
        raise HostError(answer["refused"])
    raise HostError(
        f"process 0 at {where} has another secret than this process. Put --run on storage that all "
        "hosts mount at the same path, or give all processes the same DINOJAX_SECRET; if another "
        "run holds the port, choose another --coordinator."
    )


def _reach(address: Address, where: str, deadline: float, seconds: float):
    """A connection on which process 0 has sent its number."""
    while True:
        left = max(deadline - time.monotonic(), 0.01)
        try:
            end = socket.create_connection(address, timeout=left)
            try:
                return end, receive(end, deadline=time.monotonic() + left)["nonce"]
            except BaseException:
                end.close()
                raise
        except (OSError, ValueError, KeyError) as error:
            if left > RETRY:
                time.sleep(RETRY)
                continue
            raise HostError(
                f"process 0 did not answer at {where} within {seconds:.0f} s ({error}). Is it "
                "running, is --coordinator its address as seen from here, is the port open?"
            ) from error
