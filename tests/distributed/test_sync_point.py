"""Turns at which all processes act together, with a channel that is a table."""

import pytest

from dinojax.distributed.sync_point import SyncPoint


class Table:
    """The channel of one process: what all gave under a name, settled once they all did."""

    def __init__(self, given, count):
        self._given, self._count = given, count

    def give(self, name, value, combine):
        self._given.setdefault(name, []).append(value)

    def settled(self, name, *, seconds):
        assert len(self._given.get(name, ())) == self._count, f"{name} would be waited for"
        return max(self._given[name])


@pytest.fixture
def two():
    given = {}
    return [SyncPoint(Table(given, 2)) for _ in range(2)]


def ask(points, what, why="it"):
    return [point.heard({"what": "ask", "ask": what, "why": why}) for point in points]


def test_a_thing_asked_for_again_before_the_slower_process_did_it_is_done_twice_by_both(two):
    """The first process has forgotten the first save where the second has yet to make it."""
    fast, slow = two
    fast.take()
    ask(two, "save")
    assert fast.take() == {"save": "it"} and not fast.awaits("save") and slow.awaits("save")
    assert ask(two, "save", "again") == [True, False]
    assert fast.take() == {"save": "again"}
    assert [slow.take() for _ in range(3)] == [{}, {"save": "it"}, {"save": "again"}]


def test_what_is_asked_for_twice_at_one_turn_is_done_once(two):
    ask(two, "stop", "first"), ask(two, "stop", "second"), ask(two, "save")
    assert [point.take() for point in two] == [{"stop": "first", "save": "it"}] * 2
    assert not two[0].awaits("stop")
