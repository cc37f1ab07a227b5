"""The port of a run takes no orders from strangers, and a silent process is named."""

import json
import logging
import os
import queue
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dinojax.distributed import frames, meeting, secret
from dinojax.distributed.channel import SILENT, ControlChannel, HostError
from tests.support import several

SECONDS = 30.0


def opened(index, address, inbox, *, secret=b"ours", seconds=SECONDS, **how):
    channel = ControlChannel(
        index, 2, lambda sender, content: inbox.put((sender, content)), secret=secret, **how
    )
    try:
        return channel.open(address, me=f"host{index}", seconds=seconds)
    except HostError as error:
        return error


def connected(address):
    """A connection to process 0, as soon as it listens; read up to its first message."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            end = socket.create_connection(address, timeout=SECONDS)
            return end, frames.receive(end, deadline=deadline)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def hello(nonce, key=b"guessed"):
    said = {"index": 1, "count": 2, "me": "evil", "nonce": "0"}
    return {**said, "proof": frames.proof(key, nonce, *said.values())}


STRANGERS = {
    "garbage": lambda nonce: bytes(range(256)) * 20 + b"\n",
    "a web browser": lambda nonce: b"GET / HTTP/1.1\r\n\r\n",
    "a well-formed message of before": lambda nonce: b'{"index": 1, "count": 2, "me": "evil"}\n',
    "a message without the secret": lambda nonce: json.dumps(hello(nonce)).encode() + b"\n",
    "a proof for another number": lambda nonce: json.dumps(hello("1", b"ours")).encode() + b"\n",
    "another kind of JSON": lambda nonce: b"[1]\n",
    "containers without end": lambda nonce: b"[" * 60_000 + b"\n",
    "a line without end": lambda nonce: b"x" * (frames.MAX_HELLO + 10),
    "nothing": lambda nonce: b"",
}


def test_strangers_are_dropped_and_told_of_once_while_the_run_meets(caplog):
    """Those who say nothing keep nobody waiting either."""
    address, inboxes = ("127.0.0.1", several.free_port()), [queue.Queue(), queue.Queue()]
    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.WARNING):
        first = pool.submit(opened, 0, address, inboxes[0])
        ends = []
        for said in STRANGERS.values():
            end, greeting = connected(address)
            end.sendall(said(greeting["nonce"]))
            ends.append(end)
        assert not first.done()
        began = time.monotonic()
        second = pool.submit(opened, 1, address, inboxes[1])
        channels = [first.result(SECONDS), second.result(SECONDS)]
    assert time.monotonic() - began < meeting.GREETING  # that of those who say nothing
    assert all(isinstance(channel, ControlChannel) for channel in channels), channels
    assert channels[0].name(1) == "process 1 (host1)"
    assert sum("none of the run's processes" in text for text in caplog.messages) == 1
    channels[1].notify({"what": "a"})
    assert inboxes[0].get(timeout=SECONDS) == (1, {"what": "a"})
    for end in ends:
        end.close()
    with pytest.raises(OSError):  # nobody can call any more
        socket.create_connection(address, timeout=1.0)
    for channel in channels[::-1]:
        channel.close(seconds=0.5)  # nobody ends, as processes would


def test_processes_with_other_secrets_are_told_so_and_process_0_counts_them():
    address = ("127.0.0.1", several.free_port())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(opened, 0, address, queue.Queue(), seconds=2.0)
        second = pool.submit(opened, 1, address, queue.Queue(), secret=b"theirs")
        errors = [first.result(), second.result()]
    assert "--process-id 1" in str(errors[0]) and "1 connections of others" in str(errors[0])
    assert "another secret" in str(errors[1]) and "DINOJAX_SECRET" in str(errors[1])


def test_a_stranger_in_the_place_of_process_0_is_not_believed():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def fake():
            end = server.accept()[0]
            frames.send(end, {"nonce": "0"})
            frames.receive(end, deadline=time.monotonic() + SECONDS)
            frames.send(end, {"answer": {"names": ["evil", "host1"]}, "proof": "0"})
            end.close()

        thread = threading.Thread(target=fake)
        thread.start()
        error = opened(1, ("127.0.0.1", server.getsockname()[1]), queue.Queue())
        thread.join()
    assert "another secret" in str(error)


def test_the_secret_of_a_run_is_made_once_and_read_by_its_owner_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(secret.VARIABLE, raising=False)
    run = tmp_path / "run"
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: secret.of_run(run), range(8)))
    assert len(found) == 1 and len(found.pop()) == secret.LENGTH
    assert stat.S_IMODE((run / secret.FILE).stat().st_mode) == 0o600
    assert secret.of_run(tmp_path / "other") != secret.of_run(run)
    (run / secret.FILE).chmod(0o644)
    with pytest.raises(ValueError, match="read by others"):
        secret.of_run(run)
    monkeypatch.setenv(secret.VARIABLE, "ours")
    assert secret.of_run(run) == b"ours"


def test_no_secret_is_left_in_a_folder_that_is_no_run(tmp_path, monkeypatch):
    monkeypatch.delenv(secret.VARIABLE, raising=False)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="no run directory"):
        secret.of_run(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


PEER = """
import sys, time
from dinojax.distributed.channel import ControlChannel
channel = ControlChannel(1, 2, lambda *_: None, secret=b"ours", beat=0.1, silence=600.0)
channel.open(("127.0.0.1", int(sys.argv[1])), me="host1", seconds=60.0)
print("MET", flush=True)
time.sleep(600)
"""


def test_a_stopped_process_is_named_by_its_silence_and_a_busy_one_is_not():
    port, inbox = several.free_port(), queue.Queue()
    peer = subprocess.Popen([sys.executable, "-c", PEER, str(port)], stdout=subprocess.PIPE)
    try:
        address = ("127.0.0.1", port)
        channel = opened(0, address, inbox, beat=0.1, silence=3.0, seconds=60.0)
        assert peer.stdout.readline() == b"MET\n"
        with pytest.raises(queue.Empty):
            inbox.get(timeout=4.0)
        os.kill(peer.pid, signal.SIGSTOP)
        sender, content = inbox.get(timeout=SECONDS)
        assert (sender, content["what"]) == (1, SILENT) and content["seconds"] > 3.0
    finally:
        peer.kill()
        peer.wait()
        peer.stdout.close()
    channel.close(seconds=0.5)
