"""How processes that take the same steps stop at the same one, without talking at every step.

Each counts its turns: the places, the same in all, before something that all do together. When one
is asked to stop (or to save), all hear of it, take no further turn until the furthest of them is
known, catch up with it, and do there what was asked. Nothing is sent as long as nobody asks.
"""

import threading
from typing import Any

from dinojax.distributed.channel import ControlChannel

SECONDS = 60.0  # for all to tell where they are; threads answer, so that it takes milliseconds


class SyncPoint:
    """The turns of one process; `heard` is called by the channel, `take` by the main thread."""

    def __init__(self, channel: ControlChannel):
        self._channel = channel
        self._taken = 0
        self._lock = threading.Lock()
        self._asked: dict[str, str] = {}  # what -> why, in the order of asking
        self._names: dict[str, str] = {}  # what -> name under which its turn is settled
        self._sync_point: dict[str, int] = {}  # what -> turn after which it is due
        self._number = 0  # of things asked for

    def ask(self, what: str, why: str) -> None:
        """Ask all to do `what` at the same turn."""
        self._channel.notify({"what": "ask", "ask": what, "why": why})

    def awaits(self, what: str) -> bool:
        """Whether it was asked for and is still to come."""
        with self._lock:
            return what in self._asked

    def heard(self, content: dict[str, Any]) -> bool:
        """Some process asked; whether it is new. From here on no turn is taken but to catch up."""
        what = content["ask"]
        with self._lock:
            if what in self._asked:
                return False
            self._asked[what] = content["why"]
            self._number += 1  # the same everywhere: notices have one order
            self._names[what] = f"turn {self._number}"
            self._channel.give(self._names[what], self._taken, max)
        return True

    def take(self) -> dict[str, str]:
        """{what: why} of what is due before this turn. Raises HostError if another is silent."""
        due = {}
        while True:
            with self._lock:
                unknown = [what for what in self._asked if what not in self._sync_point]
                if not unknown:
                    for what in [w for w, turn in self._sync_point.items() if turn == self._taken]:
                        due[what] = self._asked.pop(what)
                        del self._sync_point[what], self._names[what]
                    self._taken += 1
                    return due
                name = self._names[unknown[0]]
            turn = self._channel.settled(name, seconds=SECONDS)
            with self._lock:
                self._sync_point[unknown[0]] = turn
