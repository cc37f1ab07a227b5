"""One process per run directory, whatever becomes of it."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from dinojax import config
from dinojax.cli import main
from dinojax.files.drafts import NotOurs
from dinojax.runs import lock
from dinojax.runs.directory import occupy

HOLD = """
import sys, time
from pathlib import Path
from dinojax.files.drafts import NotOurs
from dinojax.runs import lock
with lock.held(Path(sys.argv[1])):
    print("HOLDS", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "HOLDS\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_by_the_name_of_the_first(holder, tmp_path, capsys):
    saved = tmp_path / "run" / "config.json"
    config.save(config.load("tiny", ["log.every=7"]), saved)
    before = saved.read_text()
    args = ["train", "--config", "tiny", "--run", str(tmp_path / "run")]
    assert main.main(args) == main.REFUSED
    told = capsys.readouterr().err
    assert f"in use by process {holder.pid} on {socket.gethostname()} since" in told
    assert "Traceback" not in told
    assert saved.read_text() == before
    with occupy(tmp_path / "another"):
        pass


def test_the_lock_of_a_process_that_was_killed_is_free(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == holder.pid
    with lock.held(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "run" / "lock").read_text() == ""


def test_processes_of_one_job_have_a_lock_each(tmp_path):
    with lock.held(tmp_path), lock.held(tmp_path, process=1):
        with pytest.raises(lock.Locked, match=f"process {os.getpid()} on"):
            with lock.held(tmp_path, process=1):
                pass


def test_a_holder_that_has_not_signed_yet_is_respected(tmp_path):
    with (tmp_path / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(lock.Locked, match="in use by another process"):
            with lock.held(tmp_path):
                pass


def test_a_file_system_without_locks_is_said_and_not_in_the_way(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with lock.held(tmp_path):
        pass
    assert "no locks on this file system (No locks available)" in caplog.text


def test_other_errors_of_the_lock_are_raised(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), lock.held(tmp_path):
        pass


def test_what_a_lock_left_does_not_make_a_directory_foreign(tmp_path):
    with lock.held(tmp_path), lock.held(tmp_path, process=2):
        pass
    with occupy(tmp_path):
        pass
    (tmp_path / "lockets.txt").touch()
    with pytest.raises(ValueError, match="is not empty and no run directory"):
        occupy(tmp_path)


@pytest.mark.parametrize("name", ["lock", "log.txt", "metrics.jsonl", "resumes.jsonl"])
def test_a_run_directory_with_a_link_for_a_file_of_its_own_is_refused(tmp_path, name):
    """Of somebody else: what the link points to is not written to."""
    precious, run = tmp_path / "precious", tmp_path / "run"
    precious.write_text("mine")
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / name).symlink_to(precious)
    with pytest.raises(NotOurs, match=f"{name} is a link"), occupy(run):
        pass
    assert precious.read_text() == "mine" and {name, "config.json"} == set(os.listdir(run))


def test_a_folder_where_the_lock_would_be_holds_nothing(tmp_path):
    (tmp_path / lock.FILE).mkdir()
    assert lock.holder(tmp_path) is None
