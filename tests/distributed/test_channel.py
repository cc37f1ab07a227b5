"""The channel between processes and the turns that they take, here between threads of one."""

import contextlib
import queue
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dinojax.distributed.channel import GONE, ControlChannel, HostError
from dinojax.distributed.sync_point import SyncPoint
from tests.support import several

SECONDS = 30.0


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Every connection is closed at the end of a test."""
    opened, keep = [], ControlChannel.open
    monkeypatch.setattr(
        ControlChannel,
        "open",
        lambda channel, *args, **how: opened.append(channel) or keep(channel, *args, **how),
    )
    yield
    for channel in opened:
        cut(channel)
    for reader in [reader for channel in opened for reader in channel._readers]:
        reader.join(SECONDS)


def cut(channel) -> None:
    """As the kernel does for a process that is killed."""
    with channel._lock:  # a killed process says nothing more, not even that its connections close
        for end in channel._ends.values():
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def meet(count: int, *, given=None, seconds: float = SECONDS, address=None):
    """What came of each process's attempt: its channel, or the error; and what each has heard.

    given: (index, count) of every process that comes.
    """
    address = address or ("127.0.0.1", several.free_port())
    given = given or [(index, count) for index in range(count)]
    heard = [queue.Queue() for _ in given]

    def come(place, inbox):
        channel = ControlChannel(*place, lambda sender, content: inbox.put((sender, content)))
        try:
            return channel.open(address, me=f"host{place[0]}", seconds=seconds)
        except HostError as error:
            return error

    with ThreadPoolExecutor(len(given)) as pool:
        return list(pool.map(come, given, heard)), heard


def all_at_once(function, channels):
    with ThreadPoolExecutor(len(channels)) as pool:
        return list(pool.map(function, channels))


def test_what_is_settled_is_judged_over_the_values_of_all_in_order():
    channels, _ = meet(3)
    got = all_at_once(
        lambda channel: channel.settle("a", channel.index, list, seconds=SECONDS), channels
    )
    assert got == [[0, 1, 2]] * 3
    assert channels[2].name(1) == "process 1 (host1)"


def test_notices_reach_all_in_one_order():
    channels, heard = meet(3)
    all_at_once(
        lambda channel: [channel.notify({"what": f"{channel.index}-{i}"}) for i in range(5)],
        channels,
    )
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
    channels, _ = meet(2)
    with pytest.raises(HostError, match=r"process 1 \(host1\) did not answer"):
        channels[0].settle("a", 1, list, seconds=0.2)


@pytest.mark.parametrize("gone", [0, 1])
def test_all_hear_of_a_process_that_ends_without_a_word(gone):
    channels, heard = meet(3)
    cut(channels[gone])
    for index in {0, 1, 2} - {gone}:
        assert heard[index].get(timeout=SECONDS) == (gone, {"what": GONE})


def test_a_good_bye_is_not_mistaken_for_a_death():
    channels, heard = meet(2)
    channels[1].close(seconds=SECONDS)
    cut(channels[1])
    channels[0].close(seconds=SECONDS)
    assert not channels[0]._readers[0].is_alive()
    with pytest.raises(queue.Empty):
        heard[0].get(timeout=0.2)


def walk(count: int, num_turns: int, asks):
    """(turn, what, why) of what each of several processes did; asks: (index, turn, what)."""
    port, start = several.free_port(), threading.Barrier(count)

    def process(index):
        channel = ControlChannel(index, count, lambda sender, content: turns.heard(content))
        turns = SyncPoint(channel)
        channel.open(("127.0.0.1", port), me=f"host{index}", seconds=SECONDS)
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
        channel.close(seconds=0.0)
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
