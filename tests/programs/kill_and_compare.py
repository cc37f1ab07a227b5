"""Kill training at random points, continue it each time, compare the end with an undisturbed run.

    python -m tests.programs.kill_and_compare --points 100 --seed 0
    python -m tests.programs.kill_and_compare --points 100 --seed 0 --processes 2 --devices 2
    python -m tests.programs.kill_and_compare --points 100 --seed 0 --kind stages   # or family

Real processes of `dinojax train` or `distill` on a tiny recipe, of fewer steps, get SIGKILL or
SIGTERM at random moments of random phases; of several processes all get it, or one. Kinds
(kill_kinds.py): one network; three stages, with Gram refreshes, on a mixture of tar, ArrayRecord
and folder; two students of one teacher. Weights and all else that
a checkpoint holds, the images of every step, metrics and pictures must be equal to the last bit.
Every second run of several processes is continued by one process with one device after half of its
points: then the images of every step must be those of the undisturbed run. The last line is JSON;
exit code 1 when anything differs. A compilation cache (JAX_COMPILATION_CACHE_DIR) makes restarts
cheap.
"""

import argparse
import collections
import concurrent.futures
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dinojax.runs.scalars import duration
from tests.programs.kill_kinds import KINDS, SAVE_EVERY, SMALLER
from tests.support.killer import ALONE, Killer, Place, Point, Session
from tests.support.stored_run import differences, order_differences

SIGNALS = (signal.SIGKILL, signal.SIGTERM)
PHASES = ("start", "compile", "wait", "step", "save", "evaluate", "finish")
PER_RUN = 20  # points that one run has to survive
TO_ALL = 1 / 3  # share of the points at which all of several processes get the signal


def draw(
    rng, count: int, num_steps: int, processes: int = 1, *, evaluate_every: int = 20
) -> list[Point]:
    """Points spread evenly over phases and signals, at random steps and moments."""
    steps = {
        "save": range(SAVE_EVERY, num_steps + 1, SAVE_EVERY),
        "evaluate": range(0, num_steps + 1, evaluate_every),
        "finish": [num_steps],
    }
    points = []
    for number in range(count):
        phase = PHASES[number % len(PHASES)]
        step = rng.choice(steps[phase] if phase in steps else range(1, num_steps + 1))
        sent = SIGNALS[number % 2]  # with an odd number of phases, each meets both
        point = Point(phase, int(step), float(rng.random()), sent)
        # While some start, others wait for them as long as --wait says.
        if processes > 1 and phase != "start" and rng.random() >= TO_ALL:
            point = point._replace(who=int(rng.integers(processes)))
        points.append(point)
    return points


class Tally:
    """What was done and found, and how long the rest will take."""

    def __init__(self, num_points: int):
        self._began, self._num_points = time.monotonic(), num_points
        self.hit: collections.Counter[str] = collections.Counter()
        self.who: collections.Counter[str] = collections.Counter()  # of several processes
        self.runs = self.sessions = self.steps = 0
        self.faults: list[str] = []

    def add(self, point: Point, session: Session) -> None:
        self.sessions += 1
        self.steps += sum(phase == "step" for phase, _, _ in session.marks)
        if session.stopped:
            self.hit[f"{point.signal.name} {point.phase}"] += 1
            if len(session.codes) > 1:
                self.who["all" if point.who is None else f"process {point.who}"] += 1
        done, seconds = self.hit.total(), time.monotonic() - self._began
        left = duration(seconds / max(done, 1) * (self._num_points - done))
        reached = session.marks[-1]
        said = f"{point.phase} {point.step}, {point.signal.name}: exit {session.codes}"
        said += f" in {reached[0]}"
        print(f"{done}/{self._num_points}  {said} {reached[1]}  {left} left", flush=True)

    def blame(self, fault: str) -> None:
        print(f"FAULT {fault}", flush=True)
        self.faults.append(fault)


