"""The line between processes and the turns that they take, here between threads of one."""

import contextlib
import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dinojax.distributed.channel import GONE, HostError, Line
from dinojax.distributed.sync_point import Turns
from tests.support import several

SECONDS = 30.0


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Every connection is closed at the end of a test."""
    opened, keep = [], Line.open
    monkeypatch.setattr(
        Line, "open", lambda line, *args, **how: opened.append(line) or keep(line, *args, **how)
    )
    yield
    for line in opened:
        cut(line)
    for reader in [reader for line in opened for reader in line._readers]:
        reader.join(SECONDS)


def cut(line) -> None:
    """As the kernel does for a process that is killed."""
    with line._lock:  # a killed process says nothing more, not even that its connections close
        for end in line._ends.values():
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def meet(count: int, *, given=None, seconds: float = SECONDS, address=None):
    """What came of each process's attempt: its line, or the error; and what each has heard.

    given: (index, count) of every process that comes.
    """
    address = address or ("127.0.0.1", several.free_port())
    given = given or [(index, count) for index in range(count)]
    heard = [queue.Queue() for _ in given]

    def come(place, inbox):
        line = Line(*place, lambda sender, content: inbox.put((sender, content)))
        try:
            return line.open(address, me=f"host{place[0]}", seconds=seconds)
        except HostError as error:
            return error

    with ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(come, given, heard)), heard


def all_at_once(function, lines):
    with ThreadPoolExecutor(len(lines)) as pool:
        return list(pool.map(function, lines))


def test_what_is_settled_is_judged_over_the_values_of_all_in_order():
    lines, _ = meet(3)
    got = all_at_once(lambda line: line.settle("a", line.index, list, seconds=SECONDS), lines)
    assert got == [[0, 1, 2]] * 3
    assert lines[2].name(1) == "process 1 (host1)"


def test_notices_reach_all_in_one_order():
    lines, heard = meet(3)
    all_at_once(lambda line: [line.notify({"what": f"{line.index}-{i}"}) for i in range(5)], lines)
    got = [[inbox.get(timeout=SECONDS) for _ in range(15)] for inbox in heard]
    assert got[0] == got[1] == got[2]
    assert {sender for sender, _ in got[0]} == {0, 1, 2}


def test_a_missing_process_is_named_within_the_deadline():
    errors, _ = meet(3, given=[(0, 3), (2, 3)], seconds=2.0)
    for error in errors:
        assert "1 of 3 processes did not come" in str(error) and "--process-id 1" in str(error)


def test_a_missing_process_0_is_told_with_its_address():
    errors, _ = meet(2, given=[(1, 2)], seconds=0.5)
    assert "process 0 did not answer at 127.0.0.1:" in str(errors[0])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([(0, 2), (1, 3)], "--num-processes 3, process 0 with 2"),
        ([(0, 3), (1, 3), (1, 3)], "--process-id 1, which host1 has"),
        ([(0, 2), (5, 2)], "--process-id 5"),
    ],
)
def test_processes_that_do_not_fit_are_refused_with_the_reason(given, told):
    errors, _ = meet(2, given=given)
    assert all(told in str(error) for error in errors), errors


def test_a_port_that_is_taken_is_an_error_with_the_way_on():
    with socket.create_server(("", 0)) as server:
        errors, _ = meet(2, given=[(0, 2)], address=("127.0.0.1", server.getsockname()[1]))
    assert "choose another --coordinator" in str(errors[0])


def test_who_does_not_answer_is_named():
    lines, _ = meet(2)
    with pytest.raises(HostError, match=r"process 1 \(host1\) did not answer"):
        lines[0].settle("a", 1, list, seconds=0.2)


@pytest.mark.parametrize("gone", [0, 1])
def test_all_hear_of_a_process_that_ends_without_a_word(gone):
    lines, heard = meet(3)
    cut(lines[gone])
    for index in {0, 1, 2} - {gone}:
        assert heard[index].get(timeout=SECONDS) == (gone, {"what": GONE})


def test_a_good_bye_is_not_mistaken_for_a_death():
    lines, heard = meet(2)
    lines[1].close(seconds=SECONDS)
    cut(lines[1])
    lines[0].close(seconds=SECONDS)
    assert not lines[0]._readers[0].is_alive()
    with pytest.raises(queue.Empty):
        heard[0].get(timeout=0.2)


def walk(count: int, num_turns: int, asks):
    """(turn, what, why) of what each of several processes did; asks: (index, turn, what)."""
    port, start = several.free_port(), threading.Barrier(count)

    def process(index):
        line = Line(index, count, lambda sender, content: turns.heard(content))
        turns = Turns(line)
        line.open(("127.0.0.1", port), me=f"host{index}", seconds=SECONDS)
        start.wait()
        acted = []
        for turn in range(num_turns):
            for who, when, what in asks:
                if (who, when) == (index, turn):
                    turns.ask(what, f"{what} of {index}")
            acted += [(turn, what, why) for what, why in turns.take().items()]
            # Nobody runs ahead for ever: what follows a turn is done by all together.
            if turn % 3 == index % 3:
                threading.Event().wait(0.002)
        with contextlib.suppress(threading.BrokenBarrierError):
            start.wait(SECONDS)
        line.close(seconds=0.0)
        return acted

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(process, range(count)))


def test_all_act_at_the_same_turn_however_far_apart_they_are():
    asks = [(1, 20, "stop"), (0, 5, "save"), (2, 21, "stop"), (0, 60, "save")]
    acted = walk(3, 200, asks)
    assert acted[0] == acted[1] == acted[2]
    assert [what for _, what, _ in acted[0]].count("save") == 2
    assert "stop" in [what for _, what, _ in acted[0]]


def test_without_asking_nothing_is_due():
    assert walk(2, 30, []) == [[], []]
