"""Kill training at random points, continue it each time, compare the end with an undisturbed run.

    python -m tests.kill_and_compare --points 100 --seed 0

Real processes of `dinojax train` on the tiny recipe, of fewer steps, get SIGKILL or SIGTERM at
random moments of random phases. Weights and all else that a checkpoint holds, the images of every
step, metrics and pictures must be equal to the last bit. The last line is JSON; exit code 1 when
anything differs. A compilation cache (JAX_COMPILATION_CACHE_DIR) makes restarts cheap.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinojax.checkpoint import COMMITTED
from dinojax.interrupt import NOT_SAVED, SAVED
from dinojax.metrics import duration
from tests.stored_run import differences

SAVE_EVERY, EVALUATE_EVERY = 4, 20  # steps
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
CODES = {signal.SIGKILL: (-signal.SIGKILL,), signal.SIGTERM: (SAVED, NOT_SAVED)}
PHASES = ("start", "compile", "wait", "step", "save", "evaluate", "finish")
PER_RUN = 20  # points that one run has to survive
SESSION_SECONDS = 600  # after which a process counts as hanging


class Point(NamedTuple):
    """When a process is to be stopped: `share` of the way through a phase, from `step` on."""

    phase: str
    step: int
    share: float
    signal: signal.Signals

    def meets(self, phase: str, step: int) -> bool:
        return phase == self.phase and (phase == "compile" or step >= self.step)


class Session(NamedTuple):
    """One process: its exit code, whether it got its signal, (phase, step, time), what it said."""

    code: int
    stopped: bool
    marks: list[tuple[str, int, float]]
    told: str


def draw(rng, count: int, num_steps: int) -> list[Point]:
    """Points spread evenly over phases and signals, at random steps and moments."""
    steps = {
        "save": range(SAVE_EVERY, num_steps + 1, SAVE_EVERY),
        "evaluate": range(0, num_steps + 1, EVALUATE_EVERY),
        "finish": [num_steps],
    }
    points = []
    for number in range(count):
        phase = PHASES[number % len(PHASES)]
        step = rng.choice(steps[phase] if phase in steps else range(1, num_steps + 1))
        sent = SIGNALS[number // len(PHASES) % 2]
        points.append(Point(phase, int(step), float(rng.random()), sent))
    return points


class Killer:
    """Starts processes of one recipe and stops them at points."""

    def __init__(self, root: Path, settings: list[str]):
        self._root, self._settings = root, [w for s in settings for w in ("--set", s)]
        self._seconds: dict[str, float] = {}  # of each phase, in a run that nothing disturbed

    def session(self, run: Path, point: Point | None = None) -> Session:
        """One process from start to end; without a point nothing stops it."""
        marks_in, marks_out = os.pipe()
        plain = {name: value for name, value in os.environ.items() if name != "NPROC"}
        environment = plain | {  # one device, whatever the tests of this process simulate
            "MARKS": str(marks_out),
            "ORDER": str(run.with_suffix(".order")),
            "STALL": str(point.step if point and point.phase == "wait" else 0),
            "XLA_FLAGS": "",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if "JAX_COMPILATION_CACHE_DIR" not in environment:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(self._root / "compiled")
        command = [sys.executable, "-m", "tests.marked_train", "train", "--config", "tiny"]
        with tempfile.TemporaryFile("w+") as told:
            marks = [("begin", 0, time.time())]
            process = subprocess.Popen(
                [*command, "--run", str(run), *self._settings],
                env=environment,
                pass_fds=[marks_out],
                stdout=told,
                stderr=told,
            )
            os.close(marks_out)
            watchdog = threading.Timer(SESSION_SECONDS, process.kill)
            watchdog.start()
            stopped = False
            if point is not None and point.phase == "start":
                stopped = self._stop(process, point)
            with open(marks_in) as lines:
                for line in lines:
                    phase, step, moment = line.split()
                    marks.append((phase, int(step), float(moment)))
                    if point is not None and not stopped and point.meets(phase, int(step)):
                        stopped = self._stop(process, point)
            code = process.wait()
            watchdog.cancel()
            told.seek(0)
            return Session(code, stopped and code != 0, marks, told.read())

    def _stop(self, process, point: Point) -> bool:
        time.sleep(point.share * self._seconds[point.phase])
        process.send_signal(point.signal)
        return True

    def measure(self, run: Path, session: Session) -> None:
        """How long phases take: until the next begins, or until a checkpoint is whole."""
        found = collections.defaultdict(list)
        ends = [moment for _, _, moment in session.marks[1:]] + [time.time()]
        for (phase, step, began), end in zip(session.marks, ends, strict=True):
            whole = run / "checkpoints" / "pretrain" / str(step) / COMMITTED
            end = whole.stat().st_mtime if phase == "save" and whole.exists() else end
            found[phase].append(end - began)
        found["start"].append(sum(found["start"] + found["begin"]))
        self._seconds = {phase: float(np.max(values)) for phase, values in found.items()}
        self._seconds["wait"] = 1.0  # a stall is made there


def settings(num_steps: int) -> list[str]:
    """The tiny recipe's shapes, fewer steps; saves and evaluations as often as that asks for."""
    return [
        f"num_steps={num_steps}",
        f"checkpoint.every={SAVE_EVERY}",
        f"knn.every={EVALUATE_EVERY}",
        "log.every=1",
        "schedules.lr.warmup=4",
        "schedules.teacher_temperature.warmup=8",
    ]


