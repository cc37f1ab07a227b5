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
        self._number = 0  # of things asked for
        self._asked: dict[int, tuple[str, str]] = {}  # number -> (what, why), in that order
        self._sync_point: dict[int, int] = {}  # number -> turn after which it is due

    def ask(self, what: str, why: str) -> None:
        """Ask all to do `what` at the same turn."""
        self._channel.notify({"what": "ask", "ask": what, "why": why})

    def awaits(self, what: str) -> bool:
        """Whether it was asked for and is still to come."""
        with self._lock:
            return any(asked == what for asked, _ in self._asked.values())

    def heard(self, content: dict[str, Any]) -> bool:
        """Some process asked; whether it is new. From here on no turn is taken but to catch up.

        What is asked for again has a turn of its own: one process may have done it already where
        another has yet to, and all must settle the same things.
        """
        what = content["ask"]
        with self._lock:
            new = all(asked != what for asked, _ in self._asked.values())
            self._number += 1  # the same everywhere: notices have one order
            self._asked[self._number] = (what, content["why"])
            self._channel.give(f"turn {self._number}", self._taken, max)
        return new

    def take(self) -> dict[str, str]:
        """{what: why} of what is due before this turn. Raises HostError if another is silent."""
        while True:
            with self._lock:
                unknown = [number for number in self._asked if number not in self._sync_point]
                if not unknown:
                    return self._due()
            turn = self._channel.settled(f"turn {unknown[0]}", seconds=SECONDS)
            with self._lock:
                self._sync_point[unknown[0]] = turn

    def _due(self) -> dict[str, str]:
        due: dict[str, str] = {}
        for number in [n for n, turn in self._sync_point.items() if turn == self._taken]:
            what, why = self._asked.pop(number)
            due.setdefault(what, why)
            del self._sync_point[number]
        self._taken += 1
        return due
