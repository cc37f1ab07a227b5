"""Real processes of `dinojax train` that are stopped while they compile, hang, or fill the disk."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dinojax.cli import main
from dinojax.distributed.interrupt import NOT_SAVED, SAVED

pytestmark = pytest.mark.slow

SETTINGS = (
    *("num_steps=6", "batch_size=16", "model.width=24", "model.depth=1", "log.every=1"),
    *("schedules.lr.warmup=2", "schedules.teacher_temperature.warmup=2", "knn.every=None"),
    *("checkpoint.every=2", "log.pictures=False", "dino_head.prototypes=64"),
)
SETS = [word for setting in SETTINGS for word in ("--set", setting)]
MAIN = "\nimport sys\nfrom dinojax.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
HANG = """
import time
from dinojax.data import loader
following, numbers = loader.Loader.__next__, iter(range(10**6))
def hang(self):
    if next(numbers) == 3:
        print("HANGS", flush=True)
        time.sleep(600)
    return following(self)
loader.Loader.__next__ = hang
"""
# A limit on the size of files fails every later write as a full disk does.
FILL = """
import resource
from dinojax.checkpoint.manager import Checkpoints
save, numbers = Checkpoints.save, iter(range(10**6))
def fill(self, *args, **kwargs):
    if next(numbers) == 1:
        self.wait()  # so that step 2 is whole
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(self, *args, **kwargs)
Checkpoints.save = fill
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, shared by all but the test of compiling."""
    return os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("cache"))


def start(run, cache, before=""):
    """A training process; `before` is run ahead of it."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "",
    }
    command = [sys.executable, "-c", before + MAIN, "train", "--config", "tiny", "--run", str(run)]
    return subprocess.Popen(
        [*command, *SETS],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def read_until(started, word):
    told = []
    for line in started.stdout:
        told.append(line)
        if word in line:
            return
    raise AssertionError("".join(told))


def end(started, seconds):
    """(exit code, the rest of what it printed) of a process that must end within that time."""
    try:
        told = started.communicate(timeout=seconds)[0]
    finally:
        started.kill()
    return started.returncode, told


def checkpoints(run):
    return sorted(int(path.name) for path in (run / "checkpoints/pretrain").iterdir())


def test_a_compile_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")  # else it is over too soon
    started = start(tmp_path / "run", tmp_path / "empty")
    read_until(started, "compiling the step")
    time.sleep(1.0)
    started.send_signal(signal.SIGTERM)
    code, told = end(started, 60)
    assert code == NOT_SAVED and "stopped by SIGTERM" in told, told
    rows = (tmp_path / "run/resumes.jsonl").read_text().splitlines()
    assert "SIGTERM" in json.loads(rows[-1])["reason"]


def test_a_loader_that_hangs_is_left_and_what_was_done_is_saved(tmp_path, cache):
    started = start(tmp_path / "run", cache, HANG)
    read_until(started, "HANGS")
    started.send_signal(signal.SIGTERM)
    code, told = end(started, 60)
    assert code == SAVED and "stopped by SIGTERM after step 3; saved" in told, told
    assert checkpoints(tmp_path / "run") == [2, 3]
    page = (tmp_path / "run/report.html").read_text()
    assert "stopped by SIGTERM after step 3" in page and "newest checkpoint 3" in page


def test_a_full_disk_is_reported_and_keeps_what_was_saved(tmp_path, cache):
    code, told = end(start(tmp_path / "run", cache, FILL), 300)
    assert code == main.FAILED and "File too large" in told, told
    assert "step 2 stands" in told or "cannot be written" in told, told
    code, told = end(start(tmp_path / "run", cache), 300)
    assert code == main.FINISHED and "continuing from step 2" in told, told
