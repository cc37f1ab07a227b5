"""Starts the processes of a training run and stops one or all of them at a chosen moment."""

import collections
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinojax.checkpoint.manager import COMMITTED
from dinojax.distributed.interrupt import LOST, NOT_SAVED, SAVED
from tests.support import several

CODES = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (SAVED, NOT_SAVED)}
# How a process ends when another is killed; JAX ends those whose coordinator is gone.
LEFT = (LOST, -signal.SIGABRT)
SESSION_SECONDS = 900  # after which a process counts as hanging
START = ("begin", "start")


class Point(NamedTuple):
    """When processes are to be stopped: `share` of the way through a phase, from `step` on."""

    phase: str
    step: int
    share: float
    signal: signal.Signals
    who: int | None = None  # of several processes, None = all

    def meets(self, phase: str, step: int) -> bool:
        return phase == self.phase and (phase == "compile" or step >= self.step)


class Place(NamedTuple):
    """Where a run is trained; one process with one device takes no flags."""

    processes: int = 1
    devices: int = 1  # of each process

    def environment(self) -> dict[str, str]:
        if self == ALONE:
            plain = {name: value for name, value in os.environ.items() if name != "NPROC"}
            return plain | {"XLA_FLAGS": several.QUICK}
        return several.environment(self.devices)

    def flags(self) -> list[list[str]]:
        if self.processes == 1:
            return [[]]
        return several.places(self.processes, several.free_port())


ALONE = Place()


class Session(NamedTuple):
    """Processes of a run from start to end."""

    codes: list[int]
    stopped: bool  # whether the signal was sent and ended any
    marks: list[tuple[str, int, float]]  # (phase, step, time) of the one that is watched
    told: str

    def fault(self, point: Point | None) -> str | None:
        """What is wrong with the exit codes."""
        right = [self._allowed(point, index) for index in range(len(self.codes))]
        if all(code in allowed for code, allowed in zip(self.codes, right, strict=True)):
            return None
        return f"exit codes {self.codes}, right are {right}\n{self.told[-6000:]}"

    def _allowed(self, point: Point | None, index: int) -> tuple[int, ...]:
        """A Python that is still starting knows of no signals; who is done is not stopped."""
        if not self.stopped or point is None:
            return (0,)
        codes, phase, is_one = CODES[point.signal], self.marks[-1][0], len(self.codes) == 1
        if point.signal == signal.SIGKILL and point.who not in (None, index):
            codes = LEFT
        if phase == "begin" or (phase == "start" and not is_one):
            codes += (-point.signal,)
        if is_one:
            return codes
        # Told before or after the time in which all stop together.
        early = LEFT if phase in START else ()
        return codes + early + ((0, LOST) if phase == "finish" else ())


class Killer:
    """Starts processes of one recipe and stops them at points.

    command: verb and config. few: few tiles, wherever the run is trained.
    """

    def __init__(
        self,
        root: Path,
        settings: list[str],
        *,
        command: Sequence[str] = ("train", "--config", "tiny"),
        few: bool = False,
    ):
        self._root, self._settings = root, [w for s in settings for w in ("--set", s)]
        self._command = command
        self._more = {"FEW": "1"} if few else {}
        self._seconds: dict[str, float] = {}  # of each phase, in a run that nothing disturbed

    def session(self, run: Path, place: Place, point: Point | None = None) -> Session:
        """From start to end; without a point nothing stops it."""
        watched = (point.who if point else None) or 0
        environment = place.environment() | self._more
        cache = "JAX_COMPILATION_CACHE_DIR"
        if place.processes > 1 or cache not in environment:
            environment[cache] = str(self._root / "compiled")
        environment |= {
            "STALL": str(point.step if point and point.phase == "wait" else 0),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        begin = ("begin", 0, time.time())
        started, pipes, told = [], [], tempfile.TemporaryFile("w+")
        for index, flags in enumerate(place.flags()):
            marks_in, marks_out = os.pipe()
            pipes.append(marks_in)
            name = run.with_suffix(".order" + (f".{index}" if place.processes > 1 else ""))
            command = [sys.executable, "-m", "tests.support.marked_train", *self._command]
            process = subprocess.Popen(
                [*command, "--run", str(run), *self._settings, *flags],
                env=environment | {"MARKS": str(marks_out), "ORDER": str(name)},
                pass_fds=[marks_out],
                stdout=told,
                stderr=told,
            )
            os.close(marks_out)
            started.append(process)
        watchdogs = [threading.Timer(SESSION_SECONDS, process.kill) for process in started]
        for watchdog in watchdogs:
            watchdog.start()
        others = [pipe for index, pipe in enumerate(pipes) if index != watched]
        drains = [threading.Thread(target=_drain, args=(pipe,)) for pipe in others]
        for drain in drains:
            drain.start()
        marks, stopped = self._watch(pipes[watched], started, point)
        codes = [process.wait() for process in started]
        for thread in [*watchdogs, *drains]:
            getattr(thread, "cancel", thread.join)()
        told.seek(0)
        with told:
            return Session(codes, stopped and any(codes), [begin, *marks], told.read())

    def _watch(self, pipe: int, started, point: Point | None):
        """(marks of one process to its end, whether the point was met)."""
        marks, stopped = [], False
        if point is not None and point.phase == "start":
            stopped = self._stop(started, point)
        with open(pipe) as lines:
            for line in lines:
                phase, step, moment = line.split()
                marks.append((phase, int(step), float(moment)))
                if point is not None and not stopped and point.meets(phase, int(step)):
                    stopped = self._stop(started, point)
        return marks, stopped

    def _stop(self, started, point: Point) -> bool:
        time.sleep(point.share * self._seconds[point.phase])
        for process in started if point.who is None else [started[point.who]]:
            process.send_signal(point.signal)
        return True

    def measure(self, run: Path, session: Session) -> None:
        """How long phases take: until the next begins, or until a checkpoint is whole."""
        found = collections.defaultdict(list)
        ends = [moment for _, _, moment in session.marks[1:]] + [time.time()]
        wholes = sorted(p.stat().st_mtime for p in run.glob(f"**/checkpoints/*/*/{COMMITTED}"))
        for (phase, _, began), end in zip(session.marks, ends, strict=True):
            if phase == "save":  # it goes on in the background
                end = next((moment for moment in wholes if moment >= began), end)
            found[phase].append(end - began)
        found["start"].append(sum(found["start"] + found["begin"]))
        self._seconds = {phase: float(np.max(values)) for phase, values in found.items()}
        self._seconds["wait"] = 1.0  # a stall is made there


def _drain(pipe: int) -> None:
    with open(pipe) as lines:
        for _ in lines:
            pass
