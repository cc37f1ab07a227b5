"""Parts of a process group: those that have devices of one student settle and save for it.

A part looks like a process group, so that what a student's processes do together is written once.
Its main process is its first one; process numbers are those of the whole run.
"""

from collections.abc import Sequence
from typing import Any

from dinojax.distributed.channel import Combine
from dinojax.distributed.interrupt import Lost
from dinojax.distributed.process_group import SETTLE, ProcessGroup


class Subgroup(ProcessGroup):
    """Some processes of a group, as one of them or another of the group sees them."""

    def __init__(self, processes: ProcessGroup, members: Sequence[int]):
        super().__init__()
        self.index, self.count, self.channel = processes.index, len(members), processes.channel
        self._processes, self._members = processes, tuple(members)

    @property
    def members(self) -> tuple[int, ...]:
        return self._members

    @property
    def is_main(self) -> bool:
        return self.index == self._members[0]

    @property
    def is_asked_to_stop(self) -> bool:
        return self._processes.is_asked_to_stop

    def settle(self, what: str, value: Any = None, combine: Combine | None = None, seconds=SETTLE):
        """What `combine` makes of the values of all members, None = the value of the first one."""
        assert self.has_me
        values = [value]
        if self.count > 1:
            assert self.channel is not None
            self._settled += 1
            name = f"{what} of {self._members} {self._settled}"
            values = self.channel.gather(name, value, self._members, seconds=seconds)
        return values[0] if combine is None else combine(values)

    def lost(self) -> Lost | None:
        return self._processes.lost()

    def ask(self, what: str, why: str) -> None:
        """Ask all processes of the run, for turns are theirs."""
        self._processes.ask(what, why)


def of(processes: ProcessGroup, members: Sequence[int]) -> ProcessGroup:
    """The part of these processes, the group itself if they are all; always the same one."""
    if tuple(members) == processes.members:
        return processes
    # One for all students of the same processes: what is settled keeps its number.
    return processes.subgroups.setdefault(tuple(members), Subgroup(processes, members))
