"""The watchdog: silent while steps come, and in phases; else it ends the run and shows stacks."""

import os
import queue
import subprocess
import sys
import time

from dinojax.distributed import process_group
from dinojax.distributed.interrupt import LOST
from dinojax.monitor.watchdog import Watchdog, dump_stacks

TICK = 0.01


def watchdog(told, **options):
    given = {"factor": 5.0, "seconds": 0.05, "minutes": 10.0, **options}
    return Watchdog(told.put, tick=TICK, **given)


def step(watched, seconds):
    time.sleep(seconds)
    watched.beat()


def test_no_step_within_a_multiple_of_the_median_is_a_stall():
    told = queue.Queue()
    with watchdog(told, factor=50.0) as watched:  # 1.5 s: a full machine stands still for some
        for _ in range(5):
            step(watched, 0.03)
        assert told.empty()
        why = told.get(timeout=20)
    assert "no step finished within" in why and "hang.factor" in why


def test_short_steps_have_at_least_the_least_time():
    told = queue.Queue()
    with watchdog(told, seconds=1e6) as watched:
        for _ in range(3):
            step(watched, 0.001)
        assert watched.limit()[0] == 1e6
        time.sleep(0.2)
    assert told.empty()


def test_in_a_phase_only_its_own_limit_counts():
    told = queue.Queue()
    with watchdog(told, seconds=0.5) as watched:
        for _ in range(3):
            step(watched, 0.001)
        with watched.phase("evaluating"):
            time.sleep(0.8)
        assert told.empty()
        assert told.get(timeout=20), "after the phase steps are expected again"
    with watchdog(told, minutes=0.1 / 60) as watched, watched.phase("compiling"):
        assert "while compiling" in told.get(timeout=20)


def test_without_a_factor_nothing_is_watched():
    told = queue.Queue()
    with watchdog(told, factor=None, minutes=1e-9):
        time.sleep(0.1)
    assert told.empty()


def test_time_in_which_the_whole_process_stood_still_does_not_count(monkeypatch):
    told, skipped = queue.Queue(), [0.0]
    now = time.monotonic
    monkeypatch.setattr("dinojax.monitor.watchdog.time.monotonic", lambda: now() + skipped[0])
    with watchdog(told, seconds=5.0) as watched:
        step(watched, 0.001)
        step(watched, 0.001)
        skipped[0] = 3600.0
        time.sleep(0.2)
    assert told.empty()


def test_a_stall_writes_stacks_and_ends_the_process_with_its_own_code(tmp_path):
    code = (
        "import time\n"
        "from pathlib import Path\n"
        "from dinojax.distributed import process_group\n"
        "from dinojax.monitor import watchdog\n"
        "group = process_group.current()\n"
        f"path = Path({str(tmp_path / 's')!r})\n"
        "group.last_words = lambda why, hangs: watchdog.dump_stacks(path)\n"
        "def decode_for_ever():\n"
        "    time.sleep(600)\n"
        "with watchdog.Watchdog(group.report_stall, factor=2, seconds=0.1, minutes=0.001):\n"
        "    decode_for_ever()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert done.returncode == LOST, done.stderr
    assert "decode_for_ever" in (tmp_path / "s").read_text()
    assert "no step finished" in done.stderr


def test_stacks_are_added_to_those_before(tmp_path):
    for _ in range(2):
        dump_stacks(tmp_path / "stacks.0.txt")
    assert (tmp_path / "stacks.0.txt").read_text().count("test_stacks_are_added") == 2
    assert process_group.current().is_main and os.getpid()