def kill_through(
    killer: Killer, run: Path, points: list[Point], tally: Tally, *, places: list[Place]
) -> list[Point]:
    """One run through points in the order of their steps, to its end; returns those not met.

    places: of the first half of the points, and of the others and the rest of the run.
    """
    left = sorted(points, key=lambda point: point.step)
    while left:
        place = places[0] if 2 * len(left) > len(points) else places[1]
        point = left[0] if place.processes > 1 else left[0]._replace(who=None)
        session = killer.session(run, place, point)
        tally.add(point, session)
        if (fault := session.fault(point)) is not None:
            tally.blame(f"{run.name}, {point}: {fault}")
        if not any(session.codes):  # at its end before the point was met
            return left
        left = left[1:]
    last = killer.session(run, places[1])
    tally.sessions += 1
    if (fault := last.fault(None)) is not None:
        tally.blame(f"{run.name}, to its end: {fault}")
    return []


def kill_and_compare(
    root: Path,
    num_points: int,
    seed: int,
    num_steps: int,
    *,
    jobs: int = 1,
    extra=(),
    place: Place = ALONE,
    per_run: int = PER_RUN,
    few: bool = False,
    kind: str = "run",
) -> dict:
    """The row of results; `root` receives the runs, those that are equal are removed again.

    few: few tiles, for quick evaluations. kind: of KINDS.
    """
    rng, what = np.random.default_rng(seed), KINDS[kind]
    given = [setting.split("=")[0] for setting in extra]
    kept = [s for s in what.settings(num_steps, root) if s.split("=")[0] not in given]
    killer = Killer(root, [*kept, *extra], command=what.command, few=few)
    for name in ("warm", "whole"):  # the first one may have to compile
        session = killer.session(root / name, place)
        if any(session.codes):
            raise RuntimeError(f"an undisturbed run ended with {session.codes}:\n{session.told}")
    tally = Tally(num_points)  # the time left follows from what restarts take
    killer.measure(root / "whole", session)
    for line in differences(root / "warm", root / "whole", num_steps):
        tally.blame(f"two undisturbed runs: {line}")
    points = draw(rng, num_points, num_steps, place.processes, evaluate_every=what.evaluate_every)

    def one_run(number: int, points: list[Point]) -> list[Point]:
        run = root / f"killed-{number}"
        elsewhere = place.processes > 1 and number % 2 == 1
        places = [place, ALONE if elsewhere else place]
        missed = kill_through(killer, run, points, tally, places=places)
        compare = order_differences if elsewhere else differences
        found = compare(run, root / "whole", num_steps)
        for line in found:
            tally.blame(f"{run.name}: {line}")
        if not found:
            shutil.rmtree(run)
        return [point._replace(share=float(rng.random())) for point in missed]

    while points and tally.runs < num_points:
        parts = [points[i : i + per_run] for i in range(0, len(points), per_run)]
        numbers = range(tally.runs, tally.runs + len(parts))
        tally.runs += len(parts)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            points = [p for missed in pool.map(one_run, numbers, parts) for p in missed]
    if points:
        tally.blame(f"{len(points)} points were never met: {points}")
    return {
        "name": "kill_and_compare",
        "kind": kind,
        "points": tally.hit.total(),
        "seed": seed,
        "num_steps": num_steps,
        "place": list(place),
        "who": dict(sorted(tally.who.items())),
        "hit": dict(sorted(tally.hit.items())),
        "runs": tally.runs,
        "sessions": tally.sessions,
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
    parser.add_argument("--per-run", type=int, default=PER_RUN, help="points of one run")
    parser.add_argument("--kind", choices=KINDS, default="run", help="of what is run")
    parser.add_argument("--processes", type=int, default=1, help="of a run")
    parser.add_argument("--devices", type=int, default=1, help="of each process")
    parser.add_argument("--keep", type=Path, help="folder for the runs; those that differ stay")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if args.processes > 1 and args.jobs > 1:
        parser.error("--jobs: several processes share compiled programs with no other run")
    with tempfile.TemporaryDirectory() as folder:
        root = args.keep or Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        place = Place(args.processes, args.devices)
        row = kill_and_compare(
            root,
            args.points,
            args.seed,
            args.steps,
            jobs=args.jobs,
            extra=[*(SMALLER if args.processes > 1 else ()), *args.set],
            place=place,
            per_run=args.per_run,
            few=args.processes > 1 or args.kind != "run",
            kind=args.kind,
        )
    print(json.dumps(row))
    return 0 if row["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
