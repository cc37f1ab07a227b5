"""Parts of a team: the processes that have devices of one student, who settle and save for it.

A crew looks like a team, so that what a student's processes do together is written once. Its main
process is its first one; process numbers are those of the whole run.
"""

from collections.abc import Sequence
from typing import Any

from dinojax.distributed.channel import Judge
from dinojax.distributed.process_group import SETTLE, Team


class Crew(Team):
    """Some processes of a team as one of these processes, or another of the team, sees them."""

    def __init__(self, team: Team, members: Sequence[int]):
        super().__init__()
        self.index, self.count, self.line = team.index, len(members), team.line
        self._team, self._members = team, tuple(members)

    @property
    def members(self) -> tuple[int, ...]:
        return self._members

    @property
    def is_main(self) -> bool:
        return self.index == self._members[0]

    @property
    def is_asked_to_stop(self) -> bool:
        return self._team.is_asked_to_stop

    def settle(self, what: str, value: Any = None, judge: Judge | None = None, seconds=SETTLE):
        """What `judge` makes of the values of all members, None = the value of the first one."""
        assert self.has_me
        values = [value]
        if self.count > 1:
            assert self.line is not None
            self._settled += 1
            name = f"{what} of {self._members} {self._settled}"
            values = self.line.gather(name, value, self._members, seconds=seconds)
        return values[0] if judge is None else judge(values)

    def ask(self, what: str, why: str) -> None:
        """Ask all processes of the run, for turns are theirs."""
        self._team.ask(what, why)


def of(team: Team, members: Sequence[int]) -> Team:
    """The crew of these processes, the team itself if they are all; always the same one."""
    if tuple(members) == team.members:
        return team
    # One for all students of the same processes: what is settled keeps its number.
    return team.crews.setdefault(tuple(members), Crew(team, members))
