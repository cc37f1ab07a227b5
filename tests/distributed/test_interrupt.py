"""Signals become a request that is met where nothing is lost."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dinojax.distributed.interrupt import NOT_SAVED, SAME, SAVED, SIGNALS, Asked, Interrupt, leaving


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_until_it_is_asked_for(number):
    with Interrupt() as interrupt:
        interrupt.check()
        os.kill(os.getpid(), number)
        time.sleep(0.01)  # the handler runs here and interrupts nothing
        with pytest.raises(Asked, match=number.name):
            interrupt.check()


def test_waiting_ends_at_once():
    began = time.monotonic()
    with Interrupt() as interrupt, pytest.raises(Asked, match="SIGUSR1"):
        with interrupt.breakable():
            signal.setitimer(signal.ITIMER_REAL, 0)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(20)
    assert time.monotonic() - began < 5


def test_what_must_not_break_is_not_broken_and_the_next_wait_does_not_begin():
    done = []
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("save")
        with pytest.raises(Asked):
            with interrupt.breakable():
                done.append("wait")
    assert done == ["save"]


def test_earlier_handlers_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupt():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_asked_twice_the_program_ends_at_once():
    code = (
        "import os, signal, time\n"
        "from dinojax.distributed.interrupt import Interrupt\n"
        "with Interrupt():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(2.1)\n"
        "    print('once', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(20)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True)
    assert done.returncode == NOT_SAVED and done.stdout == b"once\n"


def process(body):
    """A process that runs `body` where signals are caught, once it has said that it is ready."""
    lines = [
        "import hashlib, threading, time",
        "from dinojax.distributed.interrupt import Interrupt, end_now",
        "def busy():  # one instruction of the main thread, like a compile",
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
        "with Interrupt(grace=0.3) as interrupt:",
        "    print('ready', flush=True)",
        f"    {body}",
    ]
    started = subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True
    )
    assert started.stdout.readline() == "ready\n"
    time.sleep(1.0)  # for it to begin with `body`
    return started


def end(started):
    """(exit code, what it printed); fails where the process hangs."""
    try:
        told = started.communicate(timeout=60)[0]
    finally:
        started.kill()
    return started.returncode, told


def test_a_process_that_compiles_ends_after_the_time_of_grace():
    words = "lambda name: print('stopped by', name, flush=True) or 75"
    started = process(f"with interrupt.ending({words}): busy()")
    started.send_signal(signal.SIGTERM)
    assert end(started) == (SAVED, "stopped by SIGTERM\n")


def test_short_work_with_nothing_to_save_is_finished_first():
    done = []
    with Interrupt(grace=5) as interrupt, pytest.raises(Asked):
        with interrupt.ending(lambda name: 1):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            done.append("work")
    assert done == ["work"]


def test_asked_twice_a_process_that_is_busy_ends_at_once():
    started = process("busy()")
    started.send_signal(signal.SIGTERM)
    time.sleep(SAME + 0.2)
    assert started.poll() is None, "the first signal alone must not end it"
    started.send_signal(signal.SIGTERM)
    assert end(started)[0] == NOT_SAVED


def test_a_thread_that_hangs_does_not_keep_the_exit_code_back():
    started = process("threading.Thread(target=time.sleep, args=(600,)).start(); end_now(75)")
    assert end(started)[0] == SAVED


@pytest.mark.parametrize("number", SIGNALS)
def test_before_a_run_is_opened_a_signal_ends_the_process_with_a_code(number):
    """`dinojax train` while it imports jax."""
    lines = (
        "from dinojax.cli import main as cli",
        "from dinojax.config import load",
        "def program(*_, **__):",
    )
    lines += ("    print('ready', flush=True); time.sleep(60)", "cli._program = lambda _: program")
    lines = ("import time", *lines, "cli.main(['train', '--config', 'tiny', '--run', 'none'])")
    command = [sys.executable, "-c", "\n".join(lines)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "ready\n"
    started.send_signal(number)
    code, told = end(started)
    assert code == NOT_SAVED and f"stopped by {number.name} before the run was opened" in told


def test_handlers_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with leaving():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