class Tally:
    """What was done and found, and how long the rest will take."""

    def __init__(self, num_points: int):
        self._began, self._num_points = time.monotonic(), num_points
        self.hit: collections.Counter[str] = collections.Counter()
        self.runs = self.sessions = self.steps = 0
        self.faults: list[str] = []

    def add(self, point: Point, session: Session) -> None:
        self.sessions += 1
        self.steps += sum(phase == "step" for phase, _, _ in session.marks)
        if session.stopped:
            self.hit[f"{point.signal.name} {point.phase}"] += 1
        done, seconds = self.hit.total(), time.monotonic() - self._began
        left = duration(seconds / max(done, 1) * (self._num_points - done))
        reached = session.marks[-1]
        said = (
            f"{point.phase} {point.step}, {point.signal.name}: exit {session.code} in {reached[0]}"
        )
        print(f"{done}/{self._num_points}  {said} {reached[1]}  {left} left", flush=True)

    def blame(self, fault: str) -> None:
        print(f"FAULT {fault}", flush=True)
        self.faults.append(fault)


def kill_through(killer: Killer, run: Path, points: list[Point], tally: Tally) -> list[Point]:
    """One run through points in the order of their steps, to its end; returns those not met."""
    left = sorted(points, key=lambda point: point.step)
    while left:
        session = killer.session(run, left[0])
        tally.add(left[0], session)
        if session.code not in allowed(left[0], session):
            tally.blame(f"{run.name}, {left[0]}: exit code {session.code}\n{session.told[-3000:]}")
        if session.code == 0:  # at its end before the point was met
            return left
        left = left[1:]
    last = killer.session(run)
    tally.sessions += 1
    if last.code != 0:
        tally.blame(f"{run.name}, to its end: exit code {last.code}\n{last.told[-3000:]}")
    return []


def allowed(point: Point, session: Session) -> tuple[int, ...]:
    """Exit codes that are right; a Python that is still starting knows of no signals."""
    if not session.stopped:
        return (0,)
    early = session.marks[-1][0] == "begin"
    return CODES[point.signal] + ((-point.signal,) if early else ())


def kill_and_compare(
    root: Path, num_points: int, seed: int, num_steps: int, *, jobs: int = 1, extra=()
) -> dict:
    """The row of results; `root` receives the runs, those that are equal are removed again."""
    rng = np.random.default_rng(seed)
    given = [setting.split("=")[0] for setting in extra]
    kept = [line for line in settings(num_steps) if line.split("=")[0] not in given]
    killer = Killer(root, [*kept, *extra])
    for name in ("warm", "whole"):  # the first one may have to compile
        session = killer.session(root / name)
        if session.code != 0:
            raise RuntimeError(f"an undisturbed run ended with {session.code}:\n{session.told}")
    tally = Tally(num_points)  # the time left follows from what restarts take
    killer.measure(root / "whole", session)
    for line in differences(root / "warm", root / "whole", num_steps):
        tally.blame(f"two undisturbed runs: {line}")
    points = draw(rng, num_points, num_steps)

    def one_run(number: int, points: list[Point]) -> list[Point]:
        run = root / f"killed-{number}"
        missed = kill_through(killer, run, points, tally)
        found = differences(run, root / "whole", num_steps)
        for line in found:
            tally.blame(f"{run.name}: {line}")
        if not found:
            shutil.rmtree(run)
        return [point._replace(share=float(rng.random())) for point in missed]

    while points and tally.runs < num_points:
        parts = [points[i : i + PER_RUN] for i in range(0, len(points), PER_RUN)]
        numbers = range(tally.runs, tally.runs + len(parts))
        tally.runs += len(parts)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            points = [p for missed in pool.map(one_run, numbers, parts) for p in missed]
    if points:
        tally.blame(f"{len(points)} points were never met: {points}")
    return {
        "name": "kill_and_compare",
        "points": tally.hit.total(),
        "seed": seed,
        "num_steps": num_steps,
        "hit": dict(sorted(tally.hit.items())),
        "runs": tally.runs,
        "processes": tally.sessions,
        "steps_taken": tally.steps,
        "seconds": round(time.monotonic() - tally._began),
        "faults": tally.faults,
        "equal": not tally.faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100, help="times that a process is stopped")
    parser.add_argument("--seed", type=int, default=0, help="of the points")
    parser.add_argument("--steps", type=int, default=40, help="of a run, a multiple of 20")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--keep", type=Path, help="folder for the runs; those that differ stay")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.keep or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        row = kill_and_compare(
            root, args.points, args.seed, args.steps, jobs=args.jobs, extra=args.set
        )
    print(json.dumps(row))
    return 0 if row["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
